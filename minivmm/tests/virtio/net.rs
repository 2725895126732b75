//! virtio-net on a socket pair instead of a tap.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use minivmm::bus::BusDevice;
use minivmm::devices::Device;
use minivmm::devices::virtio::net::{Announcing, Backend, Net, Offloads};
use vm_memory::{Bytes, GuestAddress};
use vmstate::VmState;

use crate::driver::{BUFFERS, Driver, EVENT_IDX, TIMEOUT, memory};
use crate::state::{fixture, guest_of_fixture, load, move_to, save};

pub const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
pub const RECEIVE: usize = 0;
pub const TRANSMIT: usize = 1;
pub const CONTROL: usize = 2;

pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
pub const GUEST_CSUM: u64 = 1 << 1;
pub const GUEST_TSO4: u64 = 1 << 7;
pub const MRG_RXBUF: u64 = 1 << 15;
pub const STATUS: u64 = 1 << 16;
pub const CTRL_VQ: u64 = 1 << 17;
const GUEST_ANNOUNCE: u64 = 1 << 21;

/// One end of a pair; the other one is the network.
pub struct Wire {
    socket: UnixDatagram,
    can: Offloads,
    set: Arc<Mutex<Offloads>>,
}

impl Backend for Wire {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
    fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        self.socket.recv(frame)
    }
    fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(drop)
    }
    fn offloads(&self) -> Offloads {
        self.can
    }
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        *self.set.lock().unwrap() = offloads;
        Ok(())
    }
}

pub struct Network {
    pub socket: UnixDatagram,
    pub set: Arc<Mutex<Offloads>>,
}

impl Network {
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = vec![0; 70_000];
        let len = self.socket.recv(&mut frame).expect("a frame in time");
        frame.truncate(len);
        frame
    }
}

pub fn net(can: Offloads) -> (Net<Wire>, Network) {
    let (wire, network) = wire(can);
    (Net::new(wire, MAC), network)
}

pub fn wire(can: Offloads) -> (Wire, Network) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_read_timeout(Some(TIMEOUT)).unwrap();
    let set = Arc::<Mutex<Offloads>>::default();
    (Wire { socket: ours, can, set: set.clone() }, Network { socket: theirs, set })
}

fn card(features: u64) -> (Driver<Net<Wire>>, Network) {
    let (net, network) = net(Offloads::ALL);
    let mut driver = Driver::new(net, memory());
    driver.start(features);
    (driver, network)
}

/// A virtio header of zeros, then `payload`.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    [&[0; 12], payload].concat()
}

pub fn send<B: Backend>(driver: &mut Driver<Net<B>>, bytes: &[u8], piece: usize) {
    driver.memory.write_slice(bytes, GuestAddress(BUFFERS)).unwrap();
    let buffers: Vec<_> = (0..bytes.len())
        .step_by(piece)
        .map(|at| (BUFFERS + at as u64, piece.min(bytes.len() - at) as u32, false))
        .collect();
    driver.request(TRANSMIT, &buffers);
}

/// Address of receive buffer `index`.
pub fn buffer(index: u64) -> u64 {
    BUFFERS + 0x10_0000 + index * 0x1000
}

pub fn offer<B: Backend>(driver: &mut Driver<Net<B>>, index: u64, len: u32) {
    driver.queues[RECEIVE].offer(&[(buffer(index), len, true)]);
}

fn received(driver: &Driver<Net<Wire>>, index: u64, len: u32) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    driver.memory.read_slice(&mut bytes, GuestAddress(buffer(index))).unwrap();
    bytes
}

fn command(driver: &mut Driver<Net<Wire>>, class: u8, number: u8, payload: &[u8]) -> u8 {
    driver.memory.write_slice(&[class, number], GuestAddress(BUFFERS)).unwrap();
    driver.memory.write_slice(payload, GuestAddress(BUFFERS + 16)).unwrap();
    let answer = BUFFERS + 0x9000;
    driver.memory.write_obj(0xffu8, GuestAddress(answer)).unwrap();
    let written =
        driver.request(CONTROL, &[(BUFFERS, 2, false), (BUFFERS + 16, payload.len() as u32, false), (answer, 1, true)]);
    assert_eq!(written, 1);
    driver.memory.read_obj(GuestAddress(answer)).unwrap()
}

