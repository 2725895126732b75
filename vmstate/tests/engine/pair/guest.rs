//! A guest whose memory changes with virtual time, with a dirty log like KVM's.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmstate::error::Result;
use vmstate::migrate::Control;
use vmstate::ram::{DirtyLog, GuestRam, PAGE_SIZE, PostcopyMemory, RamBlock};

use super::missing_pages::MissingPages;
use super::world::World;

/// How the guest writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    pub writes_per_second: f64,
    /// The number of pages that it writes to, from the start of the first block.
    pub working_set: u64,
}

#[derive(Debug)]
pub(super) struct Memory {
    pub(super) bytes: Vec<Vec<u8>>,
    pub(super) missing_pages: MissingPages,
    /// Pages written and not cleared, as the hypervisor's log has them; one bool for each page.
    written: Vec<Vec<bool>>,
    /// Pages reported since, which the embedder must remember.
    reported: Vec<Vec<bool>>,
    log: bool,
    running: bool,
    load: Load,
    /// Percentage of writes that leave a page of zeros.
    clearing: u64,
    random: u64,
    written_until: Duration,
    /// How long the guest has run.
    ran: Duration,
    /// How long the guest has stood still for its throttle.
    stopped_time: Duration,
    /// Each throttle that was set, with its moment.
    throttles: Vec<(Duration, u8)>,
    owed: f64,
}

/// Guest memory, shared by its three roles: memory, dirty log and running guest.
#[derive(Clone, Debug)]
pub struct Guest {
    blocks: Arc<[RamBlock]>,
    pub(super) memory: Arc<Mutex<Memory>>,
    pub(super) world: World,
    /// The guest can run before all of its pages have arrived.
    pub supports_postcopy: bool,
    /// The log reports and clears in one step, as KVM does without manual protection.
    pub clears_when_read: bool,
    /// The address of the first block if both sides share its memory.
    pub shared_at: Option<u64>,
    /// True if the stream says that memory is shared.
    pub announces_shared: bool,
    /// Cancels at the sync at which the counter reaches zero.
    pub cancels_in: Option<(u32, Control)>,
}

impl Guest {
    /// The same guest in another world, whose time begins at zero.
    pub fn moved(mut self, world: &World) -> Self {
        self.world = world.clone();
        self.cancels_in = None;
        self.memory.lock().unwrap().written_until = Duration::ZERO;
        self
    }

    pub fn new(world: &World, blocks: &[(&str, u64)], load: Load) -> Self {
        let blocks: Arc<[RamBlock]> =
            blocks.iter().map(|&(name, pages)| RamBlock { name: name.to_owned(), len: pages * PAGE_SIZE }).collect();
        let pages = |value| -> Vec<Vec<bool>> {
            blocks.iter().map(|block| vec![value; (block.len / PAGE_SIZE) as usize]).collect()
        };
        let memory = Memory {
            bytes: blocks.iter().map(|block| vec![0; block.len as usize]).collect(),
            missing_pages: MissingPages::new(pages(false)),
            written: pages(false),
            reported: pages(false),
            log: false,
            running: false,
            load,
            clearing: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            written_until: Duration::ZERO,
            ran: Duration::ZERO,
            stopped_time: Duration::ZERO,
            throttles: Vec::new(),
            owed: 0.0,
        };
        Self {
            blocks,
            memory: Arc::new(Mutex::new(memory)),
            world: world.clone(),
            supports_postcopy: false,
            clears_when_read: false,
            shared_at: None,
            announces_shared: true,
            cancels_in: None,
        }
    }

    /// Writes a byte, as the guest does.
    pub fn poke(&self, block: usize, offset: u64, byte: u8) {
        let mut memory = self.memory.lock().unwrap();
        memory.poke(block, offset, byte);
    }

    /// Sets the percentage of writes that leave a page of zeros.
    pub fn set_clearing(&self, percent: u64) {
        self.caught_up().clearing = percent;
    }

    pub fn memory(&self) -> Vec<Vec<u8>> {
        self.memory.lock().unwrap().bytes.clone()
    }

    pub fn is_logging(&self) -> bool {
        self.memory.lock().unwrap().log
    }

    pub fn is_running(&self) -> bool {
        self.memory.lock().unwrap().running
    }

    /// How long the guest has run until now.
    pub fn ran(&self) -> Duration {
        self.caught_up().ran
    }

    /// How long the guest has stood still for its throttle until now.
    pub fn stopped_time(&self) -> Duration {
        self.caught_up().stopped_time
    }

    /// Changes how the guest writes from now on.
    pub fn set_load(&self, load: Load) {
        self.caught_up().load = load;
    }

    /// Makes the guest stand still for this percentage of the time from now on.
    pub fn set_throttle(&self, percent: u8) {
        let mut memory = self.caught_up();
        memory.throttles.push((self.world.now(), percent));
    }

