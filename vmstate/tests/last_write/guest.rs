//! A guest that writes its memory all the time, and just before and after a page is checked for zeros, read or sent; and its
//! machine, which continues the rounds until the test has seen enough.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmstate::codec::{Outbox, PageRun, Piece};
use vmstate::error::Result;
use vmstate::migrate::{Claim, Control, Machine};
use vmstate::ram::{GuestRam, PAGE_SIZE, RamBlock};
use vmstate_lab::random::Random;

use crate::memory::{BLOCKS, Memory, PACE, TOUCHED, Writer};

/// The fewest rounds before the guest may be paused.
const ROUNDS: u32 = 3;
/// A limit that every pause meets, whatever other load the host has.
const AMPLE: Duration = Duration::from_secs(1000);

/// One in this many pages is written before it is read or sent, and one after: few enough that a page whose last write was lost
/// is hardly ever written again.
const READ: u64 = 16;
/// The same for pages that are checked for zeros, which a forecast does often.
const LOOKED_AT: u64 = 128;

/// When the migration is cancelled.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cancel {
    /// After this many accesses to the guest's memory.
    AfterLooks(u32),
    /// At the end of this round.
    AfterRound(u32),
    /// While the guest is being paused.
    InThePause,
}

/// The guest's view of one migration attempt.
#[derive(Clone)]
pub(crate) struct Attempt {
    pub(crate) control: Control,
    pub(crate) cancel: Option<Cancel>,
    /// True if the attempt must continue until the guest was throttled.
    pub(crate) throttled: bool,
}

/// A guest; clones share it.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) memory: Arc<Memory>,
    shared: Arc<Shared>,
}

struct Shared {
    /// True while the guest runs. Writers on accesses hold it for reading, so that they stop once the guest is paused.
    runs: RwLock<bool>,
    /// True while vCPUs and devices run.
    goes_on: [AtomicBool; 2],
    writers: Mutex<[Option<JoinHandle<()>>; 2]>,
    random: Mutex<Random>,
    attempt: Mutex<Option<Attempt>>,
    looks: AtomicU32,
    rounds: AtomicU32,
    throttle: AtomicU8,
    highest_throttle: AtomicU8,
}

impl Guest {
    /// A guest that waits for another's memory, and holds other data.
    pub(crate) fn waiting() -> Self {
        let guest = Self::still(0);
        guest.memory.litter();
        guest
    }

    /// A running guest, some of whose pages were never touched.
    pub(crate) fn busy(seed: u64) -> Self {
        let guest = Self::still(seed);
        for (block, (_, pages)) in BLOCKS.into_iter().enumerate() {
            let touched = (0..pages.min(TOUCHED)).filter(|page| page % 7 > 1);
            touched.for_each(|page| guest.memory.write_as(Writer::Device, block, page));
        }
        guest.run();
        guest
    }

    fn still(seed: u64) -> Self {
        let shared = Shared {
            runs: RwLock::default(),
            goes_on: Default::default(),
            writers: Mutex::default(),
            random: Mutex::new(Random::new(!seed)),
            attempt: Mutex::default(),
            looks: AtomicU32::default(),
            rounds: AtomicU32::default(),
            throttle: AtomicU8::default(),
            highest_throttle: AtomicU8::default(),
        };
        Self { memory: Arc::new(Memory::new(seed)), shared: Arc::new(shared) }
    }

    pub(crate) fn begin(&self, attempt: Attempt) {
        for count in [&self.shared.looks, &self.shared.rounds] {
            count.store(0, Ordering::SeqCst);
        }
        self.shared.highest_throttle.store(0, Ordering::SeqCst);
        *self.shared.attempt.lock().unwrap() = Some(attempt);
    }

    pub(crate) fn is_running(&self) -> bool {
        *self.shared.runs.read().unwrap()
    }

    /// The present throttle, and the highest since the attempt began.
    pub(crate) fn throttled(&self) -> (u8, u8) {
        (self.shared.throttle.load(Ordering::SeqCst), self.shared.highest_throttle.load(Ordering::SeqCst))
    }

    fn run(&self) {
        *self.shared.runs.write().unwrap() = true;
        let mut writers = self.shared.writers.lock().unwrap();
        for (index, by) in [Writer::Vcpu, Writer::Device].into_iter().enumerate() {
            self.shared.goes_on[index].store(true, Ordering::SeqCst);
            let guest = self.clone();
            writers[index] = Some(thread::spawn(move || {
                let mut turn = 0_u64;
                while guest.shared.goes_on[index].load(Ordering::SeqCst) {
                    // Blocks in turn, their first pages only.
                    let block = turn as usize % BLOCKS.len();
                    guest.memory.write_as(by, block, turn / 3 % 40 % BLOCKS[block].1);
                    turn += 1;
                    thread::sleep(PACE);
                }
            }));
        }
    }

    /// Stops the vCPUs first; devices finish their present work.
    pub(crate) fn stop(&self) {
        *self.shared.runs.write().unwrap() = false;
        let mut writers = self.shared.writers.lock().unwrap();
        for (index, by) in [Writer::Vcpu, Writer::Device].into_iter().enumerate() {
            let Some(writer) = writers[index].take() else { continue };
            (100..130).for_each(|page| self.memory.write_as(by, index, page % BLOCKS[index].1));
            self.shared.goes_on[index].store(false, Ordering::SeqCst);
            writer.join().unwrap();
        }
    }