#[test]
fn configuration_is_address_and_status() {
    let (mut driver, _network) = card(STATUS);
    assert_eq!(driver.read32(0x008), 1, "network card");
    let mut config = [0; 8];
    driver.device.read(0x100, &mut config);
    assert_eq!(config, [0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 1, 0], "link is up");
}

#[test]
fn a_card_that_was_given_another_address_has_it_once_the_guest_resets_it() {
    let (mut driver, _network) = card(STATUS);
    driver.device.pause(TIMEOUT).unwrap();
    let bytes = save(&mut driver.device);
    let (wire, _network) = wire(Offloads::default());
    let given = [0x52, 0x54, 0x00, 0x77, 0x77, 0x77];
    let mut clone = Driver::new(Net::new(wire, given), driver.memory.clone());
    load(&mut clone.device, &bytes).unwrap();
    let address = |clone: &mut Driver<Net<Wire>>| {
        let mut address = [0; 6];
        clone.device.read(0x100, &mut address);
        address
    };
    assert_eq!(address(&mut clone), MAC);
    clone.write32(0x070, 0);
    assert_eq!(address(&mut clone), given);
}

#[test]
fn offers_the_offloads_of_its_backend() {
    let (finished, _network) = net(Offloads::default());
    let mut driver = Driver::new(finished, memory());
    let offload_bits = (0..2).chain(7..15).chain(54..57).fold(0u64, |all, bit| all | 1 << bit);
    assert_eq!(driver.offered() & offload_bits, 0);
    let (unfinished, network) = net(Offloads::ALL);
    let mut driver = Driver::new(unfinished, memory());
    assert_eq!(driver.offered() & offload_bits, offload_bits);
    driver.start(GUEST_CSUM | GUEST_TSO4 | 1);
    assert_eq!(network.set.lock().unwrap().0, GUEST_CSUM | GUEST_TSO4);
    driver.write32(0x070, 0);
    assert_eq!(network.set.lock().unwrap().0, 0, "a driver after reset knows none");
}

#[test]
fn frames_of_the_guest_reach_the_network_whole() {
    for features in [0, EVENT_IDX] {
        let (mut driver, network) = card(features);
        for (len, piece) in [(60, 72), (1514, 100), (9000, 4096), (40_000, 3000)] {
            let bytes = frame(&(0..len).map(|at| at as u8).collect::<Vec<_>>());
            send(&mut driver, &bytes, piece.max(bytes.len() / 15));
            assert_eq!(network.frame(), bytes);
        }
    }
}

#[test]
fn frames_of_the_network_reach_the_guest_in_order() {
    let (mut driver, network) = card(MRG_RXBUF | EVENT_IDX);
    for round in 0..50u8 {
        for index in 0..4 {
            offer(&mut driver, index, 2048);
        }
        driver.notify(RECEIVE);
        for index in 0..4 {
            network.socket.send(&frame(&[round + index; 100])).unwrap();
        }
        for index in 0..4 {
            let (_, len) = driver.queues[RECEIVE].wait_used();
            assert_eq!(len, 112);
            let got = received(&driver, u64::from(index), len);
            assert_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "in one buffer");
            assert_eq!(got[12..], [round + index; 100]);
        }
    }
}

#[test]
fn a_large_frame_takes_several_buffers_and_reports_their_number() {
    for features in [MRG_RXBUF, MRG_RXBUF | EVENT_IDX] {
        large_frame(features);
    }
}

fn large_frame(features: u64) {
    let (mut driver, network) = card(features);
    let payload: Vec<u8> = (0..5000u32).map(|at| (at * 7) as u8).collect();
    network.socket.send(&frame(&payload)).unwrap();
    for index in 0..2 {
        offer(&mut driver, index, 1500);
    }
    driver.notify(RECEIVE);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.queues[RECEIVE].poll_used(), None, "too few buffers: none is taken");
    for index in 2..5 {
        offer(&mut driver, index, 1500);
    }
    driver.notify(RECEIVE);
    let mut bytes = Vec::new();
    for index in 0..4 {
        let (_, len) = driver.queues[RECEIVE].wait_used();
        bytes.extend(received(&driver, index, len));
    }
    driver.until("one interrupt for all", |driver| driver.line.is_high());
    assert_eq!(bytes[10..12], [4, 0], "num_buffers");
    assert_eq!(bytes[12..], payload);
    assert_eq!(driver.queues[RECEIVE].poll_used(), None, "the fifth buffer is left");
}

