//! One migration: a destination that listens, a source that connects, and a thread for each page channel of both.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use vmstate::channel::{Channel, Listener, MonotonicClock, SocketChannel};
use vmstate::migrate::destination::{self, Arrival, DestinationOptions, Incoming};
use vmstate::migrate::multifd::{Compression, Receivers, Senders};
use vmstate::migrate::source::{self, Departure, Outgoing, SourceOptions};
use vmstate::migrate::{Control, Phase, SourcePhase};
use vmstate::section::Sections;

use crate::guest::{Guest, Log};

const CONNECT: Duration = Duration::from_secs(10);
/// How long a user waits without progress before cancelling.
const WHILE: Duration = Duration::from_millis(100);

/// Opens stray connections and keeps them open.
type Strays = Box<dyn FnOnce() -> Vec<UnixStream> + Send + Sync>;

/// The parts of a migration; tests change what they are about.
pub(crate) struct Rig {
    directory: tempfile::TempDir,
    listener: Listener,
    channels: u8,
    compression: Compression,
    /// The user cancels at this sync of the dirty log.
    pub(crate) cancels_at: Option<u32>,
    /// This channel of the source breaks after this many bytes.
    pub(crate) cuts: Option<(u8, u64)>,
    /// The first page channel that sends this many bytes in the pause breaks after them.
    pub(crate) cuts_in_pause: Option<u64>,
    /// Instead of breaking, the channel swallows everything after that, and some time later the user cancels.
    pub(crate) swallows: bool,
    kept: Arc<Mutex<Vec<SocketChannel>>>,
    pub(crate) takes_channels: bool,
    pub(crate) main_comes_last: bool,
    /// Stray connections to the destination, opened when the rounds begin.
    pub(crate) strays: Option<Strays>,
}

/// The result of a run.
pub(crate) struct Ended {
    pub(crate) source: Departure,
    /// `None` if the source failed before it had begun its stream.
    pub(crate) destination: Option<Arrival>,
    /// The guest of the source.
    pub(crate) guest: Guest,
    pub(crate) arrived: Guest,
    /// Bytes that the source sent on its main channel.
    pub(crate) main_bytes: u64,
}

/// A channel that counts bytes, and breaks after a number of them, or swallows what follows.
struct Counted {
    channel: Option<SocketChannel>,
    left: u64,
    pause: Option<InPause>,
    /// Keeps the connection open for a channel that swallows.
    swallows: Option<Arc<Mutex<Vec<SocketChannel>>>>,
    sent: Arc<AtomicU64>,
}

/// Decides which channel breaks in the pause.
struct InPause {
    guest: Guest,
    left: u64,
    /// True once one of the channels has broken.
    is_cut: Arc<AtomicBool>,
}

impl InPause {
    /// How many of `len` bytes are sent now; 0 if the channel is broken.
    fn most(&self, len: u64) -> u64 {
        if self.guest.is_running() || (self.left == 0 && self.is_cut.swap(true, Ordering::SeqCst)) {
            return len;
        }
        self.left.min(len)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(kept) = &self.swallows {
            kept.lock().unwrap().extend(self.channel.take());
        }
    }
}

impl Channel for Counted {
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        let most = self.left.min(bytes.len() as u64);
        let most = self.pause.as_ref().map_or(most, |pause| pause.most(most));
        if let Some(pause) = self.pause.as_mut().filter(|pause| !pause.guest.is_running()) {
            pause.left = pause.left.saturating_sub(most);
        }
        // A broken channel stays broken.
        self.left = if most == 0 { 0 } else { self.left };
        let most = most as usize;
        match most {
            0 if self.swallows.is_some() => return Ok(bytes.len()),
            0 => self.channel = None,
            _ => {}
        }
        let channel = self.channel.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        let count = channel.send(&bytes[..most], timeout)?;
        self.left -= count as u64;
        self.sent.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        self.channel.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.receive(into, timeout)
    }
}

