//! The page channels of a wire: the connections that a source makes after its main channel.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;

use nix::poll::PollFd;

use super::PATIENCE;
use super::wire::{Lane, Part, Wire, lanes};

/// Of a page channel's opening, a byte of the uuid, which follows magic and version.
const UUID: usize = 8;

/// What is odd about the page channels.
#[derive(Clone, Copy, Debug, Default)]
pub struct Habits {
    /// The one of this number reaches the destination only once the test has given its first order.
    pub late: Option<usize>,
    /// In place of the one of this number a channel of another migration comes.
    pub stray: Option<usize>,
}

/// The page channels, in the order in which they came.
#[derive(Debug)]
pub(super) struct Beside {
    listener: UnixListener,
    there: PathBuf,
    habits: Habits,
    /// Number of the one that comes late, and the source's end of it.
    waiting: Option<(usize, UnixStream)>,
    channels: Vec<Channel>,
}

#[derive(Debug)]
struct Channel {
    number: usize,
    lanes: [Lane; 2],
    wire: Wire,
    is_stray: bool,
}

impl Beside {
    pub(super) fn new(listener: UnixListener, there: PathBuf, habits: Habits) -> Self {
        Self { listener, there, habits, waiting: None, channels: Vec::new() }
    }

    /// Adds what is to be waited for.
    pub(super) fn await_too<'a>(&'a self, polled: &mut Vec<PollFd<'a>>) {
        let open = self.channels.iter().filter(|channel| channel.wire == Wire::Flows);
        polled.extend(open.flat_map(|channel| &channel.lanes).map(|lane| PollFd::new(lane.from.as_fd(), lane.wants())));
    }

    /// Takes in who has come, and passes on what has.
    pub(super) fn pass(&mut self, most: usize) {
        while let Ok((source, _)) = self.listener.accept() {
            let number = self.channels.len() + usize::from(self.waiting.is_some());
            if self.habits.late == Some(number) {
                self.waiting = Some((number, source));
            } else {
                self.connect(number, source);
            }
        }
        for channel in self.channels.iter_mut().filter(|channel| channel.wire != Wire::Stalls) {
            channel.pass(most);
        }
    }

    /// From now on a part of the wire behaves so.
    pub(super) fn obey(&mut self, part: Part, wire: Wire) {
        self.habits.late = None;
        if let Some((number, source)) = self.waiting.take() {
            self.connect(number, source);
        }
        for channel in &mut self.channels {
            if part == Part::All || part == Part::Pages(channel.number) {
                channel.wire = wire;
                if part != Part::All && matches!(wire, Wire::Cut | Wire::Stalls) {
                    channel.drain();
                }
            }
            if channel.wire == Wire::Cut {
                channel.lanes.iter_mut().for_each(Lane::cut);
            }
        }
    }

    /// True once both directions of each are over.
    pub(super) fn is_over(&self) -> bool {
        self.channels.iter().flat_map(|channel| &channel.lanes).all(|lane| lane.closed)
    }

    fn connect(&mut self, number: usize, source: UnixStream) {
        let Ok(destination) = UnixStream::connect(&self.there) else { return };
        let Ok(mut lanes) = lanes(source, destination) else { return };
        lanes.iter_mut().for_each(|lane| lane.known = u64::MAX);
        self.channels.push(Channel { number, lanes, wire: Wire::Flows, is_stray: self.habits.stray == Some(number) });
    }
}

impl Channel {
    fn pass(&mut self, most: usize) {
        for lane in &mut self.lanes {
            lane.read();
        }
        let [forward, _] = &mut self.lanes;
        if self.is_stray
            && let Some(byte) = forward.held.get_mut(UUID)
        {
            *byte ^= 0xff;
            self.is_stray = false;
        }
        // An opening goes whole, so that it is known whose it is.
        let most = if self.is_stray { 0 } else { most };
        for lane in &mut self.lanes {
            lane.write(most);
        }
        if self.lanes[0].is_refused() {
            self.lanes.iter_mut().for_each(Lane::cut);
        }
    }

    /// Passes on what was sent until now: it was on no way that is cut.
    fn drain(&mut self) {
        let [forward, _] = &mut self.lanes;
        let deadline = Instant::now() + PATIENCE;
        while !forward.closed && (forward.read() || !forward.held.is_empty()) && Instant::now() < deadline {
            forward.write(usize::MAX);
        }
    }
}
