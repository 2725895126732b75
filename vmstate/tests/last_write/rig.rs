//! One migration attempt over real sockets, whose channels differ in speed.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use vmstate::channel::{Channel, Listener, MonotonicClock, SocketChannel};
use vmstate::codec::{Outbox, PageRun};
use vmstate::migrate::destination::{self, Arrival, DestinationOptions, Incoming};
use vmstate::migrate::multifd::{Compression, Receivers, Senders};
use vmstate::migrate::source::{self, Departure, Outgoing, SourceOptions};
use vmstate::migrate::{Control, Parameters};
use vmstate::ram::{GuestRam, copied_in, copied_out};
use vmstate::section::Sections;
use vmstate_lab::random::Random;
use vmstate_lab::wait::TIMEOUT;

use crate::guest::{Arrived, Guest};

/// How pages are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pages {
    /// On the main channel.
    Main,
    /// On the main channel, as differences.
    Deltas,
    /// On this many page channels.
    PageChannels(u8, Compression),
}

/// The connection for pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire {
    pub(crate) pages: Pages,
    /// True if the channels have no descriptor, so that pages are copied.
    pub(crate) copies: bool,
}

/// The results of both sides.
pub(crate) struct Ended {
    pub(crate) source: Departure,
    /// `None` if the source had not begun its stream.
    pub(crate) destination: Option<Arrival>,
    pub(crate) arrived: bool,
}

/// Ends the wait for connections when it is dropped, also by a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A channel that sometimes waits before it receives.
struct Uneven {
    channel: SocketChannel,
    copies: bool,
    stands: Option<Random>,
}

impl Uneven {
    fn stand(&mut self) {
        if let Some(random) = &mut self.stands
            && random.below(8) == 0
        {
            thread::sleep(Duration::from_micros(random.below(1500)));
        }
    }
}

impl Channel for Uneven {
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        self.channel.send(bytes, timeout)
    }

    fn send_outbox(&mut self, outbox: &Outbox, ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        if self.copies {
            return copied_out(ram, outbox, |bytes| self.channel.send(bytes, timeout));
        }
        self.channel.send_outbox(outbox, ram, timeout)
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        self.stand();
        self.channel.receive(into, timeout)
    }

    fn receive_pages(&mut self, runs: &[PageRun], ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        self.stand();
        if self.copies {
            return copied_in(ram, runs, |into| self.channel.receive(into, timeout));
        }
        self.channel.receive_pages(runs, ram, timeout)
    }
}

/// The parts of a source and a destination for one attempt.
pub(crate) struct Rig {
    pub(crate) wire: Wire,
    pub(crate) parameters: Parameters,
    pub(crate) control: Control,
    pub(crate) seed: u64,
}

impl Rig {
    /// Runs both sides to their end.
    pub(crate) fn run(&self, here: &Guest, there: &Guest) -> Ended {
        let directory = tempfile::tempdir().unwrap();
        let listener = &Listener::unix(directory.path().join("listener")).unwrap();
        let connect = || SocketChannel::connect_unix(directory.path().join("listener"), TIMEOUT, &|| true).unwrap();
        let over = &AtomicBool::new(false);
        thread::scope(|scope| {
            let arriving = scope.spawn(|| self.arrive(listener, there, &|| !over.load(Ordering::SeqCst)));
            let source_ends = Over(over);
            let source = self.depart(connect, here);
            drop(source_ends);
            let (destination, arrived) = arriving.join().unwrap();
            Ended { source, destination, arrived }
        })
    }

    fn uneven(&self, channel: SocketChannel, number: Option<u64>) -> Uneven {
        let stands = number.map(|number| Random::new(self.seed.wrapping_add(number)));
        Uneven { channel, copies: self.wire.copies, stands }
    }

    fn arrive(&self, listener: &Listener, guest: &Guest, go_on: &dyn Fn() -> bool) -> (Option<Arrival>, bool) {
        let Ok(main) = listener.accept_source(go_on) else { return (None, false) };
        let receivers = &Receivers::new();
        let mut options = DestinationOptions::new("toy");
        options.page_channels = Some(receivers.clone());
        let mut machine = Arrived::default();
        let arrival = thread::scope(|scope| {
            let workers = scope.spawn(|| {
                for number in 1.. {
                    let Ok(channel) = listener.accept_pages(&|| !receivers.is_over()) else { break };
                    let mut channel = self.uneven(channel, Some(number));
                    scope.spawn(move || receivers.worker().run(&mut channel, &*guest.memory));
                }
            });
            let incoming = Incoming {
                channel: &mut self.uneven(main, Some(0)),
                clock: &MonotonicClock::new(),
                machine: &mut machine,
                sections: &mut Sections::new(),
                ram: &*guest.memory,
            };
            let arrival = destination::run(incoming, &options, &Control::default());
            receivers.close();
            workers.join().unwrap();
            arrival
        });
        (Some(arrival), machine.runs)
    }

    fn depart(&self, connect: impl Fn() -> SocketChannel, guest: &Guest) -> Departure {
        let mut main = self.uneven(connect(), None);
        let mut options = SourceOptions::new("toy");
        let (channels, compression) = match self.wire.pages {
            Pages::PageChannels(channels, compression) => (channels, compression),
            Pages::Main | Pages::Deltas => (0, Compression::None),
        };
        let senders = &Senders::new(channels, compression);
        options.page_channels = (channels > 0).then(|| senders.clone());
        let mut parameters = self.parameters;
        parameters.xbzrle = matches!(self.wire.pages, Pages::Deltas);
        self.control.set_parameters(parameters).unwrap();
        let log = &mut guest.memory.log();
        thread::scope(|scope| {
            for id in 0..channels {
                let mut channel = self.uneven(connect(), None);
                scope.spawn(move || senders.worker(id).run(&mut channel, guest));
            }
            let outgoing = Outgoing {
                channel: &mut main,
                clock: &MonotonicClock::new(),
                machine: &mut guest.clone(),
                sections: &mut Sections::new(),
                ram: guest,
                log,
            };
            source::run(outgoing, &options, &self.control)
        })
    }
}
