//! No queue of a network card delays the others, however much work it has: each gets 256 chains at a time
//! (docs/threat-model.md, Budgets).

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use minivmm::devices::Device;
use minivmm::devices::virtio::net::{Backend, Net, Offloads};
use minivmm::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{BUFFERS, Driver, INDIRECT, TIMEOUT, USED, memory};
use crate::net::{CONTROL, CTRL_VQ, RECEIVE, TRANSMIT, frame};

const TURN: usize = 256;
/// Most chains that a queue can have.
const ALL: u16 = 1024;

/// Actions of the card, in order.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Done {
    Sent,
    Received,
}

/// A network that always has a frame, up to a number, and takes every frame.
struct Busy {
    socket: UnixDatagram,
    frames: Arc<AtomicU16>,
    memory: GuestMemory,
    /// Actions, each with the number of commands answered before it.
    done: Arc<Mutex<Vec<(Done, u16)>>>,
}

impl Busy {
    fn write_down(&self, what: Done) {
        // Queues are 64 KiB apart, from 1 MiB on.
        let used = (1 << 20) + CONTROL as u64 * 0x1_0000 + USED + 2;
        let answered = self.memory.load(GuestAddress(used), Ordering::SeqCst).unwrap();
        self.done.lock().unwrap().push((what, answered));
    }
}

impl Backend for Busy {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.frames.load(Ordering::SeqCst).checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
        self.frames.store(left, Ordering::SeqCst);
        let frame = frame(&[7; 60]);
        buffer[..frame.len()].copy_from_slice(&frame);
        self.write_down(Done::Received);
        Ok(frame.len())
    }
    fn send(&self, _: &[u8]) -> io::Result<()> {
        self.write_down(Done::Sent);
        Ok(())
    }
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }
    fn set_offloads(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }
}

/// Actions of a card with this many chains in its queues, and as many frames as it has buffers.
fn done(receive: u16, transmit: u16, control: u16) -> Vec<(Done, u16)> {
    let memory = memory();
    let done = Arc::<Mutex<_>>::default();
    let (socket, _network) = UnixDatagram::pair().unwrap();
    let frames = Arc::<AtomicU16>::default();
    let network = Busy { socket, frames: Arc::clone(&frames), memory: memory.clone(), done: Arc::clone(&done) };
    let mut driver = Driver::new(Net::new(network, [2, 0, 0, 0, 0, 1]), memory);
    driver.queues.iter_mut().for_each(|queue| queue.size = ALL);
    driver.start(INDIRECT | CTRL_VQ);
    driver.device.pause(TIMEOUT).unwrap();
    let (table, data) = (BUFFERS, BUFFERS + 0x1000);
    for _ in 0..receive {
        driver.queues[RECEIVE].offer(&[(data, 100, true)]);
    }
    for _ in 0..transmit {
        driver.queues[TRANSMIT].offer(&[(data, 100, false)]);
    }
    if control > 0 {
        driver.queues[CONTROL].offer_table(table, &[(data, 2, false), (data + 0x100, 1, true)]);
        for _ in 1..control {
            driver.queues[CONTROL].offer_table_again(table, 32);
        }
    }
    frames.store(receive, Ordering::SeqCst);
    driver.device.resume();
    for (queue, count) in [(RECEIVE, receive), (TRANSMIT, transmit), (CONTROL, control)] {
        driver.until("all chains", |driver| driver.queues[queue].used_index() == count);
    }
    let done = done.lock().unwrap();
    done.clone()
}

#[test]
fn frames_of_the_guest_and_for_the_guest_take_turns() {
    let done = done(ALL, ALL, 0);
    assert_eq!(done.len(), 2 * usize::from(ALL));
    let turns: Vec<usize> = done.chunk_by(|(one, _), (next, _)| one == next).map(<[_]>::len).collect();
    // Both queues have enough work until the last turn of each.
    assert!(turns.iter().all(|turn| *turn <= TURN), "{turns:?}");
}

#[test]
fn commands_do_not_keep_frames_waiting() {
    for (receive, transmit) in [(1, 0), (0, 1)] {
        let done = done(receive, transmit, ALL);
        let [(_, answered)] = done[..] else { panic!("{done:?}") };
        assert!(usize::from(answered) <= TURN, "{answered} commands were answered before the frame had its turn");
    }
}

#[test]
fn frames_do_not_keep_commands_waiting() {
    for (receive, transmit) in [(ALL, 0), (0, ALL)] {
        // Commands have the first turn.
        let done = done(receive, transmit, 2 * TURN as u16);
        let waited = done.iter().filter(|(_, answered)| *answered == TURN as u16).count();
        assert!((1..=TURN).contains(&waited), "{waited} frames went between one turn of the commands and the next");
        assert_eq!(done.last().unwrap().1, 2 * TURN as u16);
    }
}
