//! A large request delays neither a vCPU that reads the configuration, nor a pause, nor the end of the device.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use minivmm::bus::BusDevice;
use minivmm::devices::Device;
use minivmm::devices::virtio::blk::{Blk, Image};
use minivmm::devices::virtio::net::{Backend, Net, Offloads};
use minivmm::memory::GuestMemory;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{BUFFERS, Buffer, Driver, EVENT_IDX, TIMEOUT, memory};
use crate::net::TRANSMIT;
use crate::state::{move_to, save};
use crate::threads::await_end;

/// Bytes of each buffer; all are at one address.
const PIECE: u32 = 64 << 20;
const PLACE: u64 = 48 << 20;
const STATUS: u64 = BUFFERS + 0x100;
/// Makes a sparse disk of 4 GiB, whose thread has this name.
fn large_disk(name: &str) -> (Driver<Blk>, NamedTempFile) {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 30).unwrap();
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 128 << 20)]).unwrap();
    (Driver::named(name, blk(&file), memory), file)
}

fn blk(file: &NamedTempFile) -> Blk {
    Blk::new(Arc::new(Image::open(file.path(), false).unwrap()))
}

/// Number of buffers of nearly 4 GiB together, the most in a descriptor chain.
const LARGEST: usize = 63;
/// Numbers of buffers of some hundred MiB, where the test waits for the end; and larger ones, for a host that reads those
/// before the test has done its part.
const LARGE: [usize; 3] = [6, 20, LARGEST];

/// Makes a disk on which a read into `buffers` buffers has begun.
fn busy_disk(buffers: usize) -> (Driver<Blk>, NamedTempFile) {
    named_busy_disk("virtio", buffers)
}

fn named_busy_disk(name: &str, buffers: usize) -> (Driver<Blk>, NamedTempFile) {
    let (mut driver, file) = large_disk(name);
    driver.queues[0].size = 128;
    driver.start(EVENT_IDX);
    driver.memory.write_obj(0xffu8, GuestAddress(PLACE)).unwrap();
    read(&mut driver, buffers);
    driver.until("the first piece", |driver| driver.memory.read_obj::<u8>(GuestAddress(PLACE)).unwrap() == 0);
    (driver, file)
}

/// Requests `count` buffers of [`PIECE`] bytes from the beginning of the disk.
fn read(driver: &mut Driver<Blk>, count: usize) {
    driver.memory.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
    let mut buffers: Vec<Buffer> = vec![(PLACE, PIECE, true); count];
    buffers.insert(0, (BUFFERS, 16, false));
    buffers.push((STATUS, 1, true));
    driver.queues[0].offer(&buffers);
    driver.notify(0);
}

/// Runs `act`, which must not wait for the current request.
fn soon<R>(driver: &mut Driver<Blk>, act: impl FnOnce(&mut Driver<Blk>) -> R) -> R {
    let result = act(driver);
    assert_eq!(driver.queues[0].used_index(), 0, "the request is still in hand, or this test shows nothing");
    result
}

#[test]
fn a_configuration_read_waits_for_no_request() {
    let (mut driver, _file) = busy_disk(LARGEST);
    let mut capacity = [0; 8];
    for _ in 0..1000 {
        soon(&mut driver, |driver| driver.device.read(0x100, &mut capacity));
        assert_eq!(u64::from_le_bytes(capacity), 4 << 30 >> 9);
    }
}

#[test]
fn a_configuration_write_and_a_reset_wait_for_a_piece_of_a_request() {
    let (mut driver, _file) = busy_disk(LARGEST);
    let mut byte = [9];
    soon(&mut driver, |driver| driver.device.write(0x120, &[0]));
    soon(&mut driver, |driver| driver.device.read(0x120, &mut byte));
    assert_eq!(byte, [0], "write-through");
    soon(&mut driver, |driver| driver.write32(0x070, 0));
    driver.queues[0].forget();
    driver.start(0);
    read(&mut driver, 0);
    assert_eq!(driver.wait(0), (0, 1), "nothing is left of the old request");
    assert_eq!(driver.memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), 0);
}

