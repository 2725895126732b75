//! A guest whose one vCPU, a thread, writes its memory until it is paused; with a dirty log.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmstate::error::Result;
use vmstate::migrate::{Claim, Control, Machine};
use vmstate::ram::{DirtyLog, GuestRam, PAGE_SIZE, RamBlock};

const PAGE: usize = PAGE_SIZE as usize;
const WORDS: usize = PAGE / 8;
/// Pages of the two blocks; the second is not full at its last packet.
const PAGES: [u64; 2] = [3000, 133];

/// Number of pages that are written again just before the pause.
pub(crate) const REWRITTEN: usize = 700;

/// Memory, word by word, and the log of written pages.
pub(crate) struct Memory {
    blocks: Vec<RamBlock>,
    words: Vec<Vec<AtomicU64>>,
    dirty: Vec<Vec<AtomicU64>>,
    /// Pages that were ever written.
    touched: Vec<Vec<AtomicU64>>,
    /// Number of reads of pages that were never written.
    needless: AtomicU64,
}

impl Memory {
    fn new() -> Self {
        let block = |(index, pages): (usize, &u64)| RamBlock { name: format!("block{index}"), len: pages * PAGE_SIZE };
        let zeros = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            blocks: PAGES.iter().enumerate().map(block).collect(),
            words: PAGES.iter().map(|&pages| zeros(pages as usize * WORDS)).collect(),
            dirty: PAGES.iter().map(|&pages| zeros(pages.div_ceil(64) as usize)).collect(),
            touched: PAGES.iter().map(|&pages| zeros(pages.div_ceil(64) as usize)).collect(),
            needless: AtomicU64::new(0),
        }
    }

    /// The page is touched first, then the word is written, then the log is updated.
    fn store(&self, block: usize, word: usize, value: u64) {
        let page = word / WORDS;
        let mark = |pages: &[AtomicU64]| pages[page / 64].fetch_or(1 << (page % 64), Ordering::SeqCst);
        mark(&self.touched[block]);
        self.words[block][word].store(value, Ordering::SeqCst);
        mark(&self.dirty[block]);
    }

    fn is_touched(&self, block: usize, page: u64) -> bool {
        self.touched[block][page as usize / 64].load(Ordering::SeqCst) >> (page % 64) & 1 == 1
    }

    /// The number of reads of pages that were never written.
    pub(crate) fn needless_reads(&self) -> u64 {
        self.needless.load(Ordering::SeqCst)
    }
}

impl GuestRam for Memory {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        let pages = offset / PAGE_SIZE..(offset + into.len() as u64).div_ceil(PAGE_SIZE);
        let needless = pages.filter(|&page| !self.is_touched(block, page)).count();
        self.needless.fetch_add(needless as u64, Ordering::SeqCst);
        let words = &self.words[block][offset as usize / 8..][..into.len() / 8];
        for (bytes, word) in into.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        Ok(())
    }

    fn untouched(&self, block: usize, offset: u64, words: &mut [u64]) -> Result<()> {
        let first = offset / PAGE_SIZE;
        let end = PAGES[block].min(first + words.len() as u64 * 64);
        for page in (first..end).filter(|&page| !self.is_touched(block, page)) {
            words[(page - first) as usize / 64] |= 1 << ((page - first) % 64);
        }
        Ok(())
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        let words = &self.words[block][offset as usize / 8..][..from.len() / 8];
        for (bytes, word) in from.chunks_exact(8).zip(words) {
            word.store(u64::from_ne_bytes(bytes.try_into().unwrap()), Ordering::Relaxed);
        }
        Ok(())
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        self.write(block, offset, &[0; PAGE])
    }
}

/// The guest and its machine. Clones share them.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) memory: Arc<Memory>,
    runs: Arc<AtomicBool>,
    vcpu: Arc<Mutex<Option<JoinHandle<()>>>>,
    /// At the destination: only records that the guest would run, because its memory is compared after the arrival.
    arrives: bool,
}

impl Guest {
    /// A guest that waits for another's memory.
    pub(crate) fn waiting() -> Self {
        let memory = Arc::new(Memory::new());
        // Filled, so that a page that arrives as zero has to be cleared.
        for words in &memory.words {
            words.iter().for_each(|word| word.store(0xdead, Ordering::Relaxed));
        }
        Self { memory, runs: Arc::default(), vcpu: Arc::default(), arrives: true }
    }

