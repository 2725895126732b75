//! virtio-net on a stream socket: what the peer receives and what it may do, with a listener of the test.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use minivmm::bus::BusDevice;
use minivmm::devices::virtio::net::{Backend, Net, Offloads, Stream};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{BUFFERS, Driver, TIMEOUT, memory};
use crate::net::{MAC, MRG_RXBUF, RECEIVE, STATUS, TRANSMIT, buffer, frame, offer, send};
use crate::state::move_to;

/// The listening peer of a card.
pub struct Peer {
    listener: UnixListener,
    path: PathBuf,
    _folder: TempDir,
}

impl Peer {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("network");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { listener, path, _folder: folder }
    }

    /// Accepts the next connection.
    pub fn accept(&self) -> UnixStream {
        let end = Instant::now() + TIMEOUT;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
                    return stream;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            assert!(Instant::now() < end, "waited {TIMEOUT:?} for a connection");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that nobody has connected since.
    pub fn expect_no_connection(&self) {
        assert_eq!(self.listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    fn card(&self) -> (Driver<Net<Stream>>, UnixStream) {
        let stream = Stream::open(&self.path).unwrap();
        let network = self.accept();
        (started(stream), network)
    }
}

fn started(stream: Stream) -> Driver<Net<Stream>> {
    let mut driver = Driver::new(Net::new(stream, MAC), memory());
    driver.start(MRG_RXBUF | STATUS);
    driver
}

/// Frames a payload like QEMU's net/stream.c.
pub fn framed(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_be_bytes()[..], payload].concat()
}

/// Reads the next frame that a card sent.
pub fn sent(network: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    network.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    network.read_exact(&mut frame).unwrap();
    frame
}

/// Bytes of each of the guest's 16 receive buffers: the last one is larger, so that all together hold the longest frame.
fn room(index: u64) -> u32 {
    if index == 15 { 8192 } else { 4096 }
}

/// Returns the next frame for the guest, joined from its buffers, which are offered again.
pub fn received(driver: &mut Driver<Net<Stream>>) -> Vec<u8> {
    let mut frame = Vec::new();
    let mut parts = 1;
    while parts > 0 {
        let (id, len) = driver.queues[RECEIVE].wait_used();
        let mut part = vec![0; len as usize];
        driver.memory.read_slice(&mut part, GuestAddress(buffer(u64::from(id)))).unwrap();
        if frame.is_empty() {
            parts = u16::from_le_bytes([part[10], part[11]]);
            assert_eq!(part[..10], [0; 10], "a finished frame");
        }
        frame.extend(part);
        parts -= 1;
        offer(driver, u64::from(id), room(id.into()));
    }
    driver.notify(RECEIVE);
    frame.split_off(12)
}

pub fn offer_all<B: Backend>(driver: &mut Driver<Net<B>>) {
    (0..16).for_each(|index| offer(driver, index, room(index)));
    driver.notify(RECEIVE);
}

fn link(driver: &mut Driver<Net<Stream>>) -> u16 {
    let mut status = [0; 2];
    driver.device.read(0x106, &mut status);
    u16::from_le_bytes(status)
}

#[test]
fn frames_go_behind_their_length_both_ways_however_they_are_cut() {
    let peer = Peer::new();
    let (mut driver, mut network) = peer.card();
    offer_all(&mut driver);
    for len in [14, 60, 1514, 9000, 40_000_usize] {
        let payload: Vec<u8> = (0..len).map(|at| at as u8).collect();
        send(&mut driver, &frame(&payload), (len + 12).div_ceil(15).max(100));
        assert_eq!(sent(&mut network), payload);
    }
    // Byte by byte, many at once, and the longest one: 64 KiB of IP after Ethernet with a VLAN tag.
    for byte in framed(&[1; 60]) {
        network.write_all(&[byte]).unwrap();
        thread::yield_now();
    }
    assert_eq!(received(&mut driver), [1; 60]);
    let many: Vec<u8> = (0..100).flat_map(|number| framed(&[number; 200])).collect();
    network.write_all(&many).unwrap();
    (0..100).for_each(|number| assert_eq!(received(&mut driver), [number; 200]));
    let longest: Vec<u8> = (0..18 + 65_536_u32).map(|at| (at * 7) as u8).collect();
    let (expected, mut writer) = (longest.clone(), network.try_clone().unwrap());
    let writing = thread::spawn(move || writer.write_all(&framed(&longest)).unwrap());
    assert!(received(&mut driver) == expected, "the longest frame");
    writing.join().unwrap();
}

pub const LEN: usize = 40_000;

/// Sends frames of [`LEN`] bytes, each filled with its number, until the card takes no more; returns how many it took.
pub fn fill(driver: &mut Driver<Net<Stream>>) -> u16 {
    let (mut given, mut waits) = (0_u16, 0);
    while waits < 20 {
        assert!(given < 1000, "40 MB are more than any socket keeps");
        driver.memory.write_slice(&frame(&[given as u8; LEN]), GuestAddress(BUFFERS)).unwrap();
        driver.queues[TRANSMIT].offer(&[(BUFFERS, 12 + LEN as u32, false)]);
        driver.notify(TRANSMIT);
        given += 1;
        waits = 0;
        while driver.queues[TRANSMIT].poll_used().is_none() && waits < 20 {
            thread::sleep(Duration::from_millis(10));
            waits += 1;
        }
    }
    given
}

/// Frames that the peer does not read at once are not lost: they wait in the guest's queue, as in QEMU.
#[test]
fn frames_wait_while_the_other_end_takes_none() {
    let peer = Peer::new();
    let (mut driver, mut network) = peer.card();
    let given = fill(&mut driver);
    for number in 0..given {
        assert!(sent(&mut network) == [number as u8; LEN], "frame {number} of {given}");
    }
    driver.queues[TRANSMIT].wait_used();
}

/// A migration's pause waits for the card, but not for a peer that reads nothing and sends without end. The frame that waits in
/// the guest's queue is sent at the destination.
#[test]
fn a_card_stops_whatever_the_other_end_does() {
    let (busy, peer) = (Peer::new(), Peer::new());
    let stream = Stream::open(&busy.path).unwrap();
    let mut network = busy.accept();
    let mut driver = Driver::new(Net::new(stream, MAC), memory());
    // Without mergeable buffers none has room for such a frame: each frame is dropped, so that the guest's buffers never run
    // out.
    driver.start(STATUS);
    offer_all(&mut driver);
    let talking = thread::spawn(move || {
        let mut frames = 0_u64;
        while network.write_all(&framed(&[1; 9000])).is_ok() {
            frames += 1;
        }
        frames
    });
    let waiting = fill(&mut driver) - 1;
    let stream = Stream::open(&peer.path).unwrap();
    let mut network = peer.accept();
    let _driver = move_to(driver, Net::new(stream, MAC));
    assert_eq!(sent(&mut network)[..14], [&[0xff; 6][..], &MAC, &[0x80, 0x35]].concat(), "an announcement");
    assert!(sent(&mut network) == [waiting as u8; LEN], "frame {waiting}");
    assert!(talking.join().unwrap() > 1000, "the other end was heard");
}

/// With a broken or hostile peer the guest's link goes down, the guest runs on, and the next connection restores the link.
#[test]
fn what_is_no_frame_ends_the_connection_and_not_the_card() {
    let peer = Peer::new();
    let (mut driver, mut network) = peer.card();
    offer_all(&mut driver);
    assert_eq!(link(&mut driver), 1);
    let too_long = 18 + 65_536 + 1;
    for what in [Some(13_u32), Some(too_long), None] {
        driver.write32(0x064, 3);
        match what {
            Some(length) => network.write_all(&[&length.to_be_bytes()[..], &[0; 20]].concat()).unwrap(),
            // The peer closes in the middle of a frame.
            None => network.write_all(&framed(&[0; 100])[..50]).unwrap(),
        }
        if what.is_none() {
            drop(network);
        }
        driver.until("link down", |driver| link(driver) == 0);
        driver.until("a configuration interrupt", |driver| driver.read32(0x060) & 2 != 0);
        // The frame is dropped, since there is no connection.
        send(&mut driver, &frame(&[9; 60]), 100);
        network = peer.accept();
        driver.until("link up", |driver| link(driver) == 1);
        network.write_all(&framed(&[4; 60])).unwrap();
        assert_eq!(received(&mut driver), [4; 60], "{what:?}");
        send(&mut driver, &frame(&[5; 60]), 100);
        assert_eq!(sent(&mut network), [5; 60], "{what:?}");
    }
}

/// A reset makes a new card, which continues with the same connection, also in the middle of a frame.
#[test]
fn a_new_card_goes_on_with_the_connection() {
    let peer = Peer::new();
    let stream = Stream::open(&peer.path).unwrap();
    let mut network = peer.accept();
    let mut driver = started(stream.clone());
    offer_all(&mut driver);
    network.write_all(&[framed(&[1; 60]), framed(&[2; 60])[..30].to_vec()].concat()).unwrap();
    assert_eq!(received(&mut driver), [1; 60]);
    drop(driver);
    let mut driver = started(stream);
    offer_all(&mut driver);
    network.write_all(&framed(&[2; 60])[30..]).unwrap();
    assert_eq!(received(&mut driver), [2; 60]);
}

/// The guest comes from a card with a tap's features whose network is gone. Here it has one, and is announced there (RFC 903)
/// before it sends anything.
#[test]
fn a_guest_that_arrives_has_the_link_that_is_here() {
    let (lost, peer) = (Peer::new(), Peer::new());
    let (mut driver, network) = lost.card();
    offer_all(&mut driver);
    drop(network);
    driver.until("link down", |driver| link(driver) == 0);
    let stream = Stream::open(&peer.path).unwrap();
    let mut network = peer.accept();
    let mut driver = move_to(driver, Net::new(stream, MAC));
    let announcement = sent(&mut network);
    assert_eq!(announcement[..14], [&[0xff; 6][..], &MAC, &[0x80, 0x35]].concat());
    driver.until("link up", |driver| link(driver) == 1);
    network.write_all(&framed(&[7; 60])).unwrap();
    assert_eq!(received(&mut driver), [7; 60]);
}

/// The features are those of a tap of a new kernel (`a_tap_carries_frames_both_ways`), so that a guest can migrate from and to
/// a tap.
#[test]
fn the_guest_is_offered_what_a_tap_offers() {
    let peer = Peer::new();
    let stream = Stream::open(&peer.path).unwrap();
    assert_eq!(stream.offloads(), Offloads::ALL);
    let less = stream.without_uso().offloads().features();
    assert_eq!(less, Offloads::ALL.features() & !(7 << 54));
}

#[test]
fn a_socket_without_listener_is_refused_with_a_remedy() {
    let error = Stream::open("/nowhere/at/all".as_ref()).unwrap_err();
    let expected = "cannot use stream socket /nowhere/at/all: No such file or directory (os error 2); start the network first: passt \
                    --socket /nowhere/at/all";
    assert_eq!(error.to_string(), expected);
}

/// Ones' complement sum (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let pairs = bytes.chunks(2).map(|pair| u32::from(pair[0]) * 256 + pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = pairs.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum over everything, with a correct checksum, is all ones.
fn adds_up(parts: &[&[u8]]) -> bool {
    sum(&parts.concat()) == 0xffff
}

fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) * 256 + usize::from(bytes[at + 1])
}