#[test]
fn without_mergeable_buffers_a_frame_that_does_not_fit_is_dropped() {
    let (mut driver, network) = card(0);
    offer(&mut driver, 0, 1526);
    driver.notify(RECEIVE);
    network.socket.send(&frame(&[1; 2000])).unwrap();
    network.socket.send(&frame(&[2; 1000])).unwrap();
    assert_eq!(driver.wait(RECEIVE), (0, 1012));
    assert_eq!(received(&driver, 0, 1012)[12..], [2; 1000]);
}

#[test]
fn control_commands_change_their_settings() {
    let (mut driver, network) = card(CTRL_VQ | CTRL_GUEST_OFFLOADS | GUEST_CSUM | GUEST_TSO4);
    assert_eq!(command(&mut driver, 0, 0, &[0]), 0, "promiscuous off");
    assert_eq!(command(&mut driver, 0, 6, &[0]), 1, "no such mode");
    assert_eq!(command(&mut driver, 0, 0, &[]), 1, "no value");
    let tables = [&[1, 0, 0, 0][..], &[2; 6], &[2, 0, 0, 0], &[1; 12]].concat();
    assert_eq!(command(&mut driver, 1, 0, &tables), 0);
    assert_eq!(command(&mut driver, 1, 0, &tables[..20]), 1, "cut off");
    assert_eq!(command(&mut driver, 1, 0, &[0xff; 8]), 1, "more entries than there can be");
    assert_eq!(command(&mut driver, 1, 1, &[9; 6]), 0, "address");
    assert_eq!(command(&mut driver, 2, 0, &[5, 0]), 0, "VLAN");
    assert_eq!(command(&mut driver, 2, 1, &[0xff, 0x1f]), 1, "VLAN numbers have twelve bits");
    assert_eq!(command(&mut driver, 3, 0, &[]), 1, "nothing to acknowledge");
    assert_eq!(command(&mut driver, 4, 0, &[1, 0]), 1, "not offered");
    assert_eq!(command(&mut driver, 5, 0, &GUEST_CSUM.to_le_bytes()), 0);
    assert_eq!(network.set.lock().unwrap().0, GUEST_CSUM);
    assert_eq!(command(&mut driver, 5, 0, &(1u64 << 8).to_le_bytes()), 1, "not negotiated");
    let mut config = [0; 6];
    driver.device.read(0x100, &mut config);
    assert_eq!(config, [9; 6]);
    driver.write32(0x070, 0);
    driver.device.read(0x100, &mut config);
    assert_eq!(config, MAC, "reset brings the address back");
}

#[test]
fn hostile_buffers_break_the_card_until_reset() {
    let short_header = |driver: &mut Driver<Net<Wire>>| {
        driver.queues[TRANSMIT].offer(&[(BUFFERS, 11, false)]);
        driver.notify(TRANSMIT);
    };
    let no_answer = |driver: &mut Driver<Net<Wire>>| {
        driver.queues[CONTROL].offer(&[(BUFFERS, 2, false)]);
        driver.notify(CONTROL);
    };
    let readable = |driver: &mut Driver<Net<Wire>>| {
        driver.queues[RECEIVE].offer(&[(BUFFERS, 2000, false)]);
        driver.notify(RECEIVE);
    };
    let outside = |driver: &mut Driver<Net<Wire>>| {
        driver.queues[RECEIVE].offer(&[(1 << 40, 2000, true)]);
        driver.notify(RECEIVE);
    };
    for act in [short_header as fn(&mut _), no_answer, readable, outside] {
        let (mut driver, network) = card(MRG_RXBUF | CTRL_VQ);
        network.socket.send(&frame(&[0; 60])).unwrap();
        act(&mut driver);
        driver.until("DEVICE_NEEDS_RESET", |driver| driver.read32(0x070) & 0x40 != 0);
        driver.write32(0x070, 0);
        assert_eq!(driver.read32(0x070), 0);
    }
}

#[test]
fn a_frame_longer_than_any_is_dropped_not_sent() {
    let (mut driver, network) = card(0);
    driver.request(TRANSMIT, &[(BUFFERS, 0x8000, false), (BUFFERS, 0x8000, false), (BUFFERS, 0x8000, false)]);
    send(&mut driver, &frame(b"next"), 100);
    assert_eq!(network.frame(), frame(b"next"));
}

