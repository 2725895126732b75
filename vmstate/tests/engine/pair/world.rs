//! The virtual wire and clock. The two sides take turns: one runs until it waits for bytes, for space in its socket buffer or for
//! a moment; then the side whose wait ends first continues, and time jumps there. So every run of a test is the same run.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmstate::Error;
use vmstate::channel::{Channel, Clock};

pub use super::fault::{Fault, FaultKind, Side};
use Side::{Destination, Source};

/// Bytes that arrive together.
#[derive(Debug)]
struct Segment {
    bytes: VecDeque<u8>,
    /// When it has left the sender's socket buffer.
    leaves: Duration,
    /// When it can be received.
    arrives: Duration,
}

/// The event that a side waits for, besides its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Time,
    Bytes,
    Room,
    Connection,
}

#[derive(Debug, Default)]
struct End {
    /// True while this side waits for another connection.
    connects: bool,
    /// Bytes on their way to this side.
    inbox: VecDeque<Segment>,
    sent: usize,
    /// True if nothing more will reach this side.
    inbox_closed: bool,
    /// Data that this side sends is lost, with an error or (silent) without one.
    broken: bool,
    silent: bool,
    dead: bool,
    finished: bool,
    waiting: Option<(Wish, Option<Duration>)>,
    /// Speed of the wire from this side on, once a fault has changed it.
    slowed: Option<f64>,
    /// When the wire is free for this side's next data.
    free: Duration,
}

#[derive(Debug)]
pub struct State {
    now: Duration,
    turn: Side,
    source: End,
    destination: End,
    fault: Option<Fault>,
    /// Faults of further connections, one entry for each; bytes count from the beginning of each connection.
    next: VecDeque<Option<Fault>>,
    bytes_per_second: Option<f64>,
    latency: Duration,
    /// Size of a socket buffer in bytes.
    buffer: usize,
    recorded: Vec<u8>,
    /// When the source has put bytes on the wire, and how many.
    sends: Vec<(Duration, usize)>,
    alarms: Vec<Alarm>,
    watcher: Option<Watcher>,
}

/// A callback for each call of the engine.
#[derive(Clone)]
struct Watcher(Arc<dyn Fn(&'static str) + Send + Sync>);

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}

/// An action at a moment, as from another thread.
struct Alarm {
    at: Duration,
    act: Box<dyn FnOnce() + Send>,
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Alarm at {:?}", self.at)
    }
}

const FOREVER: Duration = Duration::from_secs(1 << 40);

impl State {
    fn end(&mut self, side: Side) -> &mut End {
        if side == Source { &mut self.source } else { &mut self.destination }
    }

    /// When `side` can continue.
    fn goes_on(&mut self, side: Side) -> Option<Duration> {
        let now = self.now;
        let end = self.end(side);
        if end.finished {
            return None;
        }
        let Some((wish, deadline)) = end.waiting else { return Some(now) };
        let granted = match wish {
            Wish::Time => None,
            _ if end.dead => Some(now),
            Wish::Connection if !end.connects => Some(now),
            Wish::Connection => {
                let other = self.end(side.other());
                (other.connects || other.finished || other.dead).then_some(now)
            }
            Wish::Bytes => end.inbox.front().map(|segment| segment.arrives).or(end.inbox_closed.then_some(now)),
            Wish::Room if end.broken => Some(now),
            Wish::Room => {
                let other = self.end(side.other());
                other.inbox.iter().map(|segment| segment.leaves).find(|&leaves| leaves > now)
            }
        };
        [granted, deadline].into_iter().flatten().min()
    }

    /// Lets the side continue whose wait ends first; if both end together, the other one than `side`.
    fn pass_turn(&mut self, side: Side) {
        let next = [side.other(), side].map(|side| self.goes_on(side).map(|at| (at, side)));
        match next.into_iter().flatten().min_by_key(|&(at, _)| at.max(self.now)) {
            Some((at, side)) => {
                assert!(at < FOREVER, "both sides wait for ever");
                self.now = self.now.max(at);
                self.turn = side;
            }
            None if self.source.finished && self.destination.finished => {}
            None => panic!("both sides wait for ever"),
        }
    }

    fn strike(&mut self, fault: Fault) {
        let (sender, receiver) = (fault.sender, fault.sender.other());
        match fault.kind {
            FaultKind::Silent => self.end(sender).silent = true,
            FaultKind::Slows(speed) => self.end(sender).slowed = Some(f64::from(speed)),
            FaultKind::HalfClose => {
                self.end(sender).broken = true;
                self.end(receiver).inbox_closed = true;
            }
            FaultKind::Reset => {
                self.end(sender).broken = true;
                self.end(receiver).broken = true;
                self.end(receiver).inbox_closed = true;
                self.end(sender).inbox_closed = true;
                self.end(sender).inbox.clear();
            }
            FaultKind::SenderDies => self.kill(sender),
            FaultKind::ReceiverDies => self.kill(receiver),
        }
    }