/// Ethernet header, then IPv4 or IPv6 with lengths for `transport`, which follows.
fn packet(v6: bool, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let length = transport.len() as u16;
    let ethernet = |kind: [u8; 2]| [&[2; 6][..], &MAC, &kind].concat();
    let ip = if v6 {
        [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[protocol, 64], &[0xfd; 16], &[0xfc; 16]].concat()
    } else {
        let total = (length + 20).to_be_bytes();
        let mut ip =
            [&[0x45, 0][..], &total, &[0xff, 0xff, 0, 0, 64, protocol, 0, 0], &[10, 0, 0, 2], &[10, 0, 0, 1]].concat();
        let checksum = !sum(&ip);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        ip
    };
    [ethernet(if v6 { [0x86, 0xdd] } else { [8, 0] }), ip, transport.to_vec()].concat()
}

/// Makes the virtio header of a frame with offloads, and the frame with the pseudo header's sum in its checksum field.
pub fn unfinished(kind: u8, segment: u16, v6: bool, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut packet = packet(v6, protocol, transport);
    let start = packet.len() - transport.len();
    let offset: u16 = if protocol == 6 { 16 } else { 6 };
    let addresses = if v6 { 22..54 } else { 26..34 };
    let length = (transport.len() as u32).to_be_bytes();
    let pseudo = [&packet[addresses], &length, &[0, 0, 0, protocol]].concat();
    let at = start + usize::from(offset);
    packet[at..at + 2].copy_from_slice(&sum(&pseudo).to_be_bytes());
    let [segment, start, offset] = [segment, start as u16, offset].map(u16::to_le_bytes);
    [&[1, kind, 0, 0][..], &segment, &start, &offset, &[0, 0], &packet].concat()
}

