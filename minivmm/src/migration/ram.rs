//! Guest RAM as the engine sees it: one block of pages, those of QEMU's firmware, and who wrote which.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmstate::ErrorKind;
use vmstate::ram::{GuestRam, RamBlock};

use super::firmware::{Firmware, Place, SEGMENT};
use crate::error::Error;
use crate::kvm::dirty;
use crate::kvm::vm::KvmVm;
use crate::memory::{PAGE_SIZE, RAM_BLOCK, Ram};

/// The machine's RAM, and the blocks that QEMU has for its firmware. Clones share the same memory.
#[derive(Clone, Debug)]
pub struct MachineRam {
    ram: Ram,
    firmware: Firmware,
    blocks: Vec<RamBlock>,
}

impl MachineRam {
    /// All of `ram` of a machine that waits for a guest; `firmware` gets what a source has of QEMU's.
    pub fn arriving(ram: Ram, firmware: Firmware) -> Self {
        let blocks = vec![RamBlock { name: RAM_BLOCK.into(), len: ram.len() }];
        Self { ram, firmware, blocks }
    }

    /// All of `ram` of a guest that goes away, and the blocks of `firmware` that came with it. `shows_segment`: a QEMU there shows
    /// the guest the same bytes at [`SEGMENT`] as this machine does, whatever QEMU's own firmware has there.
    pub fn leaving(ram: Ram, firmware: &Firmware, shows_segment: bool) -> Self {
        let mut leaving = Self::arriving(ram, firmware.to_own());
        if shows_segment && leaving.ram.len() >= SEGMENT.end {
            leaving.firmware.add_segment();
        }
        leaving.blocks.extend(leaving.firmware.blocks());
        leaving
    }

    /// Index of the block that lies over the guest's RAM, if there is one.
    pub fn segment(&self) -> Option<usize> {
        self.firmware.segment().map(|index| index + 1)
    }

    /// Of `len` bytes of the guest's RAM at `offset`, those that a QEMU has beneath its firmware, where no guest sees them: there they
    /// are zero, and here they are none.
    fn hidden(&self, offset: u64, len: usize) -> Range<usize> {
        let end = offset.saturating_add(len as u64);
        if offset >= SEGMENT.end || end <= SEGMENT.start || self.firmware.segment().is_none() {
            return 0..0;
        }
        (SEGMENT.start.saturating_sub(offset) as usize)..(end.min(SEGMENT.end) - offset) as usize
    }
}

impl GuestRam for MachineRam {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn adopt(&self, name: &str, len: u64) -> vmstate::Result<bool> {
        // Without RAM there the guest could not see it.
        if self.ram.len() < SEGMENT.end {
            return Ok(false);
        }
        self.firmware.adopt(name, len)
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> vmstate::Result<()> {
        let Some(index) = block.checked_sub(1) else {
            self.ram.read(offset, into).map_err(misuse)?;
            let hidden = self.hidden(offset, into.len());
            into[hidden].fill(0);
            return Ok(());
        };
        match self.firmware.place(index)? {
            Place::Ram(start) => self.ram.read(start.saturating_add(offset), into).map_err(misuse),
            Place::Kept => self.firmware.read(index, offset, into),
        }
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> vmstate::Result<()> {
        let Some(index) = block.checked_sub(1) else {
            let hidden = self.hidden(offset, from.len());
            if hidden.is_empty() {
                return self.ram.write(offset, from).map_err(misuse);
            }
            self.ram.write(offset, &from[..hidden.start]).map_err(misuse)?;
            return self.ram.write(offset + hidden.end as u64, &from[hidden.end..]).map_err(misuse);
        };
        match self.firmware.place(index)? {
            Place::Ram(start) => self.ram.write(start.saturating_add(offset), from).map_err(misuse),
            Place::Kept => self.firmware.write(index, offset, from),
        }
    }

    fn zero_page(&self, block: usize, offset: u64) -> vmstate::Result<()> {
        let Some(index) = block.checked_sub(1) else {
            let hidden = !self.hidden(offset, PAGE_SIZE as usize).is_empty();
            return if hidden { Ok(()) } else { self.ram.zero_page(offset).map_err(misuse) };
        };
        match self.firmware.place(index)? {
            Place::Ram(start) => self.ram.zero_page(start.saturating_add(offset)).map_err(misuse),
            Place::Kept => self.firmware.write(index, offset, &[0; PAGE_SIZE as usize]),
        }
    }
}

/// Pages written by vCPUs (KVM's log) or by devices (the bitmap of guest memory): the union, so that none is lost
/// between the two. Clones share it: the engine reads it, and the driver lets it follow the guest through resets.
#[derive(Clone, Debug)]
pub struct MachineDirtyLog(Arc<Mutex<Recording>>);

#[derive(Debug)]
struct Recording {
    vm: Arc<KvmVm>,
    vcpu_writes: Option<dirty::DirtyLog>,
    /// What vCPUs of machines before `vm` wrote and nobody has taken yet; empty if there is nothing.
    earlier: Vec<u64>,
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
    /// Not yet recording. `segment` is the block of [`MachineRam::segment`].
    pub fn new(vm: Arc<KvmVm>, segment: Option<usize>) -> Self {
        let segment = segment.map(|block| Segment { block, written: 0 });
        Self(Arc::new(Mutex::new(Recording { vm, vcpu_writes: None, earlier: Vec::new(), segment })))
    }

