//! The virtual clock and wire. Nothing is sent: the channel counts bytes, advances the time that sending takes, and answers as a
//! destination would.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::memory::{Memory, Taken};
use super::writes::Random;
use super::{Connection, Scenario};
use crate::channel::{Channel, Clock};
use crate::codec::{Outbox, Piece};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::protocol::ping;
use crate::ram::{GuestRam, PageCount, RamBlock};
use crate::stream::{Command, Element, Reply};

/// The cost of a lost packet after which nothing else is sent: the least retransmission timeout of Linux (`TCP_RTO_MIN`).
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// Bytes of data in a packet: those of an Ethernet frame with the TCP options that Linux sends.
const SEGMENT: f64 = 1448.0;

/// The state that all parts of a planned migration share.
#[derive(Clone, Debug)]
pub(super) struct World(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    now: Duration,
    memory: Memory,
    /// True if the guest's vCPUs run.
    runs: bool,
    throttle: u8,
    throttled: Duration,
    connection: Connection,
    load: Duration,
    random: Random,
    /// Answers on their way, with their times of arrival.
    answers: VecDeque<(Duration, Reply)>,
    /// Bytes of pages that the wire was given and has not accepted.
    waiting: u64,
    /// The last bytes that were sent, as many as a ping has.
    tail: Vec<u8>,
    /// True if the destination has everything, and waits for the final message.
    is_ready: bool,
}

/// Bytes a second of one connection's data. Lost data is sent again at the same loss rate; and with a share `p` lost, a
/// connection has at most `1.22 segments / (round trip * sqrt(p))` (Mathis et al. 1997).
pub(super) fn bytes_per_second(connection: &Connection) -> f64 {
    let whole = connection.bytes_per_second as f64 * (1.0 - connection.loss);
    let allowed = SEGMENT * 1.22 / (connection.round_trip.as_secs_f64() * connection.loss.sqrt());
    if allowed.is_finite() { whole.min(allowed) } else { whole }.max(1.0)
}

impl World {
    pub(super) fn new(scenario: &Scenario) -> Self {
        Self(Rc::new(RefCell::new(State {
            now: Duration::ZERO,
            memory: Memory::new(scenario),
            runs: true,
            throttle: 0,
            throttled: Duration::ZERO,
            connection: scenario.connection,
            load: scenario.pause.load,
            random: Random(!scenario.seed),
            answers: VecDeque::new(),
            waiting: 0,
            tail: Vec::new(),
            is_ready: false,
        })))
    }

    pub(super) fn pass(&self, time: Duration) {
        self.0.borrow_mut().pass(time, 0.0);
    }

    pub(super) fn set_running(&self, runs: bool) {
        self.0.borrow_mut().runs = runs;
    }

    pub(super) fn is_running(&self) -> bool {
        self.0.borrow().runs
    }

    pub(super) fn set_throttle(&self, percent: u8) {
        self.0.borrow_mut().throttle = percent;
    }

    pub(super) fn throttle(&self) -> u8 {
        self.0.borrow().throttle
    }

    pub(super) fn throttled(&self) -> Duration {
        self.0.borrow().throttled
    }

    pub(super) fn sync(&self) -> f64 {
        self.0.borrow_mut().memory.sync()
    }

    pub(super) fn pending_bytes(&self) -> f64 {
        self.0.borrow().memory.pending_bytes()
    }

    /// Numbers of pages sent and pending.
    pub(super) fn pages(&self) -> (PageCount, u64) {
        let state = self.0.borrow();
        (state.memory.sent(), state.memory.pending_pages())
    }

    pub(super) fn take(&self, budget: u64) -> (Taken, bool) {
        let mut state = self.0.borrow_mut();
        let (taken, over) = state.memory.take(budget);
        state.waiting += taken.bytes;
        state.pass(taken.scan, 0.0);
        (taken, over)
    }
}

impl State {
    /// Lets `time` pass, in which the wire accepts this share of the pages that it was given.
    fn pass(&mut self, time: Duration, share: f64) {
        let running = if self.runs { 1.0 - f64::from(self.throttle) / 100.0 } else { 0.0 };
        self.memory.pass(self.now, time, share, running);
        if self.runs {
            self.throttled += time.mul_f64(f64::from(self.throttle) / 100.0);
        }
        self.now = self.now.saturating_add(time);
    }

    fn answer(&mut self, reply: Reply, takes: Duration) {
        let Connection { round_trip, jitter, loss, .. } = self.connection;
        let mut arrives = self.now.saturating_add(round_trip).saturating_add(takes);
        arrives += jitter.mul_f64(self.random.next());
        if self.random.next() < loss {
            arrives += RETRANSMISSION.max(round_trip);
        }
        let before = self.answers.back().map_or(Duration::ZERO, |&(at, _)| at);
        self.answers.push_back((arrives.max(before), reply));
    }