impl Rig {
    /// Without page channels, the main channel sends the pages.
    pub(crate) fn new(channels: u8, compression: Compression) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            listener: Listener::unix(directory.path().join("listener")).unwrap(),
            directory,
            channels,
            compression,
            cancels_at: None,
            cuts: None,
            cuts_in_pause: None,
            swallows: false,
            kept: Arc::default(),
            takes_channels: true,
            main_comes_last: false,
            strays: None,
        }
    }

    /// The path at which the destination listens.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("listener")
    }

    pub(crate) fn run(mut self, guest: &Guest) -> Ended {
        let (arrived, strays) = (Guest::waiting(), self.strays.take());
        let over = &AtomicBool::new(false);
        let (source, destination, main_bytes) = thread::scope(|scope| {
            let destination = scope.spawn(|| self.arrive(&arrived, &|| !over.load(Ordering::SeqCst)));
            let (source, main_bytes) = self.depart(guest, strays);
            over.store(true, Ordering::SeqCst);
            (source, destination.join().unwrap(), main_bytes)
        });
        Ended { source, destination, guest: guest.clone(), arrived, main_bytes }
    }

    fn arrive(&self, guest: &Guest, go_on: &dyn Fn() -> bool) -> Option<Arrival> {
        let mut main = self.listener.accept_source(go_on).ok()?;
        let receivers = Receivers::new();
        let mut options = DestinationOptions::new("toy");
        options.page_channels = self.takes_channels.then(|| receivers.clone());
        thread::scope(|scope| {
            let workers = scope.spawn(|| {
                while let Ok(mut channel) = self.listener.accept_pages(&|| !receivers.is_over()) {
                    let receivers = &receivers;
                    scope.spawn(move || {
                        if let Err(refused) = receivers.worker().run(&mut channel, &*guest.memory) {
                            println!("refused: {refused}");
                        }
                    });
                }
            });
            let incoming = Incoming {
                channel: &mut main,
                clock: &MonotonicClock::new(),
                machine: &mut guest.clone(),
                sections: &mut Sections::new(),
                ram: &*guest.memory,
            };
            let arrival = destination::run(incoming, &options, &Control::default());
            receivers.close();
            workers.join().unwrap();
            Some(arrival)
        })
    }

    fn depart(&self, guest: &Guest, strays: Option<Strays>) -> (Departure, u64) {
        let connect = || SocketChannel::connect_unix(self.path(), CONNECT, &|| true).unwrap();
        let sent = Arc::<AtomicU64>::default();
        let counted = |channel, left, sent| Counted { channel: Some(channel), left, pause: None, swallows: None, sent };
        let main = || counted(connect(), u64::MAX, Arc::clone(&sent));
        let early = (!self.main_comes_last).then(&main);
        let channels: Vec<_> = (0..self.channels).map(|_| connect()).collect();
        let mut main = early.unwrap_or_else(main);
        let senders = Senders::new(self.channels, self.compression);
        let mut options = SourceOptions::new("toy");
        options.page_channels = (self.channels > 0).then(|| senders.clone());
        let control = Control::default();
        // Independent of other load on the host.
        control.set_downtime_limit(Duration::from_secs(10));
        let kept = Arc::new(Mutex::new((strays, Vec::new())));
        let keeps = Arc::clone(&kept);
        let cancels = self.swallows.then(|| control.clone());
        let cancelled = if self.cuts_in_pause.is_some() { SourcePhase::SwitchOver } else { SourcePhase::Rounds };
        control.watch(move |phase| {
            if let (true, Some(control)) = (phase == Phase::Source(cancelled), cancels.clone()) {
                thread::spawn(move || {
                    thread::sleep(WHILE);
                    control.cancel();
                });
            }
            let (strays, kept) = &mut *keeps.lock().unwrap();
            if let (Phase::Source(SourcePhase::Rounds), Some(strays)) = (phase, strays.take()) {
                *kept = strays();
            }
        });
        let log = &mut Log::new(&guest.memory, self.cancels_at.map(|at| (at, control.clone())));
        let departure = thread::scope(|scope| {
            let is_cut = Arc::<AtomicBool>::default();
            for (id, channel) in (0..).zip(channels) {
                let worker = senders.worker(id);
                if self.cuts.is_none_or(|(cut, _)| cut != id) && self.cuts_in_pause.is_none() {
                    let mut channel = channel;
                    scope.spawn(move || worker.run(&mut channel, &*guest.memory));
                    continue;
                }
                let left = self.cuts.filter(|(cut, _)| *cut == id).map_or(u64::MAX, |(_, left)| left);
                let mut channel = counted(channel, left, Arc::default());
                channel.swallows = self.swallows.then(|| Arc::clone(&self.kept));
                channel.pause =
                    self.cuts_in_pause.map(|left| InPause { guest: guest.clone(), left, is_cut: Arc::clone(&is_cut) });
                scope.spawn(move || worker.run(&mut channel, &*guest.memory));
            }
            let outgoing = Outgoing {
                channel: &mut main,
                clock: &MonotonicClock::new(),
                machine: &mut guest.clone(),
                sections: &mut Sections::new(),
                ram: &*guest.memory,
                log,
            };
            source::run(outgoing, &options, &control)
        });
        (departure, sent.load(Ordering::Relaxed))
    }
}