    /// Goes on with `vm`, whose vCPUs have not run, in place of the machine so far, whose vCPUs have ended.
    ///
    /// # Errors
    /// [`Error::Kvm`]; it does not record any more, and says so at the next look into it.
    pub fn follow(&self, vm: &Arc<KvmVm>) -> Result<(), Error> {
        self.lock().follow(vm)
    }

    fn lock(&self) -> MutexGuard<'_, Recording> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recording {
    fn follow(&mut self, vm: &Arc<KvmVm>) -> Result<(), Error> {
        let before = std::mem::replace(&mut self.vm, Arc::clone(vm));
        let Some(mut recorded) = self.vcpu_writes.take() else { return Ok(()) };
        let words = (vm.ram().len() / PAGE_SIZE).div_ceil(64) as usize;
        self.earlier.resize(words, 0);
        recorded.sync(&before, &mut self.earlier)?;
        let mut begun = dirty::DirtyLog::start(vm)?;
        // KVM may begin with all pages marked. The engine knows what it has still to send: none of them was written here.
        begun.sync(vm, &mut vec![0; words])?;
        begun.clear(vm, 0, vm.ram().len() / PAGE_SIZE)?;
        self.vcpu_writes = Some(begun);
        Ok(())
    }
}

impl vmstate::ram::DirtyLog for MachineDirtyLog {
    fn start(&mut self) -> vmstate::Result<()> {
        let recording = &mut *self.lock();
        recording.vcpu_writes = Some(dirty::DirtyLog::start(&recording.vm).map_err(hypervisor)?);
        recording.earlier.clear();
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
        for (word, earlier) in words.iter_mut().zip(recording.earlier.drain(..)) {
            *word |= earlier;
        }
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

fn misuse(error: Error) -> vmstate::Error {
    vmstate::Error::new(ErrorKind::Misuse, "guest memory was addressed outside its block").with_source(error)
}

fn hypervisor(error: Error) -> vmstate::Error {
    vmstate::Error::new(ErrorKind::Io, "the hypervisor's dirty log failed").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u64 = SEGMENT.end / PAGE_SIZE + 2;
    const FIRST: u64 = SEGMENT.start / PAGE_SIZE;

    fn page(ram: &dyn GuestRam, block: usize, page: u64) -> u8 {
        let mut bytes = [0; PAGE_SIZE as usize];
        ram.read(block, page * PAGE_SIZE, &mut bytes).unwrap();
        assert_eq!(bytes, [bytes[0]; PAGE_SIZE as usize]);
        bytes[0]
    }

    /// Each page of the RAM holds its number.
    fn numbered() -> Ram {
        let ram = Ram::new(PAGES * PAGE_SIZE).unwrap();
        for page in 0..PAGES {
            ram.write(page * PAGE_SIZE, &[page as u8; PAGE_SIZE as usize]).unwrap();
        }
        ram
    }

    #[test]
    fn a_qemu_gets_the_segment_as_its_firmware_and_no_ram_beneath() {
        let ram = MachineRam::leaving(numbered(), &Firmware::default(), true);
        let blocks: Vec<_> = ram.blocks().iter().map(|block| (block.name.as_str(), block.len)).collect();
        assert_eq!(blocks, [("microvm.ram", PAGES * PAGE_SIZE), ("pc.bios", 0x2_0000)]);
        assert_eq!(ram.segment(), Some(1));
        for number in 0..PAGES {
            let expected = if (FIRST..FIRST + 32).contains(&number) { 0 } else { number as u8 };
            assert_eq!(page(&ram, 0, number), expected, "{number:#x}");
        }
        for number in 0..32 {
            assert_eq!(page(&ram, 1, number), (FIRST + number) as u8);
        }
        // Sixteen pages at once, as the engine reads, across both ends.
        for first in [FIRST - 3, FIRST + 32 - 5] {
            let mut run = vec![9; 16 * PAGE_SIZE as usize];
            let count = run.len().min(((PAGES - first) * PAGE_SIZE) as usize);
            ram.read(0, first * PAGE_SIZE, &mut run[..count]).unwrap();
            for (number, bytes) in (first..).zip(run[..count].chunks(PAGE_SIZE as usize)) {
                assert_eq!(bytes[17], page(&ram, 0, number), "{number:#x}");
            }
        }
        let plain = MachineRam::leaving(numbered(), &Firmware::default(), false);
        assert_eq!((plain.blocks().len(), page(&plain, 0, FIRST)), (1, FIRST as u8));
        let small = MachineRam::leaving(Ram::new(SEGMENT.end - PAGE_SIZE).unwrap(), &Firmware::default(), true);
        assert_eq!(small.blocks().len(), 1);
        assert!(!small.adopt("pc.bios", 0x2_0000).unwrap());
    }

    /// QEMU sends its RAM before its firmware and again in each round, and the guest must see the firmware all the same.
    #[test]
    fn the_firmware_of_a_qemu_lies_over_its_ram_in_any_order() {
        for firmware_first in [false, true] {
            let ram = Ram::new(PAGES * PAGE_SIZE).unwrap();
            let kept = Firmware::default();
            let arriving = MachineRam::arriving(ram.clone(), kept.clone());
            assert!(arriving.adopt("/rom@etc/table-loader", PAGE_SIZE).unwrap());
            assert!(arriving.adopt("pc.bios", 0x2_0000).unwrap());
            let write = |block, page: u64, byte| arriving.write(block, page * PAGE_SIZE, &[byte; 4096]).unwrap();
            if firmware_first {
                write(2, 20, 7);
            }
            for page in [FIRST - 1, FIRST, FIRST + 20, FIRST + 31, FIRST + 32] {
                write(0, page, 1);
            }
            arriving.zero_page(0, (FIRST + 20) * PAGE_SIZE).unwrap();
            if !firmware_first {
                write(2, 20, 7);
            }
            write(1, 0, 5);
            let seen: Vec<_> = (FIRST - 1..FIRST + 33)
                .map(|number| {
                    let mut byte = [0];
                    ram.read(number * PAGE_SIZE, &mut byte).unwrap();
                    byte[0]
                })
                .collect();
            let expected: Vec<_> = (0..34)
                .map(|at| match at {
                    0 | 33 => 1,
                    21 => 7,
                    _ => 0,
                })
                .collect();
            assert_eq!(seen, expected);
            // What came goes on to the next one, in the same order.
            let leaving = MachineRam::leaving(ram, &kept, true);
            let names: Vec<_> = leaving.blocks().iter().map(|block| block.name.as_str()).collect();
            assert_eq!(names, ["microvm.ram", "/rom@etc/table-loader", "pc.bios"]);
            assert_eq!((page(&leaving, 1, 0), page(&leaving, 2, 20), page(&leaving, 0, FIRST + 20)), (5, 7, 0));
        }
    }

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