#[test]
fn a_card_goes_on_where_another_stopped_and_announces_itself() {
    let features = MRG_RXBUF | STATUS | CTRL_VQ | GUEST_ANNOUNCE | CTRL_GUEST_OFFLOADS | GUEST_CSUM;
    let (mut driver, _old) = card(features);
    offer(&mut driver, 0, 2048);
    offer(&mut driver, 1, 2048);
    driver.notify(RECEIVE);
    assert_eq!(command(&mut driver, 1, 1, &[2, 0, 0, 0, 0, 7]), 0);
    let (model, network) = net(Offloads::ALL);
    let mut driver = move_to(driver, model);
    assert_eq!(network.set.lock().unwrap().0, GUEST_CSUM, "the new backend does what was agreed on");
    // RFC 903: to all hosts, type 0x8035, operation 3, both hardware addresses the guest's.
    let announcement = network.frame();
    assert_eq!(announcement.len(), 12 + 60);
    let mac = [2, 0, 0, 0, 0, 7];
    assert_eq!(announcement[12..26], [&[0xff; 6][..], &mac, &[0x80, 0x35]].concat());
    assert_eq!(announcement[26..34], [0, 1, 8, 0, 6, 4, 0, 3]);
    assert_eq!((&announcement[34..40], &announcement[44..50]), (&mac[..], &mac[..]));
    assert_eq!(driver.read32(0x060) & 2, 2, "configuration interrupt");
    let mut status = [0; 2];
    driver.device.read(0x106, &mut status);
    assert_eq!(status, [3, 0], "link up, announce");
    driver.write32(0x064, 2);
    assert_eq!(command(&mut driver, 3, 0, &[]), 0, "the guest acknowledges");
    driver.device.read(0x106, &mut status);
    assert_eq!(status, [1, 0]);
    network.socket.send(&frame(&[7; 64])).unwrap();
    assert_eq!(driver.wait(RECEIVE), (0, 76));
    send(&mut driver, &frame(b"out"), 100);
    assert_eq!(network.frame(), frame(b"out"));
}

/// QEMU's `announce-self`: one RARP request in each round (RFC 903), whether or not a driver uses the card, and no more.
#[test]
fn a_card_announces_itself_as_often_as_requested() {
    let (model, network) = net(Offloads::ALL);
    let mut driver = Driver::new(model, memory());
    let ms = Duration::from_millis;
    let with = Announcing { initial: ms(1), max: ms(2), rounds: 3, step: ms(1) };
    driver.device.change(|card, interrupt| card.announce(with, interrupt));
    let request = [&[0xff; 6][..], &MAC, &[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3], &MAC, &[0; 4], &MAC, &[0; 4]].concat();
    for _ in 0..3 {
        let frame = network.frame();
        assert_eq!((frame.len(), &frame[..12], &frame[12..12 + 42]), (12 + 60, &[0; 12][..], &request[..]));
    }
    assert_eq!(driver.device.work(), None, "nothing more is planned");
}

#[test]
fn a_source_that_goes_on_does_not_announce() {
    let (mut driver, network) = card(STATUS | CTRL_VQ | GUEST_ANNOUNCE);
    driver.device.pause(TIMEOUT).unwrap();
    save(&mut driver.device);
    driver.device.resume();
    assert_eq!(driver.read32(0x060) & 2, 0);
    send(&mut driver, &frame(b"first"), 100);
    assert_eq!(network.frame(), frame(b"first"));
}

/// Rings of QEMU's card: address and index of the available and the used ring of each queue.
pub fn rings([receive, transmit, control]: [u16; 3]) -> [(u64, u16); 6] {
    [
        (0x2b4_4000, receive),
        (0x2b4_5000, receive),
        (0x2b4_c000, transmit),
        (0x2b4_d000, transmit),
        (0x2b6_4000, control),
        (0x2b6_5000, control),
    ]
}

