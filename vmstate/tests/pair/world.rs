//! The virtual wire and clock. The two sides take turns: one runs until it waits for bytes, then the other does; when
//! both wait, time jumps to the first deadline. So every run of a test is the same run.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmstate::channel::{Channel, Clock};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

use Side::{Destination, Source};

impl Side {
    pub fn other(self) -> Self {
        if self == Source { Destination } else { Source }
    }
}

/// What happens once `sender` has put `after` bytes on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub sender: Side,
    pub after: usize,
    pub kind: FaultKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Both directions break at once; what is under way the other way is lost.
    Reset,
    /// This direction closes; the other works on.
    HalfClose,
    /// This direction swallows everything from here on, and nobody is told.
    Silent,
    /// The sender's process dies.
    SenderDies,
    /// The receiver's process dies, before it has looked at any of the bytes that it was not waiting for.
    ReceiverDies,
}

#[derive(Debug, Default)]
struct End {
    /// Bytes on their way to this side.
    inbox: VecDeque<u8>,
    sent: usize,
    /// Nothing more will come to this side.
    inbox_closed: bool,
    /// What this side sends goes nowhere: an error, or (silent) not even that.
    broken: bool,
    silent: bool,
    dead: bool,
    finished: bool,
    waiting: bool,
    deadline: Option<Duration>,
}

#[derive(Debug)]
pub struct State {
    now: Duration,
    turn: Side,
    source: End,
    destination: End,
    fault: Option<Fault>,
    bytes_per_second: Option<f64>,
    latency: Duration,
    recorded: Vec<u8>,
}

impl State {
    fn end(&mut self, side: Side) -> &mut End {
        if side == Source { &mut self.source } else { &mut self.destination }
    }

    fn runnable(&mut self, side: Side) -> bool {
        let end = self.end(side);
        !end.finished && (!end.waiting || !end.inbox.is_empty() || end.inbox_closed || end.dead)
    }

    /// Who goes on when `side` cannot.
    fn pass_turn(&mut self, side: Side) {
        for candidate in [side.other(), side] {
            if self.runnable(candidate) {
                self.turn = candidate;
                return;
            }
        }
        let waiting = [Source, Destination].into_iter().filter(|&side| !self.end(side).finished).collect::<Vec<_>>();
        let next = waiting.into_iter().filter_map(|side| self.end(side).deadline.map(|at| (at, side)));
        match next.min_by_key(|&(at, _)| at) {
            Some((at, side)) => {
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
}

/// Both ends and the clock.
#[derive(Clone, Debug)]
pub struct World(Arc<(Mutex<State>, Condvar)>);

impl World {
    pub fn new(fault: Option<Fault>, bytes_per_second: Option<f64>, latency: Duration) -> Self {
        let (source, destination) = (End::default(), End::default());
        let (now, turn, recorded) = (Duration::ZERO, Source, Vec::new());
        let state = State { now, turn, source, destination, fault, bytes_per_second, latency, recorded };
        Self(Arc::new((Mutex::new(state), Condvar::new())))
    }

    pub fn end(&self, side: Side) -> WireEnd {
        WireEnd { world: self.clone(), side }
    }

    /// Waits for the first turn of `side`.
    pub fn begin(&self, side: Side) {
        drop(self.wait(self.lock(), side));
    }

    /// `side` has returned: its end closes as a process's socket does, after what is under way.
    pub fn finish(&self, side: Side) {
        let mut state = self.lock();
        state.end(side).finished = true;
        state.end(side.other()).inbox_closed = true;
        state.end(side.other()).broken = true;
        state.pass_turn(side);
        self.0.1.notify_all();
    }

    pub fn is_dead(&self, side: Side) -> bool {
        self.lock().end(side).dead
    }

    pub fn sent(&self, side: Side) -> usize {
        self.lock().end(side).sent
    }

    /// All that the source has sent.
    pub fn recorded(&self) -> Vec<u8> {
        self.lock().recorded.clone()
    }

    pub fn advance(&self, by: Duration) {
        self.lock().now += by;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&'a self, mut state: MutexGuard<'a, State>, side: Side) -> MutexGuard<'a, State> {
        while state.turn != side {
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }
}

impl Clock for World {
    fn now(&self) -> Duration {
        self.lock().now
    }

    fn sleep(&self, duration: Duration) {
        self.advance(duration);
    }
}

/// One side's end of the wire.
#[derive(Debug)]
pub struct WireEnd {
    world: World,
    side: Side,
}

impl Channel for WireEnd {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.world.lock();
        let state = &mut *state;
        if state.end(self.side).dead || state.end(self.side).broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let sent = state.end(self.side).sent;
        let fault = state.fault.filter(|fault| fault.sender == self.side && fault.after <= sent + bytes.len());
        let fault = fault.filter(|fault| fault.after > sent || (fault.after == 0 && sent == 0));
        let (through, _) = bytes.split_at(fault.map_or(bytes.len(), |fault| fault.after - sent));
        state.end(self.side).sent += bytes.len();
        if self.side == Source {
            state.recorded.extend_from_slice(bytes);
        }
        if !state.end(self.side).silent {
            state.end(self.side.other()).inbox.extend(through);
        }
        if let Some(speed) = state.bytes_per_second {
            state.now += Duration::from_secs_f64(bytes.len() as f64 / speed);
        }
        if let Some(fault) = fault {
            state.strike(fault);
            if through.len() < bytes.len() && fault.kind != FaultKind::Silent {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
        Ok(())
    }

    fn receive(&mut self, into: &mut [u8], timeout: Option<Duration>) -> io::Result<usize> {
        let mut state = self.world.lock();
        let deadline = timeout.map(|timeout| state.now + timeout);
        loop {
            let end = state.end(self.side);
            if end.dead {
                return Err(io::ErrorKind::NotConnected.into());
            }
            if !end.inbox.is_empty() {
                end.waiting = false;
                return end.inbox.read(into);
            }
            if end.inbox_closed {
                return Ok(0);
            }
            if end.waiting && deadline.is_some_and(|deadline| deadline <= state.now) {
                state.end(self.side).waiting = false;
                return Err(io::ErrorKind::TimedOut.into());
            }
            let end = state.end(self.side);
            (end.waiting, end.deadline) = (true, deadline);
            state.pass_turn(self.side);
            self.world.0.1.notify_all();
            state = self.world.wait(state, self.side);
            // Bytes take their time: whoever was waiting for them sees them that much later.
            if !state.end(self.side).inbox.is_empty() {
                let latency = state.latency;
                state.now += latency;
            }
        }
    }
}