#[test]
fn a_pause_waits_for_a_piece_of_a_request() {
    let pauses = |buffers| {
        let (mut driver, _file) = busy_disk(buffers);
        for _ in 0..10 {
            driver.device.pause(TIMEOUT).unwrap();
            let in_hand = driver.queues[0].used_index() == 0;
            driver.device.resume();
            if !in_hand {
                return false;
            }
        }
        let (_, written) = driver.wait(0);
        assert_eq!(written, buffers as u32 * PIECE + 1, "the request goes on where it was");
        assert_eq!(driver.memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), 0);
        true
    };
    assert!(LARGE.into_iter().any(pauses), "each request was over before the tenth pause");
}

#[test]
fn the_end_of_a_device_waits_for_a_piece_of_a_request() {
    let name = "reads-and-ends";
    let (driver, _file) = named_busy_disk(name, LARGEST);
    drop(driver.device);
    await_end(name);
    assert_eq!(driver.queues[0].used_index(), 0, "the request was finished first");
}

/// A host that does not answer before the test's end, like a network file system whose server is gone.
struct Hanging {
    socket: std::os::unix::net::UnixDatagram,
    asked: Sender<()>,
    answers: Receiver<()>,
}

impl Backend for Hanging {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
    fn receive(&self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
    fn send(&self, _: &[u8]) -> io::Result<()> {
        self.asked.send(()).unwrap();
        let _ = self.answers.recv();
        Ok(())
    }
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }
    fn set_offloads(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }
}

/// The end takes half a second at most; the test's bound is longer, for a busy host.
#[test]
fn the_end_of_a_device_is_not_held_up_by_a_host_that_hangs() {
    let (socket, _network) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let ((asked, is_asked), (_hangs, answers)) = (channel(), channel());
    let mut driver = Driver::new(Net::new(Hanging { socket, asked, answers }, [2, 0, 0, 0, 0, 1]), memory());
    driver.start(0);
    driver.queues[TRANSMIT].offer(&[(BUFFERS, 100, false)]);
    driver.notify(TRANSMIT);
    is_asked.recv_timeout(TIMEOUT).unwrap();
    let error = driver.device.pause(Duration::from_millis(100)).unwrap_err();
    assert!(error.to_string().contains("within 100ms"), "{error}");
    let begun = Instant::now();
    drop(driver.device);
    assert!(begun.elapsed() < Duration::from_secs(20), "it ended after {:?}", begun.elapsed());
}

/// The current request is not in the stream: its chain was not taken there, and the destination carries out all of it.
#[test]
fn a_request_in_hand_is_left_to_the_destination() {
    let paused = |buffers| {
        let (mut driver, file) = busy_disk(buffers);
        driver.device.pause(TIMEOUT).unwrap();
        let in_hand = driver.queues[0].used_index() == 0;
        in_hand.then_some((driver, file, buffers))
    };
    let (mut driver, file, buffers) =
        LARGE.into_iter().find_map(paused).expect("a request that is not over before the pause");
    let bytes = save(&mut driver.device);
    // After the head of 24 bytes, 57 of configuration, the number of queues, the queue's size, alignment and table.
    let next_available = 24 + 57 + 4 + 16;
    assert_eq!(bytes[next_available..next_available + 2], [0, 0], "not taken");
    let mut driver = move_to(driver, blk(&file));
    assert_eq!(driver.wait(0).1, buffers as u32 * PIECE + 1);
    assert_eq!(driver.memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), 0);
}

/// A queue that is set up again has no request of the old one.
#[test]
fn a_request_ends_with_its_queue() {
    let (mut driver, _file) = busy_disk(LARGEST);
    soon(&mut driver, |driver| driver.write32(0x044, 0));
    driver.queues[0].forget();
    driver.set_up_queue(0);
    read(&mut driver, 0);
    assert_eq!(driver.wait(0), (0, 1));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(driver.queues[0].used_index(), 1);
}
