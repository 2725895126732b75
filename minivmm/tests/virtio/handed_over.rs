//! A card on a stream that is handed over to another process of its host: every frame arrives once and in order, whatever was
//! under way. The oracles are the numbers that peer and driver put into their frames.

use std::io::Write;
use std::os::unix::net::UnixStream;

use minivmm::devices::Device;
use minivmm::devices::virtio::net::{Net, Stream};

use crate::driver::{Driver, TIMEOUT, memory};
use crate::net::{MAC, MRG_RXBUF, STATUS};
use crate::state::{load, save};
use crate::stream::{LEN, Peer, fill, framed, offer_all, received, sent};

/// Frames for the guest, numbered from 100 on.
const FRAMES: std::ops::Range<u8> = 100..120;

/// A card with frames under way in both directions: the peer has read none of the frames that the guest sends, and the guest has
/// offered no buffer for those of the peer, the last of which has arrived by half.
struct Busy {
    peer: Peer,
    network: UnixStream,
    stream: Stream,
    driver: Driver<Net<Stream>>,
    /// Frames that the guest has sent.
    given: u16,
}

impl Busy {
    fn new() -> Self {
        let peer = Peer::new();
        let stream = Stream::open(peer.path()).unwrap();
        let mut network = peer.accept();
        let mut driver = Driver::new(Net::new(stream.clone(), MAC), memory());
        driver.start(MRG_RXBUF | STATUS);
        let given = fill(&mut driver);
        let frames: Vec<u8> = FRAMES.flat_map(|number| framed(&[number; 200])).collect();
        network.write_all(&frames[..frames.len() - 100]).unwrap();
        // All but the first frame, which waits for a buffer.
        let read = frames.len() - 100 - framed(&[0; 200]).len();
        driver.until("frames read", |driver| {
            let in_transit = driver.device.change(|card, _| card.in_transit());
            in_transit.received.len() == read && in_transit.waiting.len() == 12 + 200
        });
        Self { peer, network, stream, driver, given }
    }

    /// Checks that the rest arrives in `driver`, the guest of the card, and at the peer.
    fn check(mut self, mut driver: Driver<Net<Stream>>) {
        self.network.write_all(&[FRAMES.end - 1; 100]).unwrap();
        offer_all(&mut driver);
        for number in FRAMES {
            assert_eq!(received(&mut driver), [number; 200], "to the guest");
        }
        let announcement = |frame: &[u8]| frame.len() < LEN && frame[12..14] == [0x80, 0x35];
        for number in 0..self.given {
            let mut frame = sent(&mut self.network);
            while announcement(&frame) {
                frame = sent(&mut self.network);
            }
            assert!(frame == [number as u8; LEN], "frame {number} of {}", self.given);
        }
        self.peer.expect_no_connection();
    }
}

/// Hands the card over to `stream`, another process's, which has the same socket.
fn hand_over(from: &mut Driver<Net<Stream>>, stream: Stream) -> Driver<Net<Stream>> {
    from.device.pause(TIMEOUT).unwrap();
    let bytes = save(&mut from.device);
    let in_transit = from.device.change(|card, _| card.in_transit());
    let mut to = Driver::new(Net::new(stream, MAC), from.memory.clone());
    load(&mut to.device, &bytes).unwrap();
    to.device.loaded();
    to.device.change(|card, _| card.take_over(in_transit));
    to
}

#[test]
fn frames_under_way_arrive_once_and_in_order_in_the_other_process() {
    let mut busy = Busy::new();
    let socket = busy.stream.descriptor().unwrap().unwrap();
    let stream = Stream::continuing(busy.peer.path(), socket).unwrap();
    let mut to = hand_over(&mut busy.driver, stream);
    std::mem::swap(&mut to.queues, &mut busy.driver.queues);
    minivmm::irq::IrqLine::set(&*to.line, false);
    to.device.resume();
    busy.check(to);
}

/// The other process fails after it has loaded the card.
#[test]
fn frames_under_way_arrive_once_and_in_order_where_they_were() {
    let mut busy = Busy::new();
    let socket = busy.stream.descriptor().unwrap().unwrap();
    let stream = Stream::continuing(busy.peer.path(), socket).unwrap();
    drop(hand_over(&mut busy.driver, stream));
    busy.driver.device.resume();
    let other = Driver::new(Net::new(busy.stream.clone(), MAC), memory());
    let driver = std::mem::replace(&mut busy.driver, other);
    busy.check(driver);
}

/// The source has lost the connection that it handed over, and has another one. Only a whole frame goes along.
#[test]
fn a_connection_that_the_source_has_lost_is_made_anew() {
    let mut busy = Busy::new();
    let socket = busy.stream.descriptor().unwrap().unwrap();
    busy.network.shutdown(std::net::Shutdown::Both).unwrap();
    let _source = busy.peer.accept();
    let stream = Stream::continuing(busy.peer.path(), socket).unwrap();
    let mut to = hand_over(&mut busy.driver, stream);
    to.device.resume();
    let mut network = busy.peer.accept();
    offer_all(&mut to);
    network.write_all(&framed(&[7; 60])).unwrap();
    assert_eq!(received(&mut to), [FRAMES.start; 200]);
    assert_eq!(received(&mut to), [7; 60]);
}
