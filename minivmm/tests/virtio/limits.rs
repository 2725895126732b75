//! Rate limits of disk and card, with a clock that only the test advances.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use minivmm::config::{Rate, RateLimits};
use minivmm::devices::Device;
use minivmm::devices::virtio::blk::{Blk, Image};
use minivmm::devices::virtio::net::{Directions, Net, Offloads};
use minivmm::devices::virtio::{Limiter, Model};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{BUFFERS, Driver, EVENT_IDX, TIMEOUT, memory};
use crate::net::{MRG_RXBUF, Network, RECEIVE, TRANSMIT, Wire, frame, net};
use crate::state::{move_to, save};
use crate::threads::{await_end, processor_time};

const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;

/// Milliseconds since the start.
#[derive(Clone, Default)]
struct Clock(Arc<Mutex<u64>>);

impl Clock {
    fn limiter(&self, limits: RateLimits) -> Limiter {
        let (start, time) = (Instant::now(), self.0.clone());
        Limiter::with_clock(limits, Box::new(move || start + Duration::from_millis(*time.lock().unwrap())))
    }

    /// Advances the clock, and lets the device check its limits.
    fn advance<M: Model>(&self, milliseconds: u64, driver: &mut Driver<M>, queue: usize) {
        *self.0.lock().unwrap() += milliseconds;
        driver.notify(queue);
    }
}

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    Some(Rate { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
}

fn blk(file: &NamedTempFile) -> Blk {
    Blk::new(Arc::new(Image::open(file.path(), false).unwrap()))
}

/// Makes a disk of 1 MiB with `limits`.
fn disk(limits: RateLimits) -> (Driver<Blk>, NamedTempFile, Clock) {
    named_disk("virtio", limits)
}

/// Makes such a disk whose thread has this name.
fn named_disk(name: &str, limits: RateLimits) -> (Driver<Blk>, NamedTempFile, Clock) {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let clock = Clock::default();
    let mut driver = Driver::named(name, blk(&file).within(clock.limiter(limits)), memory());
    // With VIRTIO_BLK_F_FLUSH no flush, which would wait for a token, too, follows a write.
    driver.start(EVENT_IDX | 1 << 9);
    (driver, file, clock)
}

/// Offers one request of this kind at sector 0.
fn offer(driver: &mut Driver<Blk>, kind: u8, len: u32) {
    driver.memory.write_slice(&[kind, 0, 0, 0], GuestAddress(BUFFERS)).unwrap();
    driver.queues[0].offer(&[(BUFFERS, 16, false), (DATA, len, kind == 0), (STATUS, 1, true)]);
    driver.notify(0);
}

/// Waits until `used` chains were used, and checks that no more are used while the clock stands.
fn rests_at<M: Model>(driver: &mut Driver<M>, queue: usize, used: u16) {
    driver.until("what is allowed", |driver| driver.queues[queue].used_index() == used);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(driver.queues[queue].used_index(), used);
}

#[test]
fn a_disk_carries_out_so_many_requests() {
    let (mut driver, _file, clock) = disk(RateLimits { operations: rate(10, 3), bytes: None });
    for _ in 0..5 {
        offer(&mut driver, 0, 512);
    }
    rests_at(&mut driver, 0, 3);
    clock.advance(99, &mut driver, 0);
    rests_at(&mut driver, 0, 3);
    clock.advance(1, &mut driver, 0);
    rests_at(&mut driver, 0, 4);
    clock.advance(100, &mut driver, 0);
    rests_at(&mut driver, 0, 5);
}

/// A large request is carried out at the rate, instead of at once and charged later.
#[test]
fn a_disk_moves_so_many_bytes_and_rests_inside_of_a_request() {
    let (mut driver, file, clock) = disk(RateLimits { bytes: rate(256 << 10, 256 << 10), operations: None });
    driver.memory.write_slice(&vec![7; 1 << 20], GuestAddress(DATA)).unwrap();
    offer(&mut driver, 1, 1 << 20);
    let written = || std::fs::read(file.path()).unwrap().iter().filter(|byte| **byte == 7).count();
    for quarter in 1..=3 {
        driver.until("a quarter", |_| written() == quarter << 18);
        rests_at(&mut driver, 0, 0);
        assert_eq!(written(), quarter << 18);
        clock.advance(1001, &mut driver, 0);
    }
    rests_at(&mut driver, 0, 1);
    assert_eq!(driver.memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), 0);
}

/// Offers a discard (11) or write-zeroes (13) request for `sectors` from the first one on (virtio 1.2 §5.2.6).
fn offer_erase(driver: &mut Driver<Blk>, kind: u8, sectors: u32) {
    driver.memory.write_slice(&[kind, 0, 0, 0], GuestAddress(BUFFERS)).unwrap();
    driver.memory.write_obj(u64::from(sectors), GuestAddress(DATA + 8)).unwrap();
    driver.queues[0].offer(&[(BUFFERS, 16, false), (DATA, 16, false), (STATUS, 1, true)]);
    driver.notify(0);
}

