//! The hosts of disk and card: what lies behind the device, and can be compared after it has worked.

use std::collections::VecDeque;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use minivmm::config::{Rate, RateLimits};
use minivmm::devices::virtio::blk::{Blk, Image};
use minivmm::devices::virtio::net::{Backend, Directions, Net, Offloads};
use minivmm::devices::virtio::{Limiter, Model};
use rustix::fs::MemfdFlags;

/// What lies behind a device.
pub(super) trait Host: Sized {
    type Model: Model;

    /// A device on this host.
    fn model(&self) -> Self::Model;

    /// Another host with the same.
    fn fork(&self) -> Self;

    /// What a device has done to it.
    fn contents(&self) -> Vec<u8>;

    /// Time goes on, for the rate limits.
    fn advance(&self, by: Duration);

    /// Something happens without the guest.
    fn act(&self, operand: u16);

    /// True if the device holds something of the host's, which is gone when the guest resets it.
    fn is_held(&self) -> bool {
        false
    }

    /// What the device holds, or would hold, is gone.
    fn forget_held(&self) {}

    /// From now on, what it was sent counts.
    fn begin(&self) {}
}

/// Milliseconds since the start.
#[derive(Clone, Default)]
struct Clock(Arc<Mutex<Duration>>);

impl Clock {
    fn advance(&self, by: Duration) {
        let mut now = self.0.lock().unwrap();
        *now = now.saturating_add(by);
    }

    /// Rates at which a single request has to rest.
    fn limiter(&self) -> Limiter {
        let rate = |per_second: u64| {
            let per_second = per_second.try_into().expect("not zero");
            Some(Rate { per_second, burst: per_second })
        };
        let (start, time) = (Instant::now(), self.0.clone());
        let limits = RateLimits { bytes: rate(100 << 10), operations: rate(10) };
        Limiter::with_clock(limits, Box::new(move || start + (*time.lock().unwrap()).min(Duration::from_secs(1 << 30))))
    }
}

/// A disk image in memory.
pub(super) struct Disk {
    file: File,
    read_only: bool,
    clock: Option<Clock>,
}

impl Disk {
    /// Bit 0: limited, and so large that a request is more than one piece of work; bit 1: read-only.
    pub(super) fn new(kind: u8) -> Self {
        let limited = kind & 1 != 0;
        let contents: Vec<u8> = (0..if limited { 1 << 20 } else { 64 << 10 }).map(|at: u32| (at / 512) as u8).collect();
        Self { file: file(&contents), read_only: kind & 2 != 0, clock: limited.then(Clock::default) }
    }
}

fn file(contents: &[u8]) -> File {
    let file = File::from(rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.write_all_at(contents, 0).expect("memory");
    file
}

impl Host for Disk {
    type Model = Blk;

    fn model(&self) -> Blk {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let image = Image::open(Path::new(&path), self.read_only).expect("an open file");
        let disk = Blk::new(Arc::new(image));
        match &self.clock {
            None => disk,
            Some(clock) => disk.within(clock.limiter()),
        }
    }

    fn fork(&self) -> Self {
        let clock = self.clock.as_ref().map(|_| Clock::default());
        Self { file: file(&self.contents()), read_only: self.read_only, clock }
    }

    fn contents(&self) -> Vec<u8> {
        let mut contents = vec![0; self.file.metadata().expect("an open file").len() as usize];
        self.file.read_exact_at(&mut contents, 0).expect("memory");
        contents
    }

    fn advance(&self, by: Duration) {
        self.clock.iter().for_each(|clock| clock.advance(by));
    }

    fn act(&self, operand: u16) {
        self.advance(Duration::from_millis(operand.into()));
    }
}

/// A network that keeps frames for the card, and counts what the card sends.
pub(super) struct Card {
    cable: Arc<Mutex<Cable>>,
    clock: Option<Clock>,
}

#[derive(Clone, Default)]
struct Cable {
    /// For the guest.
    frames: VecDeque<Vec<u8>>,
    /// The first of them was given to the card. It stays here until the card asks for another: the card may be waiting for
    /// buffers, and a network does not lose its frame when the guest moves.
    given: bool,
    sent: DefaultHasher,
    offloads: u64,
    can: u64,
}

impl Card {
    /// Bit 0: limited; bit 1: frames come finished.
    pub(super) fn new(kind: u8) -> Self {
        let can = if kind & 2 == 0 { Offloads::ALL.0 } else { 0 };
        let cable = Cable { can, ..Cable::default() };
        Self { cable: Arc::new(Mutex::new(cable)), clock: (kind & 1 != 0).then(Clock::default) }
    }
}

impl Host for Card {
    type Model = Net<Plug>;

    fn model(&self) -> Self::Model {
        let card = Net::new(Plug(Arc::clone(&self.cable)), [2, 0, 0, 0, 0, 1]);
        match &self.clock {
            None => card,
            Some(clock) => card.within(Directions { receive: clock.limiter(), transmit: clock.limiter() }),
        }
    }

    fn fork(&self) -> Self {
        let cable = Cable { given: false, offloads: 0, ..self.cable.lock().unwrap().clone() };
        Self { cable: Arc::new(Mutex::new(cable)), clock: self.clock.as_ref().map(|_| Clock::default()) }
    }

    fn contents(&self) -> Vec<u8> {
        let cable = self.cable.lock().unwrap();
        [cable.sent.finish(), cable.offloads].map(u64::to_le_bytes).concat()
    }

    fn advance(&self, by: Duration) {
        self.clock.iter().for_each(|clock| clock.advance(by));
    }

    fn act(&self, len: u16) {
        let mut cable = self.cable.lock().unwrap();
        let number = cable.frames.len() as u8;
        cable.frames.push_back(vec![number; len.into()]);
    }

    fn is_held(&self) -> bool {
        self.cable.lock().unwrap().given
    }

    fn forget_held(&self) {
        let mut cable = self.cable.lock().unwrap();
        cable.given = false;
        cable.frames.pop_front();
    }

    fn begin(&self) {
        self.cable.lock().unwrap().sent = DefaultHasher::new();
    }
}

/// The card's end of the cable.
pub(super) struct Plug(Arc<Mutex<Cable>>);

impl Backend for Plug {
    fn fd(&self) -> RawFd {
        -1
    }

    fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        let mut cable = self.0.lock().unwrap();
        if std::mem::take(&mut cable.given) {
            cable.frames.pop_front();
        }
        let next = cable.frames.front().ok_or(io::ErrorKind::WouldBlock)?;
        let len = next.len().min(frame.len());
        frame[..len].copy_from_slice(&next[..len]);
        cable.given = true;
        Ok(len)
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        frame.hash(&mut self.0.lock().unwrap().sent);
        Ok(())
    }

    fn offloads(&self) -> Offloads {
        Offloads(self.0.lock().unwrap().can)
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.0.lock().unwrap().offloads = offloads.0;
        Ok(())
    }
}