/// Returns the transport part, after checking lengths and checksums of both layers.
fn checked(frame: &[u8], v6: bool, protocol: u8) -> Vec<u8> {
    let (addresses, start) = if v6 { (22..54, 54) } else { (26..34, 34) };
    if v6 {
        assert_eq!(be16(frame, 18), frame.len() - 54);
    } else {
        assert_eq!(be16(frame, 16), frame.len() - 14);
        assert!(adds_up(&[&frame[14..34]]), "IPv4's header");
    }
    let transport = &frame[start..];
    let length = (transport.len() as u32).to_be_bytes();
    assert!(adds_up(&[&frame[addresses], &length, &[0, 0, 0, protocol], transport]), "checksum of {protocol}");
    if protocol == 17 {
        assert_eq!(be16(transport, 4), transport.len());
    }
    transport.to_vec()
}

const NONE: u8 = 0;
const TCPV4: u8 = 1;
const UFO: u8 = 3;
const TCPV6: u8 = 4;
const USO: u8 = 5;
const ECN: u8 = 0x80;

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

/// virtio 1.2 §5.1.6.2: the guest leaves the checksum and the segmentation of a long packet to the device.
#[test]
fn what_the_guest_leaves_undone_is_done() {
    let peer = Peer::new();
    let (mut driver, mut network) = peer.card();
    let udp = |len: usize| [&[4, 0, 0, 53][..], &((len + 8) as u16).to_be_bytes(), &[0, 0], &payload(len)].concat();
    // CWR, ACK, PSH, FIN; sequence number just before it wraps; an option of 12 bytes.
    let head = [&[4, 0, 0, 80, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 0x80, 0x99, 1, 0, 0, 0, 0, 0][..], &[1; 12]].concat();
    for v6 in [false, true] {
        for len in [1, 999, 1000] {
            send(&mut driver, &unfinished(NONE, 0, v6, 17, &udp(len)), 400);
            assert_eq!(checked(&sent(&mut network), v6, 17)[8..], payload(len));
        }
        send(&mut driver, &unfinished(USO, 1200, v6, 17, &udp(3000)), 400);
        let parts: Vec<_> = (0..3).map(|_| checked(&sent(&mut network), v6, 17)[8..].to_vec()).collect();
        assert_eq!(parts.concat(), payload(3000));
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [1200, 1200, 600]);

        let kind = if v6 { TCPV6 } else { TCPV4 } | ECN;
        send(&mut driver, &unfinished(kind, 1448, v6, 6, &[&head[..], &payload(50_001)].concat()), 4000);
        let mut whole = Vec::<u8>::new();
        for number in 0..35_u32 {
            let frame = sent(&mut network);
            let transport = checked(&frame, v6, 6);
            let sequence = 0xffff_ff00_u32.wrapping_add(number * 1448);
            assert_eq!(transport[4..8], sequence.to_be_bytes());
            let flags = 0x10 | if number == 0 { 0x80 } else { 0 } | if number == 34 { 0x09 } else { 0 };
            assert_eq!((transport[13], &transport[20..32]), (flags, &[1; 12][..]), "segment {number}");
            if !v6 {
                assert_eq!(be16(&frame, 18), (0xffff + number as usize) & 0xffff, "IPv4's number");
            }
            whole.extend(&transport[32..]);
        }
        assert_eq!(whole, payload(50_001));
        fragments(&mut driver, &mut network, v6, &udp(4000));
    }
}