#[test]
fn qemus_card_loads_and_saves_byte_for_byte() {
    let indices = [("kvm", [3, 9, 9]), ("tcg", [4, 10, 9])];
    for (accelerator, indices) in indices {
        let section = fixture(&format!("microvm-{accelerator}-virtio-net"));
        assert_eq!(section.len(), 48944);
        let (model, _network) = net(Offloads::default());
        let mut driver = Driver::new(model, guest_of_fixture(&rings(indices)));
        driver.device.pause(TIMEOUT).unwrap();
        load(&mut driver.device, &section).unwrap();
        assert_eq!(driver.device.fault(), None);
        assert_eq!(save(&mut driver.device), section, "{accelerator}");
    }
}

#[test]
fn offloads_that_the_network_here_lacks_are_refused() {
    let (mut driver, _network) = card(GUEST_CSUM | CTRL_VQ | CTRL_GUEST_OFFLOADS);
    driver.device.pause(TIMEOUT).unwrap();
    let bytes = save(&mut driver.device);
    let (poor, _other) = net(Offloads::default());
    let mut poor = Driver::new(poor, driver.memory.clone());
    let before = save(&mut poor.device);
    let error = load(&mut poor.device, &bytes).unwrap_err();
    assert!(error.to_string().contains("offloads 0x2 that the network here does not have"), "{error}");
    assert_eq!(save(&mut poor.device), before);
}

#[test]
fn description_is_one_field_of_qemus_name() {
    let description = minivmm::devices::virtio::mmio::Virtio::<Net<Wire>>::DESCRIPTION;
    assert_eq!((&*description.name, description.version), ("virtio-net", 11));
    assert_eq!(description.fields.len(), 1);
    assert_eq!(&*description.fields[0].name, "virtio");
}

/// A real tap: frames of the guest leave through it, and the host's arrive. Needs root.
#[test]
fn a_tap_carries_frames_both_ways() {
    use minivmm::devices::virtio::net::Tap;
    use std::process::Command;

    let name = format!("vmt{}", std::process::id());
    let tap = match Tap::open(&name) {
        Ok(tap) => tap,
        Err(error) => return vmstate_lab::skip::skip(error),
    };
    assert_eq!(Tap::open(&name).unwrap_err().name, name, "in use");
    assert_ne!(tap.offloads().0 & GUEST_CSUM, 0, "every kernel since 2.6.27 can leave checksums undone");
    // VIRTIO_NET_F_GUEST_USO4, GUEST_USO6 and HOST_USO, virtio 1.2 §5.1.3; all other features are the same.
    let (all, less) = (tap.offloads().features(), tap.try_clone().unwrap().without_uso().offloads().features());
    assert_eq!(less, all & !(7 << 54));
    let up = Command::new("ip").args(["link", "set", &name, "up"]).output();
    if !up.is_ok_and(|output| output.status.success()) {
        return vmstate_lab::skip::skip("ip link set failed");
    }
    let mut driver = Driver::new(Net::new(tap, MAC), memory());
    driver.start(MRG_RXBUF);
    for index in 0..8 {
        offer(&mut driver, index, 2048);
    }
    driver.notify(RECEIVE);
    let counter = || -> u64 {
        let path = format!("/sys/class/net/{name}/statistics/rx_packets");
        std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
    };
    let before = counter();
    let payload = [&[0xff; 6][..], &MAC, &[0x88, 0xb5], &[0; 46]].concat();
    send(&mut driver, &frame(&payload), 100);
    assert_eq!(counter(), before + 1, "the host has received it");
    // The host sends an ARP request for an address in a network that is set on the tap.
    let run = |arguments: &[&str]| assert!(Command::new("ip").args(arguments).status().unwrap().success());
    run(&["address", "add", "203.0.113.1/24", "dev", &name]);
    let socket = std::net::UdpSocket::bind("203.0.113.1:0").unwrap();
    socket.send_to(b"x", "203.0.113.2:9").unwrap();
    let arp = |driver: &mut Driver<Net<Tap>>| loop {
        let (id, len) = driver.queues[RECEIVE].wait_used();
        let mut bytes = vec![0; len as usize];
        driver.memory.read_slice(&mut bytes, GuestAddress(buffer(u64::from(id)))).unwrap();
        if bytes[24..26] == [0x08, 0x06] {
            break bytes;
        }
        // The host sends other frames, too, when a card comes up, and their buffers are offered again.
        offer(driver, u64::from(id), 2048);
        driver.notify(RECEIVE);
    };
    let request = arp(&mut driver);
    assert_eq!(request[12 + 14 + 24..12 + 14 + 28], [203, 0, 113, 2], "who has");
}
