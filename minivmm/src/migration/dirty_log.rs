//! Dirty log of guest RAM for the engine: writes of vCPUs and of devices together.

use std::sync::{Arc, Mutex, MutexGuard};

use vmstate::ErrorKind;

use super::firmware::SEGMENT;
use crate::error::Error;
use crate::kvm::dirty;
use crate::kvm::vm::KvmVm;
use crate::memory::PAGE_SIZE;
use crate::sync::lock;

/// Pages written by vCPUs (KVM's log), by devices (the bitmap of guest memory) or by other parts of the kernel (vhost-net's
/// log): their union, so that no write is lost. Clones share the log: the engine reads it, and the driver makes it follow the
/// guest through resets.
#[derive(Clone, Debug)]
pub struct MachineDirtyLog(Arc<Mutex<Recording>>);

#[derive(Debug)]
struct Recording {
    vm: Arc<KvmVm>,
    vcpu_writes: Option<dirty::DirtyLog>,
    segment: Option<Segment>,
}

/// The block that overlays the guest's RAM: its pages are in the same log, and are reported for this block.
#[derive(Debug)]
struct Segment {
    block: usize,
    /// Written pages that are not reported yet; bit 0 is the first page of [`SEGMENT`].
    written: u64,
}

/// Word that has the bits of [`SEGMENT`]'s pages in its upper half.
const SEGMENT_WORD: usize = (SEGMENT.start / PAGE_SIZE / 64) as usize;
const SEGMENT_SHIFT: u64 = SEGMENT.start / PAGE_SIZE % 64;
const _: () = assert!(SEGMENT_SHIFT + (SEGMENT.end - SEGMENT.start) / PAGE_SIZE == 64, "one half of a word");

impl MachineDirtyLog {
    /// Makes a log that is not recording yet. `segment` is the block of
    /// [`MachineRam::segment`](super::ram::MachineRam::segment).
    pub fn new(vm: Arc<KvmVm>, segment: Option<usize>) -> Self {
        let segment = segment.map(|block| Segment { block, written: 0 });
        Self(Arc::new(Mutex::new(Recording { vm, vcpu_writes: None, segment })))
    }

    /// Continues with `vm`, whose vCPUs have not run, instead of the machine before, whose vCPUs have ended.
    ///
    /// # Errors
    /// [`Error::Kvm`]; the log does not record any more then, and the next read of it fails.
    pub fn follow(&self, vm: &Arc<KvmVm>) -> Result<(), Error> {
        self.lock().follow(vm)
    }

    /// Leaves KVM's log on, since the guest has gone and nothing is written. To stop it takes as long as to walk all page
    /// tables, on a host where the guest may just begin to run, and the machine ends soon anyway.
    pub fn abandon(&self) {
        self.lock().vcpu_writes = None;
    }

    fn lock(&self) -> MutexGuard<'_, Recording> {
        lock(&self.0)
    }
}

/// A log that its user stops instead of the engine: the guest may resume before the engine ends.
#[derive(Debug)]
pub struct StoppedLater<'a>(pub &'a mut MachineDirtyLog);

impl vmstate::ram::DirtyLog for StoppedLater<'_> {
    fn start(&mut self) -> vmstate::Result<()> {
        self.0.start()
    }

    fn sync(&mut self, block: usize, words: &mut [u64]) -> vmstate::Result<()> {
        self.0.sync(block, words)
    }

    fn clear(&mut self, block: usize, first: u64, count: u64) -> vmstate::Result<()> {
        self.0.clear(block, first, count)
    }

    fn stop(&mut self) {}
}

/// A log for migrations that send no memory that a guest writes.
#[derive(Clone, Copy, Debug)]
pub struct NothingToSend;

impl vmstate::ram::DirtyLog for NothingToSend {
    fn start(&mut self) -> vmstate::Result<()> {
        Ok(())
    }

    fn sync(&mut self, _block: usize, _words: &mut [u64]) -> vmstate::Result<()> {
        Ok(())
    }

    fn clear(&mut self, _block: usize, _first: u64, _count: u64) -> vmstate::Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}
}

impl Recording {
    fn follow(&mut self, vm: &Arc<KvmVm>) -> Result<(), Error> {
        let before = std::mem::replace(&mut self.vm, Arc::clone(vm));
        let Some(mut recorded) = self.vcpu_writes.take() else { return Ok(()) };
        let words = (vm.ram().len() / PAGE_SIZE).div_ceil(64) as usize;
        // Writes that the machine before has recorded and that were not read yet are kept with the devices' writes until the
        // next read.
        let mut pages = vec![0; words];
        recorded.sync(&before, &mut pages)?;
        vm.ram().add_device_writes(&pages);
        let mut begun = dirty::DirtyLog::start(vm)?;
        // KVM may begin with all pages marked. These marks are dropped: nothing was written here, and the engine knows which
        // pages it has still to send.
        begun.sync(vm, &mut pages)?;
        begun.clear(vm, 0, vm.ram().len() / PAGE_SIZE)?;
        self.vcpu_writes = Some(begun);
        Ok(())
    }
}