/// RFC 791 and RFC 8200 §4.5: one datagram with one checksum, over several packets.
fn fragments(driver: &mut Driver<Net<Stream>>, network: &mut UnixStream, v6: bool, datagram: &[u8]) {
    send(driver, &unfinished(UFO, 1450, v6, 17, datagram), 400);
    let mut whole = Vec::new();
    let mut more = true;
    while more {
        let frame = sent(network);
        let (position, data) = if v6 {
            assert_eq!((be16(&frame, 18), frame[20], frame[54]), (frame.len() - 54, 44, 17));
            (be16(&frame, 56), &frame[62..])
        } else {
            assert_eq!(be16(&frame, 16), frame.len() - 14);
            assert!(adds_up(&[&frame[14..34]]), "IPv4's header");
            (be16(&frame, 20), &frame[34..])
        };
        let (offset, last) = if v6 { (position & !7, 1) } else { ((position & 0x1fff) * 8, 0x2000) };
        assert_eq!(offset, whole.len());
        more = position & last != 0;
        assert!(!more || data.len() == 1448, "a multiple of eight");
        whole.extend(data);
    }
    let addresses = if v6 { 22..54 } else { 26..34 };
    let whole_packet = packet(v6, 17, &whole);
    let pseudo = [&whole_packet[addresses], &(whole.len() as u32).to_be_bytes(), &[0, 0, 0, 17]].concat();
    assert!(adds_up(&[&pseudo, &whole]));
    assert_eq!(whole[8..], payload(4000));
}

