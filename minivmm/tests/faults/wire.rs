//! A wire between two processes that knows how far a migration is, stops there, and then does what a test asks.
//!
//! It looks for a handful of marks in the bytes (`docs/wire-format-stream.md`) and understands nothing else.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What the wire recognises, in the order in which it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    /// The stream's first byte.
    Header,
    /// `PING 6`: the end of the first round.
    Round,
    /// `SWITCHOVER_START`: the guest is paused.
    SwitchOver,
    /// `PING 5`: the source has sent everything.
    Everything,
    /// `PONG 5`: the destination has loaded everything.
    Ready,
    /// EOF: the source has let go.
    Eof,
    /// `SHUT 0`: the destination has taken over.
    Shut,
    /// `SHUT` with another number: it has not.
    Refusal,
}

/// How the wire behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Everything passes.
    Flows,
    /// Nothing passes, in neither direction, not even the end of the connection.
    Stalls,
    /// This many bytes pass in each direction every 100 ms.
    Trickles(usize),
    /// Both ends see the connection closed; what had not passed is lost.
    Cut,
}

/// A change of bytes on their way to the destination.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alteration {
    /// Where these bytes first appear …
    pub(crate) find: &'static [u8],
    /// … so many bytes behind their beginning …
    pub(crate) at: usize,
    /// … these take the place of what is there.
    pub(crate) put: &'static [u8],
}

/// Most bytes that the wire itself holds in one direction.
const HELD_MAX: usize = 64 << 10;
const TRICKLE: Duration = Duration::from_millis(100);

/// All of a PING but its number's last byte.
const PING: &[u8] = &[8, 0, 2, 0, 4, 0, 0, 0];
const SWITCHOVER_START: &[u8] = &[8, 0, 11, 0, 0];
/// Bytes of a whole PING.
const PING_LEN: u64 = 9;
/// Bytes of a whole answer of the destination.
const ANSWER_LEN: u64 = 8;