    /// A guest whose vCPU runs. A third of its pages is zero, a third is repetitive.
    pub(crate) fn busy() -> Self {
        let memory = Arc::new(Memory::new());
        let mut random = 7_u64;
        for (block, pages) in PAGES.into_iter().enumerate() {
            for word in 0..pages as usize * WORDS {
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                match word / WORDS % 3 {
                    0 => {}
                    1 => memory.store(block, word, random),
                    _ => memory.store(block, word, word as u64 % 61),
                }
            }
        }
        let guest = Self { memory, runs: Arc::default(), vcpu: Arc::default(), arrives: false };
        guest.start();
        guest
    }

    pub(crate) fn is_running(&self) -> bool {
        self.runs.load(Ordering::SeqCst)
    }

    /// Block and number of a page that differs from that of `there`.
    pub(crate) fn differing_page(&self, there: &Self) -> Option<(usize, u64)> {
        (0..PAGES.len()).find_map(|block| {
            let page = (0..PAGES[block]).find(|page| {
                let [mut one, mut other] = [[0; PAGE]; 2];
                self.memory.read(block, page * PAGE_SIZE, &mut one).unwrap();
                there.memory.read(block, page * PAGE_SIZE, &mut other).unwrap();
                one != other
            })?;
            Some((block, page))
        })
    }

    fn start(&self) {
        self.runs.store(true, Ordering::SeqCst);
        let (memory, runs) = (Arc::clone(&self.memory), Arc::clone(&self.runs));
        *self.vcpu.lock().unwrap() = Some(thread::spawn(move || {
            let mut random = 1_u64;
            while runs.load(Ordering::SeqCst) {
                for _ in 0..8 {
                    random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(3);
                    let (block, page) = ((random >> 20) as usize % 2, (random >> 33) as usize % 120);
                    let (first, value) = (page * WORDS, if random >> 60 == 0 { 0 } else { random });
                    // Some pages become zero again.
                    let all = if value == 0 { WORDS } else { 40 };
                    (first..first + all).for_each(|word| memory.store(block, word, value));
                }
                thread::sleep(Duration::from_micros(300));
            }
        }));
    }

    /// Stops the vCPU, whose last writes are to pages that were sent before.
    fn stop(&self) {
        self.runs.store(false, Ordering::SeqCst);
        if let Some(vcpu) = self.vcpu.lock().unwrap().take() {
            vcpu.join().unwrap();
        }
        for page in 0..REWRITTEN {
            let value = if page % 5 == 0 { 0 } else { 0xabcd + page as u64 };
            (page * WORDS..(page + 1) * WORDS).for_each(|word| self.memory.store(0, word, value));
        }
    }
}

impl Machine for Guest {
    fn pause(&mut self, _within: Duration) -> Result<()> {
        self.stop();
        Ok(())
    }

    fn loaded(&mut self) -> Result<()> {
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        if self.arrives {
            self.runs.store(true, Ordering::SeqCst);
        } else {
            self.start();
        }
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        Ok(())
    }

    fn claim(&mut self) -> Result<Claim> {
        Ok(Claim::Undecidable)
    }
}

/// The guest's dirty log.
pub(crate) struct Log {
    memory: Arc<Memory>,
    /// Number of syncs until the user cancels.
    cancels: Option<(u32, Control)>,
}

impl Log {
    pub(crate) fn new(memory: &Arc<Memory>, cancels: Option<(u32, Control)>) -> Self {
        Self { memory: Arc::clone(memory), cancels }
    }
}

impl DirtyLog for Log {
    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    fn sync(&mut self, block: usize, words: &mut [u64]) -> Result<()> {
        if let Some((looks, control)) = &mut self.cancels {
            *looks -= 1;
            if *looks == 0 {
                assert!(control.cancel());
                self.cancels = None;
            }
        }
        for (word, dirty) in words.iter_mut().zip(&self.memory.dirty[block]) {
            *word |= dirty.swap(0, Ordering::SeqCst);
        }
        Ok(())
    }

    fn clear(&mut self, _block: usize, _first: u64, _count: u64) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}
}
