//! Who wrote which pages of guest RAM, vCPUs and devices together, as the engine asks.

use std::sync::{Arc, Mutex, MutexGuard};

use vmstate::ErrorKind;

use super::firmware::SEGMENT;
use crate::error::Error;
use crate::kvm::dirty;
use crate::kvm::vm::KvmVm;
use crate::memory::PAGE_SIZE;
use crate::sync::lock;

/// Pages written by vCPUs (KVM's log), by devices (the bitmap of guest memory) or by other parts of the kernel (vhost-net's log): the
/// union, so that none is lost between them. Clones share it: the engine reads it, and the driver lets it follow the guest through resets.
#[derive(Clone, Debug)]
pub struct MachineDirtyLog(Arc<Mutex<Recording>>);

#[derive(Debug)]
struct Recording {
    vm: Arc<KvmVm>,
    vcpu_writes: Option<dirty::DirtyLog>,
    segment: Option<Segment>,
}

/// The block that lies over the guest's RAM: its pages are in the same log, and are reported as its own.
#[derive(Debug)]
struct Segment {
    block: usize,
    /// Written, and not yet reported; bit 0 is the first page of [`SEGMENT`].
    written: u64,
}

/// Where the bits of [`SEGMENT`]'s pages are: in the upper half of this word.
const SEGMENT_WORD: usize = (SEGMENT.start / PAGE_SIZE / 64) as usize;
const SEGMENT_SHIFT: u64 = SEGMENT.start / PAGE_SIZE % 64;
const _: () = assert!(SEGMENT_SHIFT + (SEGMENT.end - SEGMENT.start) / PAGE_SIZE == 64, "one half of a word");

impl MachineDirtyLog {
    /// Not yet recording. `segment` is the block of [`MachineRam::segment`](super::ram::MachineRam::segment).
    pub fn new(vm: Arc<KvmVm>, segment: Option<usize>) -> Self {
        let segment = segment.map(|block| Segment { block, written: 0 });
        Self(Arc::new(Mutex::new(Recording { vm, vcpu_writes: None, segment })))
    }

    /// Goes on with `vm`, whose vCPUs have not run, in place of the machine so far, whose vCPUs have ended.
    ///
    /// # Errors
    /// [`Error::Kvm`]; it does not record any more, and says so at the next look into it.
    pub fn follow(&self, vm: &Arc<KvmVm>) -> Result<(), Error> {
        self.lock().follow(vm)
    }

    /// The guest has gone: KVM goes on to record what nobody writes. To end that takes as long as to look through all page tables, on a
    /// host where the guest may just begin to run, and the machine ends soon in any case.
    pub fn abandon(&self) {
        self.lock().vcpu_writes = None;
    }

    fn lock(&self) -> MutexGuard<'_, Recording> {
        lock(&self.0)
    }
}

/// A log that its user stops, and not the engine at the end of its work: the guest may go on before.
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

/// In the place of a log where no memory is sent that a guest writes.
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
        // What the machine so far has recorded and nobody has taken goes where devices' writes are until the next look.
        let mut pages = vec![0; words];
        recorded.sync(&before, &mut pages)?;
        vm.ram().add_device_writes(&pages);
        let mut begun = dirty::DirtyLog::start(vm)?;
        // KVM may begin with all pages marked. The engine knows what it has still to send: none of them was written here.
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

    /// The first block's turn comes first, and takes in all that was written.
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

    /// The segment's block comes behind the RAM. By its turn all is sent of the RAM that was reported with it, so that clearing more
    /// of that than the segment loses nothing.
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
            // One that goes on costs time and nothing else.
            let _ = recording.vm.ram().record_others(false);
        }
    }
}

impl Segment {
    /// Clears the segment's pages in a word of the RAM's pending pages, and returns those that were set: what is written is counted
    /// apart from them.
    fn hide(word: &mut u64) -> u64 {
        let others = (1 << SEGMENT_SHIFT) - 1;
        let pending = *word & !others;
        *word &= others;
        pending
    }

    /// Takes over what was written since [`hide`](Self::hide), and sets what was `pending`.
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

    /// Against a set of page numbers for each of the two blocks.
    #[test]
    fn a_page_of_the_segment_is_reported_once_and_as_the_segments() {
        let mut segment = Segment { block: 1, written: 0 };
        // Pending before, written since; as a bit of the word that has the segment in its upper half.
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