/// The wire; taken down with the value.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: PathBuf,
    orders: Sender<Wire>,
    seen: Arc<Mutex<Vec<(Mark, Instant)>>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Waits at `here` for the source and connects it with `there`. The direction in which `hold` comes stops just before it.
    pub(crate) fn start(here: &Path, there: &Path, hold: Option<Mark>, alteration: Option<Alteration>) -> Self {
        let listener = UnixListener::bind(here).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (orders, receiver) = channel();
        let seen = Arc::default();
        let marks = Arc::clone(&seen);
        let there = there.to_owned();
        let thread = std::thread::spawn(move || {
            let Some((source, destination)) = join(&listener, &there, &receiver) else { return };
            drop(listener);
            let mut relay = Relay {
                forward: Lane::new(source.try_clone().unwrap(), destination.try_clone().unwrap()),
                backward: Lane::new(destination, source),
                wire: Wire::Flows,
                hold,
                alteration,
                marks,
                everything: None,
            };
            relay.run(&receiver);
        });
        Self { address: here.to_owned(), orders, seen, thread: Some(thread) }
    }

    /// Where the source is to connect.
    pub(crate) fn uri(&self) -> String {
        format!("unix:{}", self.address.display())
    }

    /// From now on the wire behaves so, and holds nothing back any more.
    pub(crate) fn behave(&self, wire: Wire) {
        // Both ends closed: there is no wire any more.
        let _ = self.orders.send(wire);
    }

    /// The marks that came, also those that are held back, and when.
    pub(crate) fn seen(&self) -> Vec<(Mark, Instant)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True once `mark` has come.
    pub(crate) fn has_seen(&self, mark: Mark) -> bool {
        self.seen().iter().any(|(seen, _)| *seen == mark)
    }

    /// Waits until `mark` has come.
    pub(crate) fn await_mark(&self, mark: Mark, deadline: Instant) -> Result<(), String> {
        while !self.has_seen(mark) {
            if Instant::now() > deadline {
                return Err(format!("{mark:?} does not come; what came: {:?}", self.seen()));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.behave(Wire::Cut);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The source, and a connection to the destination made for it; `None` if the wire is cut before.
fn join(listener: &UnixListener, there: &Path, orders: &Receiver<Wire>) -> Option<(UnixStream, UnixStream)> {
    let source = loop {
        match listener.accept() {
            Ok((source, _)) => break source,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("the wire cannot accept: {error}"),
        }
        if orders.try_recv() == Ok(Wire::Cut) {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let destination = UnixStream::connect(there).ok()?;
    for stream in [&source, &destination] {
        stream.set_nonblocking(true).unwrap();
    }
    Some((source, destination))
}

/// One direction.
#[derive(Debug)]
struct Lane {
    from: UnixStream,
    to: UnixStream,
    /// Read and not passed on.
    held: Vec<u8>,
    /// Offset of the first held byte.
    passed: u64,
    /// Bytes from this offset on do not pass.
    stop: u64,
    /// Offset up to which marks were looked for.
    searched: u64,
    /// `from` sends no more.
    ended: bool,
    /// `to` was told so, or takes no more.
    closed: bool,
}

impl Lane {
    fn new(from: UnixStream, to: UnixStream) -> Self {
        Self { from, to, held: Vec::new(), passed: 0, stop: u64::MAX, searched: 0, ended: false, closed: false }
    }

    fn wants(&self) -> PollFlags {
        if self.ended || self.held.len() >= HELD_MAX { PollFlags::empty() } else { PollFlags::POLLIN }
    }

    /// Reads what is there; true if something came.
    fn read(&mut self) -> bool {
        let mut buffer = vec![0; HELD_MAX.saturating_sub(self.held.len())];
        if self.ended || buffer.is_empty() {
            return false;
        }
        match self.from.read(&mut buffer) {
            Ok(0) => self.ended = true,
            Ok(bytes) => self.held.extend_from_slice(&buffer[..bytes]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => self.ended = true,
        }
        true
    }

    /// Passes on up to `most` bytes but not the last `undecided`, and the end once all has passed.
    fn write(&mut self, most: usize, undecided: usize) {
        let free = usize::try_from(self.stop - self.passed).unwrap_or(usize::MAX).min(self.held.len() - undecided);
        let chunk = free.min(most);
        if chunk > 0 && !self.closed {
            match self.to.write(&self.held[..chunk]) {
                Ok(bytes) => {
                    self.held.drain(..bytes);
                    self.passed += bytes as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.closed = true,
            }
        }
        if self.ended && self.held.is_empty() && !self.closed {
            let _ = self.to.shutdown(Shutdown::Write);
            self.closed = true;
        }
    }

    /// Offset of `pattern` at or behind `start`, if it is among the held bytes.
    fn find(&self, pattern: &[u8], start: u64) -> Option<u64> {
        let skip = usize::try_from(start.saturating_sub(self.passed)).unwrap_or(usize::MAX);
        let at = self.held.get(skip..)?.windows(pattern.len()).position(|bytes| bytes == pattern)?;
        Some(self.passed + (skip + at) as u64)
    }
}

struct Relay {
    forward: Lane,
    backward: Lane,
    wire: Wire,
    hold: Option<Mark>,
    alteration: Option<Alteration>,
    marks: Arc<Mutex<Vec<(Mark, Instant)>>>,
    /// Offset just behind `PING 5`.
    everything: Option<u64>,
}

impl Relay {
    fn run(&mut self, orders: &Receiver<Wire>) {
        let mut trickled = Instant::now();
        loop {
            let mut polled = [
                PollFd::new(self.forward.from.as_fd(), self.forward.wants()),
                PollFd::new(self.backward.from.as_fd(), self.backward.wants()),
            ];
            let busy = !(self.forward.ended && self.backward.ended);
            let _ = poll(&mut polled, PollTimeout::from(if busy { 1_u8 } else { 10 }));
            loop {
                match orders.try_recv() {
                    Ok(wire) => self.obey(wire),
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
                }
            }
            let most = match self.wire {
                Wire::Flows => usize::MAX,
                Wire::Stalls => continue,
                Wire::Trickles(bytes) if trickled.elapsed() >= TRICKLE => {
                    trickled = Instant::now();
                    bytes
                }
                Wire::Trickles(_) => 0,
                Wire::Cut => return,
            };
            if self.forward.read() {
                self.look_forward();
            }
            if self.backward.read() {
                self.look_backward();
            }
            let undecided = self.undecided();
            self.forward.write(most, undecided);
            self.backward.write(most, 0);
            if self.forward.closed && self.backward.closed {
                return;
            }
        }
    }

    fn obey(&mut self, wire: Wire) {
        self.wire = wire;
        self.hold = None;
        (self.forward.stop, self.backward.stop) = (u64::MAX, u64::MAX);
        if wire == Wire::Cut {
            for stream in [&self.forward.from, &self.forward.to] {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    fn came(&mut self, mark: Mark) -> bool {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if !marks.iter().any(|(seen, _)| *seen == mark) {
            marks.push((mark, Instant::now()));
        }
        self.hold == Some(mark)
    }

    /// Bytes at the end of what is held that may be the beginning of what is looked for; they wait for the rest.
    fn undecided(&self) -> usize {
        if self.forward.ended {
            return 0;
        }
        let altered = self.alteration.map_or(&[][..], |alteration| alteration.find);
        let begins = |pattern: &[u8]| {
            (1..=pattern.len()).rev().find(|&len| self.forward.held.ends_with(&pattern[..len])).unwrap_or(0)
        };
        // Found, but not all of what is to be changed is here.
        let found = self.alteration.and_then(|alteration| self.forward.find(alteration.find, self.forward.passed));
        let rest = found.map_or(0, |at| self.forward.held.len() - (at - self.forward.passed) as usize);
        begins(PING).max(begins(SWITCHOVER_START)).max(begins(altered)).max(rest)
    }

    fn look_forward(&mut self) {
        let ping = |number| [PING, &[number]].concat();
        let start = self.forward.searched.max(self.forward.passed);
        if let Some(Alteration { find, at, put }) = self.alteration
            && let Some(found) = self.forward.find(find, self.forward.passed)
        {
            let from = (found - self.forward.passed) as usize + at;
            if let Some(bytes) = self.forward.held.get_mut(from..from + put.len()) {
                bytes.copy_from_slice(put);
                self.alteration = None;
            }
        }
        let found = [
            (Mark::Header, (start == 0 && !self.forward.held.is_empty()).then_some(0)),
            (Mark::Round, self.forward.find(&ping(6), start)),
            (Mark::SwitchOver, self.forward.find(SWITCHOVER_START, start)),
            (Mark::Everything, self.forward.find(&ping(5), start)),
        ];
        for (mark, at) in found {
            let Some(at) = at else { continue };
            if mark == Mark::Everything {
                self.everything = Some(at + PING_LEN);
            }
            if self.came(mark) {
                self.forward.stop = self.forward.stop.min(at);
            }
        }
        let end = self.forward.passed + self.forward.held.len() as u64;
        if let Some(at) = self.everything.filter(|at| *at < end)
            && self.came(Mark::Eof)
        {
            self.forward.stop = self.forward.stop.min(at);
        }
        // A mark may be cut in two by the end of what has come.
        self.forward.searched = end.saturating_sub(PING_LEN - 1);
    }

    /// Answers are framed: type and length, 16 bits each, and 32 bits of data in those that come here.
    fn look_backward(&mut self) {
        let end = self.backward.passed + self.backward.held.len() as u64;
        let mut at = self.backward.searched;
        while at + ANSWER_LEN <= end {
            let from = (at - self.backward.passed) as usize;
            let mark = match &self.backward.held[from..from + ANSWER_LEN as usize] {
                [0, 2, 0, 4, 0, 0, 0, 5] => Some(Mark::Ready),
                [0, 1, 0, 4, 0, 0, 0, 0] => Some(Mark::Shut),
                [0, 1, 0, 4, ..] => Some(Mark::Refusal),
                _ => None,
            };
            if mark.is_some_and(|mark| self.came(mark)) {
                self.backward.stop = self.backward.stop.min(at);
            }
            at += ANSWER_LEN;
        }
        self.backward.searched = at;
    }
}
