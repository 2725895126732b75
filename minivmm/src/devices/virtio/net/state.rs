//! Guest state of a network card: QEMU's "virtio-net-device", version 11.

use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_S_LINK_UP};
use vmstate::VmState;

/// Entries of QEMU's address filter.
pub(super) const MAC_TABLE_MAX: usize = 64;

/// Bytes of the bitmap of VLAN numbers.
pub(super) const VLAN_BYTES: usize = 4096 / 8;

/// State of a network card. Filters are kept for the guest and the stream; frames are not filtered, which the standard allows
/// (virtio 1.2 §5.1.6.5.1: filtering is best effort).
#[derive(VmState, Clone, Debug)]
#[vmstate(name = "virtio-net-device", version = 11, validate = Self::check)]
pub struct NetState {
    pub(super) mac: [u8; 6],
    /// QEMU: a transmission was scheduled. minivmm checks the queue after every load.
    pub(super) tx_waiting: u32,
    pub(super) mergeable_rx_bufs: u32,
    pub(super) status: u16,
    pub(super) promisc: u8,
    pub(super) allmulti: u8,
    #[vmstate(name = "mac_table.in_use")]
    pub(super) mac_count: u32,
    #[vmstate(name = "mac_table.macs", len = mac_count, max = MAC_TABLE_MAX)]
    pub(super) macs: Vec<[u8; 6]>,
    #[vmstate(buffer)]
    pub(super) vlans: [u8; VLAN_BYTES],
    /// QEMU refuses a stream with this set if its own backend lacks the header.
    pub(super) has_vnet_hdr: u32,
    #[vmstate(name = "mac_table.multi_overflow")]
    pub(super) multi_overflow: u8,
    #[vmstate(name = "mac_table.uni_overflow")]
    pub(super) uni_overflow: u8,
    pub(super) alluni: u8,
    pub(super) nomulti: u8,
    pub(super) nouni: u8,
    pub(super) nobcast: u8,
    /// Like `has_vnet_hdr`, for UDP fragmentation offload.
    pub(super) has_ufo: u8,
    #[vmstate(exists = Self::sends_offloads)]
    pub(super) curr_guest_offloads: u64,
    #[vmstate(skip)]
    pub(super) features: u64,
}

impl NetState {
    /// State after reset: everything is received, as in QEMU.
    pub(super) fn new(mac: [u8; 6], has_ufo: bool) -> Self {
        Self {
            mac,
            tx_waiting: 0,
            mergeable_rx_bufs: 0,
            status: VIRTIO_NET_S_LINK_UP as u16,
            promisc: 1,
            allmulti: 0,
            mac_count: 0,
            macs: Vec::new(),
            vlans: [0xff; VLAN_BYTES],
            has_vnet_hdr: 1,
            multi_overflow: 0,
            uni_overflow: 0,
            alluni: 0,
            nomulti: 0,
            nouni: 0,
            nobcast: 0,
            has_ufo: u8::from(has_ufo),
            curr_guest_offloads: 0,
            features: 0,
        }
    }

    fn sends_offloads(&self, _version: u32) -> bool {
        self.chooses_offloads()
    }

    /// Whether the driver may change the receive offloads at any time.
    pub(super) fn chooses_offloads(&self) -> bool {
        self.negotiated(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)
    }

    fn check(&self) -> Result<(), String> {
        if self.mergeable_rx_bufs > 1 {
            return Err(format!("mergeable_rx_bufs is 0 or 1, got {}", self.mergeable_rx_bufs));
        }
        Ok(())
    }

    /// Whether feature `bit` was negotiated.
    pub(super) fn negotiated(&self, bit: u32) -> bool {
        self.features & 1 << bit != 0
    }
}
