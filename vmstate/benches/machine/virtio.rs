//! Virtio devices: a transport's registers, a variable number of queues, requests in flight, buffers.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use vmstate::VmState;

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "virtio")]
struct Transport {
    #[vmstate(equal)]
    device_id: u32,
    device_features_select: u32,
    driver_features_select: u32,
    host_features: u64,
    guest_features: u64,
    status: Status,
    interrupt_status: u8,
    queue_select: u16,
    config_generation: u32,
    broken: bool,
    use_started: bool,
    started: bool,
    #[vmstate(range = 0..=64)]
    queue_count: u16,
    #[vmstate(len = queue_count, max = 64)]
    queues: Vec<Queue>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[repr(u8)]
enum Status {
    #[default]
    Reset = 0,
    Acknowledged = 1,
    Driver = 3,
    FeaturesOk = 11,
    DriverOk = 15,
}

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "virtqueue")]
struct Queue {
    size: u16,
    size_max: u16,
    enabled: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    last_available: u16,
    used_index: u16,
    signalled_used: u16,
    signalled_used_valid: bool,
    notification: bool,
    in_flight: u32,
    vector: u16,
}

impl Transport {
    fn new(device_id: u32, queues: usize, seed: u64) -> Self {
        Self {
            device_id,
            host_features: 0x1_3900_0a54,
            guest_features: 0x1_1000_0a54,
            status: Status::DriverOk,
            interrupt_status: 1,
            use_started: true,
            started: true,
            queue_count: queues as u16,
            queues: (0..queues as u64).map(|index| Queue::new(index, seed)).collect(),
            ..Self::default()
        }
    }
}

impl Queue {
    fn new(index: u64, seed: u64) -> Self {
        Self {
            size: 256,
            size_max: 1024,
            enabled: true,
            descriptors: 0x0480_0000 + index * 0x4000,
            available: 0x0480_1000 + index * 0x4000,
            used: 0x0480_2000 + index * 0x4000,
            last_available: (1234 + seed) as u16,
            used_index: (1230 + seed) as u16,
            signalled_used: (1230 + seed) as u16,
            signalled_used_valid: true,
            notification: true,
            in_flight: 4,
            vector: 1,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "virtio-blk", version = 2)]
#[vmstate(subsection(name = "virtio-blk/failed", needed = Self::has_failed))]
pub(super) struct Block {
    virtio: Transport,
    capacity: u64,
    write_cache: bool,
    request_count: u32,
    #[vmstate(len = request_count, max = 1024)]
    requests: Vec<Request>,
    #[vmstate(subsection = "virtio-blk/failed")]
    failed_count: u32,
    #[vmstate(subsection = "virtio-blk/failed", len = failed_count, max = 1024)]
    failed: Vec<Request>,
}

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "virtio-blk-request")]
struct Request {
    queue: u16,
    head: u16,
    kind: u32,
    sector: u64,
    address: u64,
    length: u32,
}

impl Block {
    pub(super) fn new(seed: u64) -> Self {
        let request = |n: u64| Request {
            queue: 0,
            head: n as u16 * 3,
            kind: 1,
            sector: 0x2_0000 + n * 8 + seed,
            address: 0x0600_0000 + n * 4096,
            length: 4096,
        };
        let requests: Vec<_> = (0..4).map(request).collect();
        Self {
            virtio: Transport::new(2, 2, seed),
            capacity: 0x40_0000,
            write_cache: true,
            request_count: requests.len() as u32,
            requests,
            ..Self::default()
        }
    }

    fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "virtio-net", version = 11)]
#[vmstate(subsection(name = "virtio-net/announce", needed = Self::announces))]
pub(super) struct Net {
    virtio: Transport,
    #[vmstate(buffer)]
    mac: [u8; 6],
    status: u16,
    mergeable_buffers: bool,
    promiscuous: bool,
    all_multicast: bool,
    mac_table_count: u32,
    first_multicast: u32,
    mac_table_length: u16,
    #[vmstate(buffer, len = mac_table_length, max = 384)]
    #[serde(with = "serde_bytes")]
    mac_table: Vec<u8>,
    #[vmstate(buffer)]
    #[serde(with = "serde_bytes")]
    vlans: [u8; 512],
    has_vnet_header: bool,
    guest_offloads: u64,
    #[vmstate(range = 1..=16)]
    queue_pairs: u16,
    #[vmstate(subsection = "virtio-net/announce")]
    announce_rounds: u8,
}

impl Net {
    pub(super) fn new(seed: u64) -> Self {
        let mac_table: Vec<u8> = (0..36).map(|n| n ^ seed as u8).collect();
        Self {
            virtio: Transport::new(1, 3, seed),
            mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            status: 1,
            mergeable_buffers: true,
            promiscuous: false,
            all_multicast: false,
            mac_table_count: 6,
            first_multicast: 2,
            mac_table_length: mac_table.len() as u16,
            mac_table,
            vlans: [0; 512],
            has_vnet_header: true,
            guest_offloads: 0x1f,
            queue_pairs: 1,
            announce_rounds: 3,
        }
    }

    fn announces(&self) -> bool {
        self.announce_rounds != 0
    }
}
