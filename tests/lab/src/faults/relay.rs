//! A relay between two processes that detects the progress of a migration, stops there, and then behaves as a test
//! asks.
//!
//! The data is parsed by [`marks`](super::marks); no byte is relayed before it is known whether it is a mark.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::TIMEOUT;
use super::descriptors::{Passing, cpr_socket, pass, pass_channel};
use super::marks::{Mark, StreamParser, parse_reply};
use super::page_channels::{PageChannelOptions, PageChannels};

/// The behaviour of the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// All data is relayed.
    Flows,
    /// All data is relayed, with the first held byte changed.
    Damaged,
    /// No data is relayed in either direction, not even the end of the connection.
    Stalls,
    /// This many bytes are relayed in each direction every 100 ms.
    Trickles(usize),
    /// Both ends see the connection closed; data that was not relayed is lost.
    Cut,
}

/// A selection of the relay's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All.
    All,
    /// The main channel, which is the first connection.
    Main,
    /// The page channel of this number, from 0 on.
    Pages(usize),
}

/// A change of bytes on their way to the destination.
#[derive(Clone, Copy, Debug)]
pub struct Alteration {
    /// The bytes to search for; the first occurrence counts.
    pub find: &'static [u8],
    /// Offset of the change from the start of these bytes.
    pub at: usize,
    /// The new bytes.
    pub put: &'static [u8],
}

/// Most bytes that the relay holds in one direction: more than a record of a disk's content, which is parsed as a whole.
const HELD_MAX: usize = 128 << 10;
/// Bits that are flipped in a damaged byte: no command, section or answer has the resulting number.
const DAMAGE: u8 = 0x40;
const TRICKLE: Duration = Duration::from_millis(100);

/// The relay; ended when dropped.
#[derive(Debug)]
pub struct Relay {
    address: PathBuf,
    scheme: &'static str,
    orders: Sender<(Part, Behaviour)>,
    seen: Arc<Mutex<Vec<(Mark, Instant)>>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Waits at `here` for the source and connects it with `there`. The direction of the mark `hold` stops just before
    /// it. The descriptors of a guest whose memory is not sent are passed as `passing` says. A source that `resumes` continues
    /// in post-copy.
    ///
    /// # Errors
    /// When the relay's socket cannot be made.
    pub fn start(
        here: &Path,
        there: &Path,
        hold: Option<Mark>,
        alteration: Option<Alteration>,
        page_channels: PageChannelOptions,
        passing: Option<Passing>,
        resumes: bool,
    ) -> io::Result<Self> {
        let listener = listen(here)?;
        let (orders, receiver) = channel();
        let seen = Arc::default();
        let marks = Arc::clone(&seen);
        let there = there.to_owned();
        let cpr = match passing {
            Some(Passing::OnItsOwn(_)) => Some(listen(&cpr_socket(here))?),
            _ => None,
        };
        let in_place = matches!(passing, Some(Passing::OnMain(_)));
        let thread = std::thread::spawn(move || {
            if let (Some(Passing::OnItsOwn(message)), Some(cpr)) = (passing, cpr) {
                let Some(pair) = connect(&cpr, &cpr_socket(&there), &receiver) else { return };
                if pass_channel(&pair, message).is_err() {
                    return;
                }
            }
            let Some([forward, backward]) = join(&listener, &there, &receiver, passing) else { return };
            let page_channels = PageChannels::new(listener, there, page_channels);
            let mut relay = Connections {
                forward,
                backward,
                behaviour: Behaviour::Flows,
                hold,
                alteration,
                marks,
                reader: if resumes { StreamParser::resumed() } else { StreamParser::new(in_place) },
                page_channels,
            };
            relay.run(&receiver);
        });
        let scheme = if in_place { "local" } else { "unix" };
        Ok(Self { address: here.to_owned(), scheme, orders, seen, thread: Some(thread) })
    }

    /// The address for the source.
    pub fn uri(&self) -> String {
        format!("{}:{}", self.scheme, self.address.display())
    }

    /// The socket at which the relay waits for the source.
    pub fn address(&self) -> &Path {
        &self.address
    }