impl vmstate::ram::DirtyLog for MachineDirtyLog {
    fn start(&mut self) -> vmstate::Result<()> {
        let recording = &mut *self.lock();
        let ram = recording.vm.ram();
        ram.record_others(true).map_err(others)?;
        let started = dirty::DirtyLog::start(&recording.vm).inspect_err(|_| drop(ram.record_others(false)));
        recording.vcpu_writes = Some(started.map_err(hypervisor)?);
        Ok(())
    }

    /// The first block is synced first, and collects all writes.
    fn sync(&mut self, block: usize, words: &mut [u64]) -> vmstate::Result<()> {
        let recording = &mut *self.lock();
        let Some(vcpu_writes) = &mut recording.vcpu_writes else {
            return Err(vmstate::Error::new(ErrorKind::Misuse, "the dirty log is not recording"));
        };
        if block > 0 {
            if let Some(segment) = recording.segment.as_mut().filter(|segment| segment.block == block) {
                words[0] |= std::mem::take(&mut segment.written);
            }
            return Ok(());
        }
        let pending = match (&recording.segment, words.get_mut(SEGMENT_WORD)) {
            (Some(_), Some(word)) => Segment::hide(word),
            _ => 0,
        };
        vcpu_writes.sync(&recording.vm, words).map_err(hypervisor)?;
        recording.vm.ram().take_device_writes(words);
        if let (Some(segment), Some(word)) = (&mut recording.segment, words.get_mut(SEGMENT_WORD)) {
            segment.take(word, pending);
        }
        Ok(())
    }

    /// The segment's block comes after the RAM. When it is cleared, all pages of the RAM that were reported with it are sent,
    /// so that clearing more than the segment loses nothing.
    fn clear(&mut self, block: usize, first: u64, count: u64) -> vmstate::Result<()> {
        let recording = &mut *self.lock();
        let first = match &recording.segment {
            _ if block == 0 => first,
            Some(segment) if segment.block == block => SEGMENT.start / PAGE_SIZE + first,
            _ => return Ok(()),
        };
        match &mut recording.vcpu_writes {
            Some(vcpu_writes) => vcpu_writes.clear(&recording.vm, first, count).map_err(hypervisor),
            None => Ok(()),
        }
    }

    fn stop(&mut self) {
        let recording = &mut *self.lock();
        if let Some(vcpu_writes) = recording.vcpu_writes.take() {
            vcpu_writes.stop(&recording.vm);
            // A log that stays on costs time and nothing else.
            let _ = recording.vm.ram().record_others(false);
        }
    }
}

impl Segment {
    /// Clears and returns the pending bits of the segment's pages in a word of the RAM, so that new writes can be distinguished
    /// from them.
    fn hide(word: &mut u64) -> u64 {
        let others = (1 << SEGMENT_SHIFT) - 1;
        let pending = *word & !others;
        *word &= others;
        pending
    }

    /// Collects writes since [`hide`](Self::hide), and sets the `pending` bits again.
    fn take(&mut self, word: &mut u64, pending: u64) {
        self.written |= Self::hide(word) >> SEGMENT_SHIFT;
        *word |= pending;
    }
}

fn others(error: std::io::Error) -> vmstate::Error {
    vmstate::Error::new(ErrorKind::Io, "the host's record of what it writes to guest memory itself failed")
        .with_source(error)
}

fn hypervisor(error: Error) -> vmstate::Error {
    vmstate::Error::new(ErrorKind::Io, "the hypervisor's dirty log failed").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both blocks are compared with sets of page numbers.
    #[test]
    fn a_page_of_the_segment_is_reported_once_and_as_the_segments() {
        let mut segment = Segment { block: 1, written: 0 };
        // Bits pending before and written since, in the word that has the segment in its upper half.
        for (pending, written) in [(0, 1 << 32), (u64::MAX, 0), (1 << 40 | 1, 1 << 40 | 1 << 63 | 2), (0, u64::MAX)] {
            let mut word: u64 = pending;
            let hidden = Segment::hide(&mut word);
            word |= written;
            segment.take(&mut word, hidden);
            let reported = std::mem::take(&mut segment.written);
            for bit in 0..64 {
                let (before, now) = (pending >> bit & 1 == 1, written >> bit & 1 == 1);
                let expected = if bit < 32 { before || now } else { before };
                assert_eq!(word >> bit & 1 == 1, expected, "{pending:#x} {written:#x} {bit}");
                if bit >= 32 {
                    assert_eq!(reported >> (bit - 32) & 1 == 1, now, "{pending:#x} {written:#x} {bit}");
                }
            }
        }
    }
}