    fn kill(&mut self, side: Side) {
        self.end(side).dead = true;
        self.end(side).inbox.clear();
        self.end(side).inbox_closed = true;
        self.end(side.other()).inbox_closed = true;
        self.end(side.other()).broken = true;
    }

    /// Gives both sides a new connection.
    fn connect(&mut self) {
        for side in [Source, Destination] {
            let end = self.end(side);
            let (sent, dead) = (end.sent, end.dead);
            *end = End { sent, dead, ..End::default() };
        }
        let fault = self.next.pop_front().flatten();
        self.fault = fault.map(|fault| Fault { after: fault.after + self.end(fault.sender).sent, ..fault });
    }

    /// Puts `bytes` on the wire.
    fn put(&mut self, side: Side, bytes: &[u8]) {
        let (now, latency) = (self.now, self.latency);
        let speed = self.end(side).slowed.or(self.bytes_per_second);
        // Small enough to free space bit by bit.
        let piece = (self.buffer / 8).max(1);
        for bytes in bytes.chunks(piece) {
            let takes = match speed {
                Some(0.0) => FOREVER,
                Some(speed) => Duration::from_secs_f64(bytes.len() as f64 / speed),
                None => Duration::ZERO,
            };
            let leaves = self.end(side).free.max(now).saturating_add(takes);
            self.end(side).free = leaves;
            let segment = Segment { bytes: bytes.to_vec().into(), leaves, arrives: leaves + latency };
            if !self.end(side).silent {
                self.end(side.other()).inbox.push_back(segment);
            }
        }
    }

    /// Free bytes of the socket buffer of `side`.
    fn room(&mut self, side: Side) -> usize {
        let (now, buffer) = (self.now, self.buffer);
        let held = self.end(side.other()).inbox.iter().filter(|segment| segment.leaves > now);
        buffer.saturating_sub(held.map(|segment| segment.bytes.len()).sum())
    }
}

/// Both ends and the clock.
#[derive(Clone, Debug)]
pub struct World(Arc<(Mutex<State>, Condvar)>);

impl World {
    pub fn new(fault: Option<Fault>, bytes_per_second: Option<f64>, latency: Duration) -> Self {
        let (source, destination) = (End::default(), End::default());
        let (now, turn, recorded, sends, alarms) = (Duration::ZERO, Source, Vec::new(), Vec::new(), Vec::new());
        // The default of a unix socket.
        let buffer = 208 << 10;
        let watcher = None;
        let state = State {
            now,
            turn,
            source,
            destination,
            fault,
            next: VecDeque::new(),
            bytes_per_second,
            latency,
            buffer,
            recorded,
            sends,
            alarms,
            watcher,
        };
        Self(Arc::new((Mutex::new(state), Condvar::new())))
    }

    pub fn set_buffer(&self, bytes: usize) {
        self.lock().buffer = bytes;
    }

    pub fn set_fault(&self, fault: Option<Fault>) {
        self.lock().fault = fault;
    }

    /// Allows further connections after one has broken in post-copy, with these faults.
    pub fn set_next(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.lock().next = faults.into_iter().collect();
    }

    pub fn unused(&self) -> usize {
        self.lock().next.len()
    }

    pub fn end(&self, side: Side) -> WireEnd {
        WireEnd { world: self.clone(), side }
    }

    /// Waits for the first turn of `side`.
    pub fn begin(&self, side: Side) {
        drop(self.wait(self.lock(), side));
    }

    /// Called when `side` has returned: its end closes as a process's socket does, after the data under way.
    pub fn finish(&self, side: Side) {
        let mut state = self.lock();
        state.end(side).finished = true;
        state.end(side.other()).inbox_closed = true;
        state.end(side.other()).broken = true;
        state.pass_turn(side);
        self.hand_over(state);
    }

    pub fn is_dead(&self, side: Side) -> bool {
        self.lock().end(side).dead
    }

    pub fn sent(&self, side: Side) -> usize {
        self.lock().end(side).sent
    }

    /// All bytes that the source has sent.
    pub fn recorded(&self) -> Vec<u8> {
        self.lock().recorded.clone()
    }

    /// When the source has put bytes on the wire, and how many.
    pub fn sends(&self) -> Vec<(Duration, usize)> {
        self.lock().sends.clone()
    }

    pub fn now(&self) -> Duration {
        self.called("now");
        self.lock().now
    }