    /// Sets the behaviour, and holds nothing back any more.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.set_behaviour_of(Part::All, behaviour);
    }

    /// As [`set_behaviour`](Self::set_behaviour), for a part of the relay.
    pub fn set_behaviour_of(&self, part: Part, behaviour: Behaviour) {
        // Fails when both ends have closed and the relay has ended.
        let _ = self.orders.send((part, behaviour));
    }

    /// The marks seen so far, including held ones, with their times.
    pub fn seen(&self) -> Vec<(Mark, Instant)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether `mark` was seen.
    pub fn has_seen(&self, mark: Mark) -> bool {
        self.seen().iter().any(|(seen, _)| *seen == mark)
    }

    /// Waits until `mark` is seen.
    ///
    /// # Errors
    /// The marks seen, when `mark` is not seen by `deadline`.
    pub fn await_mark(&self, mark: Mark, deadline: Instant) -> Result<(), String> {
        while !self.has_seen(mark) {
            if Instant::now() > deadline {
                return Err(format!("{mark:?} does not appear; seen: {:?}", self.seen()));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.set_behaviour(Behaviour::Cut);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A socket at which the relay waits without blocking.
fn listen(at: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(at)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The two directions between the source and a new connection to the destination; `None` if one of them does not
/// connect.
fn join(
    listener: &UnixListener,
    there: &Path,
    orders: &Receiver<(Part, Behaviour)>,
    passing: Option<Passing>,
) -> Option<[Lane; 2]> {
    let (source, destination) = connect(listener, there, orders)?;
    if let Some(Passing::OnMain(message)) = passing {
        pass(&source, &destination, message).ok().filter(|goes_on| *goes_on)?;
    }
    lanes(source, destination).ok()
}

/// The source's next connection, and a new one to the destination, which both block for a limited time; `None` if one of them
/// does not connect.
fn connect(
    listener: &UnixListener,
    there: &Path,
    orders: &Receiver<(Part, Behaviour)>,
) -> Option<(UnixStream, UnixStream)> {
    let source = loop {
        match listener.accept() {
            Ok((source, _)) => break source,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
        if matches!(orders.try_recv(), Ok((_, Behaviour::Cut))) {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let destination = UnixStream::connect(there).ok()?;
    for stream in [&source, &destination] {
        stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    }
    Some((source, destination))
}

/// The two directions between two connections.
pub(super) fn lanes(source: UnixStream, destination: UnixStream) -> io::Result<[Lane; 2]> {
    for stream in [&source, &destination] {
        stream.set_nonblocking(true)?;
    }
    let (from, to) = (source.try_clone()?, destination.try_clone()?);
    Ok([Lane::new(from, to), Lane::new(destination, source)])
}

/// One direction.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) from: UnixStream,
    to: UnixStream,
    /// Bytes read and not relayed yet.
    pub(super) held: Vec<u8>,
    /// Offset of the first held byte.
    passed: u64,
    /// Offset from which on bytes are not relayed.
    stop: u64,
    /// Offset up to which the bytes are parsed.
    pub(super) known: u64,
    /// `from` has ended.
    ended: bool,
    /// The end was relayed to `to`, or `to` accepts no more.
    pub(super) closed: bool,
}

impl Lane {
    fn new(from: UnixStream, to: UnixStream) -> Self {
        Self { from, to, held: Vec::new(), passed: 0, stop: u64::MAX, known: 0, ended: false, closed: false }
    }

    pub(super) fn wants(&self) -> PollFlags {
        if self.ended || self.held.len() >= HELD_MAX { PollFlags::empty() } else { PollFlags::POLLIN }
    }

    /// Reads available bytes; true if there were any.
    pub(super) fn read(&mut self) -> bool {
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

    /// Relays up to `most` of the parsed bytes, and the end once all bytes are relayed.
    pub(super) fn write(&mut self, most: usize) {
        // After the end no further byte can decide what the last bytes are.
        let limit = if self.ended { self.stop } else { self.stop.min(self.known) };
        let free = usize::try_from(limit - self.passed).unwrap_or(usize::MAX);
        let chunk = free.min(self.held.len()).min(most);
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

    /// Whether the receiver has closed the connection before the end.
    pub(super) fn is_refused(&self) -> bool {
        self.closed && !self.ended
    }

    /// Closes the connection for both ends.
    pub(super) fn cut(&mut self) {
        for stream in [&self.from, &self.to] {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.held.clear();
        (self.ended, self.closed) = (true, true);
    }

    /// Changes the first held byte.
    fn damage(&mut self) {
        let at = self.stop.checked_sub(self.passed).and_then(|at| usize::try_from(at).ok());
        if let Some(byte) = at.and_then(|at| self.held.get_mut(at)) {
            *byte ^= DAMAGE;
        }
    }

    /// The held bytes that are not parsed yet.
    fn unknown(&mut self) -> &mut [u8] {
        let from = usize::try_from(self.known.saturating_sub(self.passed)).unwrap_or(usize::MAX);
        self.held.get_mut(from..).unwrap_or_default()
    }
}

struct Connections {
    forward: Lane,
    backward: Lane,
    behaviour: Behaviour,
    hold: Option<Mark>,
    alteration: Option<Alteration>,
    marks: Arc<Mutex<Vec<(Mark, Instant)>>>,
    reader: StreamParser,
    page_channels: PageChannels,
}

impl Connections {
    fn run(&mut self, orders: &Receiver<(Part, Behaviour)>) {
        let mut trickled = Instant::now();
        loop {
            let mut polled = vec![
                PollFd::new(self.forward.from.as_fd(), self.forward.wants()),
                PollFd::new(self.backward.from.as_fd(), self.backward.wants()),
            ];
            self.page_channels.await_too(&mut polled);
            let busy = !(self.forward.ended && self.backward.ended);
            let _ = poll(&mut polled, PollTimeout::from(if busy { 1_u8 } else { 10 }));
            loop {
                match orders.try_recv() {
                    Ok((part, behaviour)) => self.set_behaviour(part, behaviour),
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
                }
            }
            let most = match self.behaviour {
                Behaviour::Flows | Behaviour::Damaged => usize::MAX,
                Behaviour::Trickles(bytes) if trickled.elapsed() >= TRICKLE => {
                    trickled = Instant::now();
                    bytes
                }
                Behaviour::Stalls | Behaviour::Trickles(_) | Behaviour::Cut => 0,
            };
            if self.behaviour != Behaviour::Stalls {
                if self.forward.read() {
                    self.look_forward();
                }
                if self.backward.read() {
                    self.look_backward();
                }
                self.forward.write(most);
                self.backward.write(most);
            }
            // Relay the page channels after reading the main channel: data that was sent on them before a mark is then
            // relayed with the mark.
            self.page_channels.pass(most);
            if self.forward.closed && self.backward.closed && self.page_channels.is_over() {
                return;
            }
        }
    }

    fn set_behaviour(&mut self, part: Part, behaviour: Behaviour) {
        self.hold = None;
        if behaviour == Behaviour::Damaged {
            [&mut self.forward, &mut self.backward].into_iter().for_each(Lane::damage);
        }
        (self.forward.stop, self.backward.stop) = (u64::MAX, u64::MAX);
        if let Part::All | Part::Main = part {
            self.behaviour = behaviour;
            if behaviour == Behaviour::Cut {
                self.forward.cut();
                self.backward.cut();
            }
        }
        self.page_channels.set_behaviour(part, behaviour);
    }

    fn notice(&mut self, mark: Mark) -> bool {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if !marks.iter().any(|(seen, _)| *seen == mark) {
            marks.push((mark, Instant::now()));
        }
        self.hold == Some(mark)
    }

    fn look_forward(&mut self) {
        loop {
            if self.reader.is_searched() {
                self.alter();
            }
            let Some((len, mark)) = self.reader.step(self.forward.unknown()) else { return };
            if mark.is_some_and(|mark| self.notice(mark)) {
                self.forward.stop = self.forward.stop.min(self.forward.known);
            }
            self.forward.known += len as u64;
        }
    }

    fn alter(&mut self) {
        let Some(Alteration { find, at, put }) = self.alteration else { return };
        let bytes = self.forward.unknown();
        let found = bytes.windows(find.len()).position(|window| window == find);
        if let Some(place) = found.and_then(|found| bytes.get_mut(found + at..found + at + put.len())) {
            place.copy_from_slice(put);
            self.alteration = None;
        }
    }

    fn look_backward(&mut self) {
        while let Some((len, mark)) = parse_reply(self.backward.unknown()) {
            if mark.is_some_and(|mark| self.notice(mark)) {
                self.backward.stop = self.backward.stop.min(self.backward.known);
            }
            self.backward.known += len as u64;
        }
    }
}
