//! The page channels of a relay: the connections that a source makes after its main channel.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;

use nix::poll::PollFd;

use super::TIMEOUT;
use super::relay::{Behaviour, Lane, Part, lanes};

/// Offset of a byte of the uuid in a page channel's opening, after magic and version.
const UUID: usize = 8;

/// Deviations of the page channels.
#[derive(Clone, Copy, Debug, Default)]
pub struct PageChannelOptions {
    /// Number of the page channel that reaches the destination only after the test's first order.
    pub late: Option<usize>,
    /// Number of the page channel that is replaced by one of another migration.
    pub stray: Option<usize>,
}

/// The page channels, in the order in which they connected.
#[derive(Debug)]
pub(super) struct PageChannels {
    listener: UnixListener,
    there: PathBuf,
    options: PageChannelOptions,
    /// Number of the late page channel, and the source's end of it.
    waiting: Option<(usize, UnixStream)>,
    channels: Vec<Channel>,
}

#[derive(Debug)]
struct Channel {
    number: usize,
    lanes: [Lane; 2],
    behaviour: Behaviour,
    is_stray: bool,
}

impl PageChannels {
    pub(super) fn new(listener: UnixListener, there: PathBuf, options: PageChannelOptions) -> Self {
        Self { listener, there, options, waiting: None, channels: Vec::new() }
    }

    /// Adds the descriptors to wait for.
    pub(super) fn await_too<'a>(&'a self, polled: &mut Vec<PollFd<'a>>) {
        let open = self.channels.iter().filter(|channel| channel.behaviour == Behaviour::Flows);
        polled.extend(open.flat_map(|channel| &channel.lanes).map(|lane| PollFd::new(lane.from.as_fd(), lane.wants())));
    }

    /// Accepts new connections, and relays data on the accepted ones.
    pub(super) fn pass(&mut self, most: usize) {
        while let Ok((source, _)) = self.listener.accept() {
            let number = self.channels.len() + usize::from(self.waiting.is_some());
            if self.options.late == Some(number) {
                self.waiting = Some((number, source));
            } else {
                self.connect(number, source);
            }
        }
        for channel in self.channels.iter_mut().filter(|channel| channel.behaviour != Behaviour::Stalls) {
            channel.pass(most);
        }
    }

    /// Sets the behaviour of a part of the relay.
    pub(super) fn set_behaviour(&mut self, part: Part, behaviour: Behaviour) {
        self.options.late = None;
        if let Some((number, source)) = self.waiting.take() {
            self.connect(number, source);
        }
        for channel in &mut self.channels {
            if part == Part::All || part == Part::Pages(channel.number) {
                channel.behaviour = behaviour;
                if part != Part::All && matches!(behaviour, Behaviour::Cut | Behaviour::Stalls) {
                    channel.drain();
                }
            }
            if channel.behaviour == Behaviour::Cut {
                channel.lanes.iter_mut().for_each(Lane::cut);
            }
        }
    }

    /// Whether both directions of each connection have ended.
    pub(super) fn is_over(&self) -> bool {
        self.channels.iter().flat_map(|channel| &channel.lanes).all(|lane| lane.closed)
    }

    fn connect(&mut self, number: usize, source: UnixStream) {
        let Ok(destination) = UnixStream::connect(&self.there) else { return };
        let Ok(mut lanes) = lanes(source, destination) else { return };
        lanes.iter_mut().for_each(|lane| lane.known = u64::MAX);
        self.channels.push(Channel {
            number,
            lanes,
            behaviour: Behaviour::Flows,
            is_stray: self.options.stray == Some(number),
        });
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
        // Relay an opening completely, so that its owner is known.
        let most = if self.is_stray { 0 } else { most };
        for lane in &mut self.lanes {
            lane.write(most);
        }
        if self.lanes[0].is_refused() {
            self.lanes.iter_mut().for_each(Lane::cut);
        }
    }

    /// Relays data that was sent until now: it was not on a connection that is cut.
    fn drain(&mut self) {
        let [forward, _] = &mut self.lanes;
        let deadline = Instant::now() + TIMEOUT;
        while !forward.closed && (forward.read() || !forward.held.is_empty()) && Instant::now() < deadline {
            forward.write(usize::MAX);
        }
    }
}