    /// From now on, calls `watcher` with the name of each call of the engine, on either side's thread before the call.
    pub fn watch(&self, watcher: impl Fn(&'static str) + Send + Sync + 'static) {
        self.lock().watcher = Some(Watcher(Arc::new(watcher)));
    }

    /// Reports a call of the engine.
    pub fn called(&self, what: &'static str) {
        let watcher = self.lock().watcher.clone();
        if let Some(Watcher(watcher)) = watcher {
            watcher(what);
        }
    }

    /// Runs `act` when a side first continues at that moment or later.
    pub fn at(&self, at: Duration, act: impl FnOnce() + Send + 'static) {
        self.lock().alarms.push(Alarm { at, act: Box::new(act) });
    }

    fn sound_alarms<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let now = state.now;
        let due: Vec<_> = state.alarms.extract_if(.., |alarm| alarm.at <= now).collect();
        if due.is_empty() {
            return state;
        }
        drop(state);
        due.into_iter().for_each(|alarm| (alarm.act)());
        self.lock()
    }

    /// Lets `side` spend this much time.
    pub fn spend(&self, side: Side, time: Duration) {
        let mut state = self.lock();
        let until = state.now + time;
        while state.now < until {
            state = self.rest(state, side, Wish::Time, Some(until));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets time pass until `side` continues.
    fn rest<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        side: Side,
        wish: Wish,
        deadline: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        state.end(side).waiting = Some((wish, deadline));
        state.pass_turn(side);
        // Waking the other side for nothing costs more than everything else here.
        if state.turn != side {
            self.hand_over(state);
            state = self.wait(self.lock(), side);
        }
        state.end(side).waiting = None;
        self.sound_alarms(state)
    }

    /// Wakes the side whose turn it is, which would else wake up to a lock that is held.
    fn hand_over(&self, state: MutexGuard<'_, State>) {
        drop(state);
        self.0.1.notify_all();
    }

    fn wait<'a>(&'a self, mut state: MutexGuard<'a, State>, side: Side) -> MutexGuard<'a, State> {
        while state.turn != side {
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }
}

/// One side's end of the wire, and its clock.
#[derive(Clone, Debug)]
pub struct WireEnd {
    world: World,
    side: Side,
}

impl Clock for WireEnd {
    fn now(&self) -> Duration {
        self.world.now()
    }

    fn sleep(&self, duration: Duration) {
        self.world.called("sleep");
        self.world.spend(self.side, duration);
    }
}

impl Channel for WireEnd {
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        self.world.called("send");
        let mut state = self.world.lock();
        let deadline = state.now.saturating_add(timeout);
        let count = loop {
            if state.end(self.side).dead || state.end(self.side).broken {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            match state.room(self.side) {
                0 if state.now >= deadline => return Err(io::ErrorKind::TimedOut.into()),
                0 => state = self.world.rest(state, self.side, Wish::Room, Some(deadline)),
                room => break room.min(bytes.len()),
            }
        };
        let bytes = bytes.split_at(count).0;
        let sent = state.end(self.side).sent;
        let fault = state.fault.filter(|fault| fault.sender == self.side && fault.after <= sent + bytes.len());
        let fault = fault.filter(|fault| fault.after > sent || (fault.after == 0 && sent == 0));
        let (through, rest) = bytes.split_at(fault.map_or(bytes.len(), |fault| fault.after - sent));
        state.end(self.side).sent += bytes.len();
        if self.side == Source {
            state.recorded.extend_from_slice(bytes);
            let now = state.now;
            state.sends.push((now, bytes.len()));
        }
        state.put(self.side, through);
        if let Some(fault) = fault {
            state.strike(fault);
            match fault.kind {
                FaultKind::Silent | FaultKind::Slows(_) => state.put(self.side, rest),
                _ if rest.is_empty() => {}
                _ => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        Ok(bytes.len())
    }

    fn reconnect(&mut self, _why: &Error) -> io::Result<()> {
        let (side, other) = (self.side, self.side.other());
        let mut state = self.world.lock();
        // The other side drops its end of the previous connection.
        (state.end(other).inbox_closed, state.end(other).broken) = (true, true);
        if state.next.is_empty() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        state.end(side).connects = true;
        loop {
            if !state.end(side).connects {
                return Ok(());
            }
            if state.end(other).connects {
                state.connect();
                return Ok(());
            }
            if state.end(side).dead || state.end(other).dead || state.end(other).finished {
                return Err(io::ErrorKind::NotConnected.into());
            }
            state = self.world.rest(state, side, Wish::Connection, None);
        }
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        self.world.called("receive");
        let mut state = self.world.lock();
        let deadline = state.now.saturating_add(timeout);
        loop {
            let now = state.now;
            let end = state.end(self.side);
            if end.dead {
                return Err(io::ErrorKind::NotConnected.into());
            }
            let mut count = 0;
            while let Some(segment) = end.inbox.front_mut().filter(|segment| segment.arrives <= now) {
                count += io::Read::read(&mut segment.bytes, &mut into[count..])?;
                if !segment.bytes.is_empty() {
                    break;
                }
                end.inbox.pop_front();
            }
            if count > 0 {
                return Ok(count);
            }
            if end.inbox_closed && end.inbox.is_empty() {
                return Ok(0);
            }
            if now >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            state = self.world.rest(state, self.side, Wish::Bytes, Some(deadline));
        }
    }
}