    /// Handles the arrival of the first `count` bytes of `outbox`.
    fn arrived(&mut self, outbox: &Outbox, count: u64) {
        let mut ping = Vec::new();
        Element::Command(Command::Ping(0)).write(&mut ping);
        let mut left = usize::try_from(count).unwrap_or(usize::MAX);
        for piece in outbox.pieces() {
            match piece {
                Piece::Pages(run) => {
                    left = left.saturating_sub(usize::try_from(run.len).unwrap_or(usize::MAX));
                    self.tail.clear();
                }
                Piece::Bytes(bytes) => {
                    let sent = bytes.get(..left).unwrap_or(bytes);
                    left -= sent.len();
                    self.tail.extend_from_slice(sent.get(sent.len().saturating_sub(ping.len())..).unwrap_or_default());
                }
            }
        }
        self.tail.drain(..self.tail.len().saturating_sub(ping.len()));
        if std::mem::take(&mut self.is_ready) {
            return self.answer(Reply::Shut(0), Duration::ZERO);
        }
        let Some((command, number)) = self.tail.split_last_chunk::<4>() else { return };
        if Some(command) == ping.get(..ping.len() - 4) {
            let number = u32::from_be_bytes(*number);
            self.is_ready = number == ping::READY;
            let takes = if self.is_ready { self.load } else { Duration::ZERO };
            self.answer(Reply::Pong(ping::answer(number)), takes);
            self.tail.clear();
        }
    }
}

impl Clock for World {
    fn now(&self) -> Duration {
        self.0.borrow().now
    }

    fn sleep(&self, duration: Duration) {
        self.pass(duration);
    }
}

impl Channel for World {
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        let mut outbox = Outbox::new();
        outbox.put(bytes);
        self.send_outbox(&outbox, &NoRam::new(0), timeout)
    }

    /// Sends until the next answer arrives, so that the source receives each at once; the call advances virtual time, and does
    /// not wait.
    fn send_outbox(&mut self, outbox: &Outbox, _ram: &dyn GuestRam, _timeout: Duration) -> io::Result<usize> {
        let mut state = self.0.borrow_mut();
        let (now, speed, len) = (state.now, bytes_per_second(&state.connection), outbox.len());
        // In the order of their arrival.
        let next = state.answers.partition_point(|&(arrives, _)| arrives <= now);
        let next = state.answers.get(next).map(|&(arrives, _)| arrives);
        let until_then = next.map_or(f64::INFINITY, |arrives| ((arrives - now).as_secs_f64() * speed).ceil());
        // At most a tenth of a second at once, so that the source checks its deadline.
        let count = len.min(super::round_down(until_then)).min(super::round_down(speed / 10.0).max(1));
        let time = Duration::try_from_secs_f64(count as f64 / speed).unwrap_or(Duration::MAX);
        let share = if count < state.waiting { count as f64 / state.waiting as f64 } else { 1.0 };
        state.waiting = state.waiting.saturating_sub(count);
        state.pass(time, share);
        state.arrived(outbox, count);
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        let mut state = self.0.borrow_mut();
        let until = state.now.saturating_add(timeout);
        let Some(&(arrives, reply)) = state.answers.front().filter(|&&(arrives, _)| arrives <= until) else {
            state.pass(timeout, 0.0);
            return Err(io::ErrorKind::TimedOut.into());
        };
        let waits = arrives.saturating_sub(state.now);
        state.pass(waits, 0.0);
        state.answers.pop_front();
        let mut bytes = Vec::new();
        reply.write(&mut bytes);
        into.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

/// Guest memory with a length, and without contents.
pub(super) struct NoRam(Vec<RamBlock>);

impl NoRam {
    pub(super) fn new(len: u64) -> Self {
        Self(vec![RamBlock { name: "planned".into(), len }])
    }
}

impl GuestRam for NoRam {
    fn blocks(&self) -> &[RamBlock] {
        &self.0
    }

    fn read(&self, _: usize, _: u64, _: &mut [u8]) -> Result<()> {
        Err(no_bytes())
    }

    fn write(&self, _: usize, _: u64, _: &[u8]) -> Result<()> {
        Err(no_bytes())
    }

    fn zero_page(&self, _: usize, _: u64) -> Result<()> {
        Err(no_bytes())
    }
}

fn no_bytes() -> Error {
    Error::new(ErrorKind::Misuse, "planned memory has no bytes")
}