/// No data is moved, but the host's file system works: a request counts with its length, and with 256 KiB at most.
#[test]
fn what_a_disk_gives_back_or_zeroes_counts_against_its_bytes() {
    for kind in [11, 13] {
        let (mut driver, _file, clock) = disk(RateLimits { bytes: rate(256 << 10, 256 << 10), operations: None });
        for _ in 0..3 {
            offer_erase(&mut driver, kind, 2048);
        }
        rests_at(&mut driver, 0, 1);
        clock.advance(1001, &mut driver, 0);
        rests_at(&mut driver, 0, 2);
        let (mut driver, _file, clock) = disk(RateLimits { bytes: rate(1024, 1024), operations: None });
        for _ in 0..4 {
            offer_erase(&mut driver, kind, 1);
        }
        rests_at(&mut driver, 0, 2);
        clock.advance(500, &mut driver, 0);
        rests_at(&mut driver, 0, 3);
    }
}

/// A pause does not wait for tokens; in the stream an interrupted request has not begun, and kicks are enabled; the destination
/// carries it out again, with buckets of its own.
#[test]
fn a_disk_that_rests_is_paused_and_moved_at_once() {
    let (mut driver, file, _clock) = disk(RateLimits { bytes: rate(256 << 10, 256 << 10), operations: None });
    driver.memory.write_slice(&vec![7; 1 << 20], GuestAddress(DATA)).unwrap();
    offer(&mut driver, 1, 1 << 20);
    driver.until("a quarter", |_| std::fs::read(file.path()).unwrap()[(256 << 10) - 1] == 7);
    // The clock stands, so no token is ever added.
    driver.device.pause(TIMEOUT).unwrap();
    assert_eq!(save(&mut driver.device)[24 + 57 + 4 + 16..][..2], [0, 0], "next available");
    let mut driver = move_to(driver, blk(&file));
    driver.wait(0);
    assert_eq!(std::fs::read(file.path()).unwrap(), [7; 1 << 20]);
}

/// The clock stands: a thread that waited for tokens would never end.
#[test]
fn a_device_that_rests_ends() {
    let name = "rests-and-ends";
    let (mut driver, _file, _clock) = named_disk(name, RateLimits { bytes: rate(1, 1), operations: None });
    offer(&mut driver, 0, 1 << 20);
    std::thread::sleep(Duration::from_millis(20));
    assert_ne!(processor_time(name), Duration::ZERO, "it has run");
    drop(driver.device);
    await_end(name);
}

/// With the real clock: a device that waits for tokens continues without a kick.
#[test]
fn a_device_that_rests_goes_on_by_itself() {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let limits = RateLimits { operations: rate(20, 1), bytes: None };
    let mut driver = Driver::new(blk(&file).within(Limiter::new(limits)), memory());
    driver.start(EVENT_IDX);
    let start = Instant::now();
    for _ in 0..5 {
        offer(&mut driver, 0, 512);
    }
    driver.until("all five", |driver| driver.queues[0].used_index() == 5);
    assert!(start.elapsed() >= Duration::from_millis(200), "took {:?}", start.elapsed());
}

fn card(receive: RateLimits, transmit: RateLimits) -> (Driver<Net<Wire>>, Network, Clock) {
    let (model, network) = net(Offloads::ALL);
    let clock = Clock::default();
    let limits = Directions { receive: clock.limiter(receive), transmit: clock.limiter(transmit) };
    let mut driver = Driver::new(model.within(limits), memory());
    driver.start(EVENT_IDX | MRG_RXBUF);
    (driver, network, clock)
}

#[test]
fn a_card_sends_so_many_frames_and_receives_as_before() {
    let (mut driver, network, clock) = card(RateLimits::default(), RateLimits { operations: rate(10, 2), bytes: None });
    for _ in 0..4 {
        driver.queues[TRANSMIT].offer(&[(DATA, 100, false)]);
    }
    driver.notify(TRANSMIT);
    rests_at(&mut driver, TRANSMIT, 2);
    driver.queues[RECEIVE].offer(&[(DATA, 2000, true)]);
    network.socket.send(&frame(&[1; 100])).unwrap();
    driver.until("a frame", |driver| driver.queues[RECEIVE].used_index() == 1);
    clock.advance(100, &mut driver, TRANSMIT);
    rests_at(&mut driver, TRANSMIT, 3);
    clock.advance(100, &mut driver, TRANSMIT);
    rests_at(&mut driver, TRANSMIT, 4);
}

#[test]
fn a_card_receives_so_many_bytes_and_sends_as_before() {
    // With frames of 1000 bytes, the third one puts the bucket into debt.
    let (mut driver, network, clock) =
        card(RateLimits { bytes: rate(1000, 2500), operations: None }, RateLimits::default());
    for _ in 0..6 {
        driver.queues[RECEIVE].offer(&[(DATA, 2000, true)]);
        network.socket.send(&frame(&[1; 988])).unwrap();
    }
    driver.notify(RECEIVE);
    rests_at(&mut driver, RECEIVE, 3);
    driver.request(TRANSMIT, &[(DATA, 100, false)]);
    network.frame();
    clock.advance(501, &mut driver, RECEIVE);
    rests_at(&mut driver, RECEIVE, 4);
    clock.advance(1000, &mut driver, RECEIVE);
    rests_at(&mut driver, RECEIVE, 5);
}