    /// Writes one of this many accessed pages, or none if the guest is throttled.
    fn meanwhile(&self, one_of: u64, block: usize, offset: u64, len: u64) {
        let looks = self.shared.looks.fetch_add(1, Ordering::SeqCst);
        self.cancel_if(|cancel| matches!(cancel, Cancel::AfterLooks(last) if last <= looks));
        let runs = self.shared.runs.read().unwrap();
        if !*runs {
            return;
        }
        let (first, pages) = (offset / PAGE_SIZE, len.div_ceil(PAGE_SIZE).min(BLOCKS[block].1));
        let throttle = u64::from(self.throttled().0);
        for _ in 0..pages.div_ceil(one_of) {
            let number = self.shared.random.lock().unwrap().number();
            let page = first + (number >> 8) % pages.next_multiple_of(one_of);
            if page < first + pages && page < BLOCKS[block].1 && (number >> 32) % 100 >= throttle {
                self.memory.write_as(if number.is_multiple_of(2) { Writer::Vcpu } else { Writer::Device }, block, page);
            }
        }
    }

    fn cancel_if(&self, cancels: impl Fn(Cancel) -> bool) {
        let mut attempt = self.shared.attempt.lock().unwrap();
        if let Some(Attempt { control, cancel, .. }) = &mut *attempt
            && cancel.take_if(|cancel| cancels(*cancel)).is_some()
        {
            control.cancel();
        }
    }
}

/// Reads the memory of a guest that writes at the same time.
impl GuestRam for Guest {
    fn blocks(&self) -> &[RamBlock] {
        self.memory.blocks()
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        self.meanwhile(READ, block, offset, into.len() as u64);
        self.memory.read(block, offset, into)?;
        self.meanwhile(READ, block, offset, into.len() as u64);
        Ok(())
    }

    fn zero_pages(&self, block: usize, offset: u64, pages: u32) -> Result<u64> {
        self.meanwhile(LOOKED_AT, block, offset, u64::from(pages) * PAGE_SIZE);
        let zero = self.memory.zero_pages(block, offset, pages)?;
        self.meanwhile(LOOKED_AT, block, offset, u64::from(pages) * PAGE_SIZE);
        Ok(zero)
    }

    fn untouched(&self, block: usize, offset: u64, words: &mut [u64]) -> Result<()> {
        self.meanwhile(LOOKED_AT, block, offset, words.len() as u64 * 64 * PAGE_SIZE);
        self.memory.untouched(block, offset, words)?;
        self.meanwhile(LOOKED_AT, block, offset, words.len() as u64 * 64 * PAGE_SIZE);
        Ok(())
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        self.memory.write(block, offset, from)
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        self.memory.zero_page(block, offset)
    }

    fn send(&self, to: BorrowedFd<'_>, outbox: &Outbox) -> io::Result<usize> {
        let first = outbox.pieces().next();
        let meanwhile = || {
            if let Some(Piece::Pages(PageRun { block, offset, len })) = first {
                self.meanwhile(READ, block, offset, len);
            }
        };
        meanwhile();
        let sent = self.memory.send(to, outbox);
        meanwhile();
        sent
    }

    fn receive(&self, from: BorrowedFd<'_>, runs: &[PageRun]) -> io::Result<usize> {
        self.memory.receive(from, runs)
    }
}

/// The guest's machine at a source.
impl Machine for Guest {
    fn prepare(&mut self, _go_on: &dyn Fn() -> bool) -> Result<Duration> {
        let rounds = 1 + self.shared.rounds.fetch_add(1, Ordering::SeqCst);
        self.cancel_if(|cancel| matches!(cancel, Cancel::AfterRound(last) if last == rounds));
        if let Some(Attempt { control, throttled, .. }) = &*self.shared.attempt.lock().unwrap()
            && rounds >= ROUNDS
            && (!throttled || self.throttled().0 > 0)
        {
            control.set_downtime_limit(AMPLE);
        }
        // Longer than the limit until then.
        Ok(Duration::from_secs(100))
    }

    fn throttle(&mut self, percent: u8) -> bool {
        self.shared.throttle.store(percent, Ordering::SeqCst);
        self.shared.highest_throttle.fetch_max(percent, Ordering::SeqCst);
        true
    }

    fn pause(&mut self, _within: Duration) -> Result<()> {
        assert_eq!(self.throttled().0, 0, "the guest is paused while it is throttled");
        self.cancel_if(|cancel| matches!(cancel, Cancel::InThePause));
        self.stop();
        Ok(())
    }

    fn loaded(&mut self) -> Result<()> {
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        self.run();
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        Ok(())
    }

    fn claim(&mut self) -> Result<Claim> {
        Ok(Claim::Undecidable)
    }
}

/// The machine at a destination, which only records that the guest would run.
#[derive(Default)]
pub(crate) struct Arrived {
    pub(crate) runs: bool,
}

impl Machine for Arrived {
    fn pause(&mut self, _within: Duration) -> Result<()> {
        unreachable!("nobody pauses a destination")
    }

    fn loaded(&mut self) -> Result<()> {
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        self.runs = true;
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        unreachable!("a destination has nothing to release")
    }

    fn claim(&mut self) -> Result<Claim> {
        Ok(Claim::Undecidable)
    }
}