    pub fn throttle(&self) -> u8 {
        self.memory.lock().unwrap().throttle()
    }

    /// Each throttle that was set, with its moment.
    pub fn throttles(&self) -> Vec<(Duration, u8)> {
        self.memory.lock().unwrap().throttles.clone()
    }

    pub fn set_running(&self, running: bool) {
        let mut memory = self.memory.lock().unwrap();
        memory.catch_up(self.world.now());
        memory.running = running;
    }

    pub(super) fn caught_up(&self) -> std::sync::MutexGuard<'_, Memory> {
        let mut memory = self.memory.lock().unwrap();
        memory.catch_up(self.world.now());
        memory
    }
}

impl Memory {
    fn throttle(&self) -> u8 {
        self.throttles.last().map_or(0, |(_, percent)| *percent)
    }

    fn poke(&mut self, block: usize, offset: u64, byte: u8) {
        self.missing_pages.wrote(block, offset, byte);
        self.bytes[block][offset as usize] = byte;
        self.written[block][(offset / PAGE_SIZE) as usize] = true;
    }

    /// Does the writes of the guest's running time since the last call.
    fn catch_up(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.written_until);
        self.written_until = now;
        if !self.running || self.missing_pages.waits() {
            return;
        }
        self.ran += passed;
        let stopped_time = passed * self.throttle().into() / 100;
        self.stopped_time += stopped_time;
        self.owed += (passed - stopped_time).as_secs_f64() * self.load.writes_per_second;
        while self.owed >= 1.0 {
            self.owed -= 1.0;
            // xorshift64
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let page = self.random % self.load.working_set;
            if self.missing_pages.lacks(page, now) {
                self.owed = 0.0;
                return;
            }
            let offset = page * PAGE_SIZE + (self.random >> 32) % PAGE_SIZE;
            let value = (self.random >> 24) as u8;
            if (self.random >> 40) % 100 < self.clearing {
                self.bytes[0][(page * PAGE_SIZE) as usize..][..PAGE_SIZE as usize].fill(0);
                self.poke(0, offset, 0);
            } else {
                self.poke(0, offset, value | 1);
            }
        }
    }
}

impl GuestRam for Guest {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn postcopy(&self) -> Option<&dyn PostcopyMemory> {
        self.supports_postcopy.then_some(self)
    }

    fn shared_at(&self, block: usize) -> Option<u64> {
        self.shared_at.filter(|_| block == 0)
    }

    fn announces_shared(&self) -> bool {
        self.announces_shared
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        self.world.called("read");
        let memory = self.caught_up();
        into.copy_from_slice(&memory.bytes[block][offset as usize..][..into.len()]);
        Ok(())
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        self.world.called("write");
        let mut memory = self.memory.lock().unwrap();
        memory.bytes[block][offset as usize..][..from.len()].copy_from_slice(from);
        memory.missing_pages.arrived(block, offset);
        Ok(())
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        self.world.called("write");
        // Memory that is zero already need not be touched.
        self.memory.lock().unwrap().bytes[block][offset as usize..][..PAGE_SIZE as usize].fill(0);
        Ok(())
    }
}

impl DirtyLog for Guest {
    fn start(&mut self) -> Result<()> {
        let mut memory = self.caught_up();
        assert!(!memory.log, "started twice");
        memory.log = true;
        memory.written.iter_mut().for_each(|pages| pages.fill(true));
        memory.reported.iter_mut().for_each(|pages| pages.fill(false));
        Ok(())
    }

    fn sync(&mut self, block: usize, words: &mut [u64]) -> Result<()> {
        self.world.called("sync");
        if let Some((left, control)) = &mut self.cancels_in {
            *left -= 1;
            if *left == 0 {
                assert!(control.cancel());
                self.cancels_in = None;
            }
        }
        let mut memory = self.caught_up();
        let memory = &mut *memory;
        assert!(memory.log, "not started");
        for (page, written) in memory.written[block].iter_mut().enumerate() {
            if *written {
                words[page / 64] |= 1 << (page % 64);
                memory.reported[block][page] = true;
                *written = !self.clears_when_read;
            }
        }
        Ok(())
    }

    fn clear(&mut self, block: usize, first: u64, count: u64) -> Result<()> {
        self.world.called("clear");
        if self.clears_when_read {
            return Ok(());
        }
        let mut memory = self.caught_up();
        for page in first as usize..(first + count) as usize {
            if std::mem::take(&mut memory.reported[block][page]) {
                memory.written[block][page] = false;
            }
        }
        Ok(())
    }

    fn stop(&mut self) {
        let mut memory = self.memory.lock().unwrap();
        assert!(memory.log, "stopped twice");
        memory.log = false;
    }
}