/// A guest says where the transport header of an IPv6 packet begins, and all in front of it is in each segment.
#[test]
fn a_frame_whose_headers_are_longer_than_a_kilobyte_is_dropped() {
    let peer = Peer::new();
    let (mut driver, mut network) = peer.card();
    for (start, is_sent) in [(1024_u16, true), (1025, false)] {
        let mut bytes = unfinished(TCPV6, 500, true, 6, &[0; 3000]);
        bytes[6..8].copy_from_slice(&start.to_le_bytes());
        // The length of TCP's header.
        bytes[12 + usize::from(start) + 12] = 0x50;
        send(&mut driver, &bytes, 4000);
        send(&mut driver, &frame(b"the last frame"), 100);
        let mut frames = 0;
        while sent(&mut network) != b"the last frame" {
            frames += 1;
        }
        assert_eq!(frames > 1, is_sent, "{frames} segments of a frame whose transport header begins at {start}");
    }
}

/// Malformed frames are dropped, and the next frame is sent: truncated at every byte, and with every number at its maximum.
#[test]
fn unfinished_frames_that_make_no_sense_are_dropped() {
    let peer = Peer::new();
    let (mut driver, mut network) = peer.card();
    let good = unfinished(TCPV4, 500, false, 6, &[&[0; 12][..], &[0x50; 8], &payload(1200)].concat());
    let mut wrong: Vec<Vec<u8>> = (12..66).map(|len| good[..len].to_vec()).collect();
    for at in [1, 4, 6, 8, 12 + 12, 12 + 14, 12 + 14 + 20 + 12] {
        for value in [0, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes[at + 1] = value;
            wrong.push(bytes);
        }
    }
    for bytes in wrong {
        send(&mut driver, &bytes, 4000);
    }
    send(&mut driver, &frame(b"the last frame"), 100);
    while sent(&mut network) != b"the last frame" {}
    assert_eq!(driver.read32(0x070) & 0x40, 0, "the card needs no reset");
}
