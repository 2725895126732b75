//! The host side of disk and network card: the backend of a device, whose content can be compared after the device has
//! worked.

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
use rustix::fs::{MemfdFlags, SealFlags};

/// The backend of a device.
pub(super) trait Host: Sized {
    type Model: Model;

    /// Whether the device uses the buffers of this queue for data from the host: the driver need not notify it unless
    /// the device [holds](Self::is_held) some data.
    fn fills(_queue: u64) -> bool {
        false
    }

    /// A device with this backend.
    fn model(&self) -> Self::Model;

    /// A copy of the backend.
    fn fork(&self) -> Self;

    /// Replaces `contents` by the state that devices have changed.
    fn look(&self, contents: &mut Vec<u8>);

    /// Advances the clock of the rate limits.
    fn advance(&self, by: Duration);

    /// Does something that the guest did not ask for.
    fn act(&self, operand: u16);

    /// Whether the device holds data of the host that is lost when the guest resets the device.
    fn is_held(&self) -> bool {
        false
    }

    /// Drops the data that the device holds or would hold.
    fn forget_held(&self) {}

    /// Starts the record of what the device sends.
    fn begin(&self) {}
}

/// Time since the start, which only [`Host::advance`] changes.
#[derive(Clone, Default)]
struct Clock(Arc<Mutex<Duration>>);

impl Clock {
    fn advance(&self, by: Duration) {
        let mut now = self.0.lock().unwrap();
        *now = now.saturating_add(by);
    }

    /// A limiter with rates so low that the device must pause within a single request.
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
    sealed: bool,
    clock: Option<Clock>,
}

/// Sizes of a disk, and of one so large that a request takes more than one piece of work.
const SMALL: u32 = 64 << 10;
const LARGE: u32 = 320 << 10;

impl Disk {
    /// A disk by the bits of `kind`: bit 0: rate limits, and large; bit 1: read-only; bit 2: writes fail.
    pub(super) fn new(kind: u8) -> Self {
        let limited = kind & 1 != 0;
        let sectors = 0..if limited { LARGE } else { SMALL } / 512;
        let contents: Vec<_> = sectors.map(|sector| [sector as u8; 512]).collect();
        Self::with(contents.as_flattened(), kind & 2 != 0, kind & 4 != 0, limited.then(Clock::default))
    }

    fn with(contents: &[u8], read_only: bool, sealed: bool, clock: Option<Clock>) -> Self {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("disk", flags).expect("a file in memory"));
        file.write_all_at(contents, 0).expect("memory");
        if sealed {
            rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE).expect("a file that nobody has mapped");
        }
        Self { file, read_only, sealed, clock }
    }
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
        let mut contents = Vec::new();
        self.look(&mut contents);
        Self::with(&contents, self.read_only, self.sealed, self.clock.as_ref().map(|_| Clock::default()))
    }

    fn look(&self, contents: &mut Vec<u8>) {
        contents.resize(self.file.metadata().expect("an open file").len() as usize, 0);
        self.file.read_exact_at(contents, 0).expect("memory");
    }

    fn advance(&self, by: Duration) {
        self.clock.iter().for_each(|clock| clock.advance(by));
    }

    fn act(&self, operand: u16) {
        self.advance(Duration::from_millis(operand.into()));
    }
}

/// A network that queues frames for the card, and hashes the frames that the card sends.
pub(super) struct Card {
    cable: Arc<Mutex<Cable>>,
    clock: Option<Clock>,
}

/// Most frames that the network keeps for the guest: with frames of 64 KiB, at two devices, a part of the target's memory.
const FRAMES_MAX: usize = 32;

#[derive(Clone, Default)]
struct Cable {
    /// The frames for the guest.
    frames: VecDeque<Vec<u8>>,
    /// The card has received the first frame. The frame stays here until the card asks for another: the card may be
    /// waiting for buffers, and the network must not lose the frame when the guest moves.
    given: bool,
    sent: DefaultHasher,
    offloads: u64,
    can: u64,
}

impl Card {
    /// A card by the bits of `kind`: bit 0: rate limits; bit 1: no offloads.
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

    fn look(&self, contents: &mut Vec<u8>) {
        let cable = self.cable.lock().unwrap();
        *contents = [cable.sent.finish(), cable.offloads].map(u64::to_le_bytes).concat();
    }

    fn advance(&self, by: Duration) {
        self.clock.iter().for_each(|clock| clock.advance(by));
    }

    fn act(&self, len: u16) {
        let mut cable = self.cable.lock().unwrap();
        if cable.frames.len() < FRAMES_MAX {
            let number = cable.frames.len() as u8;
            cable.frames.push_back(vec![number; len.into()]);
        }
    }

    fn fills(queue: u64) -> bool {
        queue == 0
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

/// The card's end of the network.
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
