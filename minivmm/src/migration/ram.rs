//! Guest RAM for the engine: one block of pages, and the blocks of QEMU's firmware.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use vmstate::ErrorKind;
use vmstate::codec::{Outbox, PageRun, Piece};
use vmstate::ram::{GuestRam, PostcopyMemory, RamBlock, copied_in, copied_in_at, copied_out, copied_out_at};

use super::block_time::BlockClock;
use super::firmware::{Firmware, Place, SEGMENT};
use crate::config::Restore;
use crate::error::Error;
use crate::memory::{PAGE_SIZE, Part, RAM_BLOCK, Ram, changed_bytes};

/// RAM of the machine, and the blocks of QEMU's firmware. Clones share the same memory.
#[derive(Clone, Debug)]
pub struct MachineRam {
    pub(super) ram: Ram,
    pub(super) firmware: Firmware,
    blocks: Vec<RamBlock>,
    /// Whether both sides have mapped the guest's RAM.
    is_shared: bool,
    /// Whether the stream omits that the RAM is shared, as in QEMU's mode `cpr-transfer`.
    is_transferred: bool,
    /// When the pages of a file are read.
    restore: Restore,
    /// Measurement of the vCPUs' waits for pages in post-copy, if it is enabled.
    pub(super) block_clock: Option<BlockClock>,
}

impl MachineRam {
    /// Makes the RAM of a machine that waits for a guest; a source's firmware blocks are added to `firmware`.
    pub fn arriving(ram: Ram, firmware: Firmware) -> Self {
        let blocks = vec![RamBlock { name: RAM_BLOCK.into(), len: ram.len() }];
        Self {
            ram,
            firmware,
            blocks,
            is_shared: false,
            is_transferred: false,
            restore: Restore::default(),
            block_clock: None,
        }
    }

    /// Makes the RAM of a guest that leaves, with the blocks of `firmware` that it arrived with. `shows_segment`: a QEMU as the
    /// destination will show the guest the same bytes at [`SEGMENT`] as this machine, whatever QEMU's own firmware has there.
    pub fn leaving(ram: Ram, firmware: &Firmware, shows_segment: bool) -> Self {
        let mut leaving = Self::arriving(ram, firmware.to_own());
        if shows_segment && leaving.ram.len() >= SEGMENT.end {
            leaving.firmware.add_segment();
        }
        leaving.blocks.extend(leaving.firmware.blocks());
        leaving
    }

    /// Marks the guest's RAM as mapped by the other side as well.
    #[must_use]
    pub fn shared(self) -> Self {
        Self { is_shared: true, ..self }
    }

    /// Marks the guest's RAM as mapped by the other side as well, which both sides know by a channel of its own.
    #[must_use]
    pub fn transferred(self) -> Self {
        Self { is_transferred: true, ..self.shared() }
    }

    /// Sets when the pages of a file are read.
    #[must_use]
    pub fn restored(self, restore: Restore) -> Self {
        Self { restore, ..self }
    }

    /// Sets the measurement of the vCPUs' waits for pages in post-copy.
    pub fn measure_block_time(&mut self, clock: Option<BlockClock>) {
        self.block_clock = clock;
    }

    /// Index of the block that overlays the guest's RAM, if there is one.
    pub fn segment(&self) -> Option<usize> {
        self.firmware.segment().map(|index| index + 1)
    }

    /// Returns which of `len` bytes of the guest's RAM at `offset` a QEMU has beneath its firmware, where no guest sees them:
    /// they are sent as zero, and ignored when they arrive.
    pub(super) fn hidden(&self, offset: u64, len: usize) -> Range<usize> {
        let end = offset.saturating_add(len as u64);
        if offset >= SEGMENT.end || end <= SEGMENT.start || self.firmware.segment().is_none() {
            return 0..0;
        }
        (SEGMENT.start.saturating_sub(offset) as usize)..(end.min(SEGMENT.end) - offset) as usize
    }

    /// Offset of a run of pages in the guest's RAM, if all of it is there.
    pub(super) fn in_ram(&self, run: &PageRun) -> Option<u64> {
        let Some(index) = run.block.checked_sub(1) else {
            return self.hidden(run.offset, run.len as usize).is_empty().then_some(run.offset);
        };
        match self.firmware.place(index) {
            Ok(Place::Ram(start)) => start.checked_add(run.offset),
            _ => None,
        }
    }
}

impl GuestRam for MachineRam {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    /// Only blocks in the guest's RAM are shared; blocks kept beside it are not.
    fn shared_at(&self, block: usize) -> Option<u64> {
        if !self.is_shared {
            return None;
        }
        let Some(index) = block.checked_sub(1) else { return Some(0) };
        match self.firmware.place(index) {
            Ok(Place::Ram(start)) => Some(start),
            _ => None,
        }
    }

    fn announces_shared(&self) -> bool {
        !self.is_transferred
    }

    fn postcopy(&self) -> Option<&dyn PostcopyMemory> {
        Some(self)
    }

    fn adopt(&self, name: &str, len: u64) -> vmstate::Result<bool> {
        // The guest can see the block only if it has RAM there.
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

    fn changed_bytes(&self, old: &[u8; 4096], new: &[u8; 4096]) -> [u64; 64] {
        changed_bytes(old, new)
    }

    fn zero_pages(&self, block: usize, offset: u64, pages: u32) -> vmstate::Result<u64> {
        let Some(index) = block.checked_sub(1) else {
            let hidden = self.hidden(offset, pages as usize * PAGE_SIZE as usize);
            let hidden = (0..pages).filter(|page| hidden.contains(&((page * PAGE_SIZE as u32) as usize)));
            let zero = self.ram.zero_pages(offset, pages).map_err(misuse)?;
            return Ok(hidden.fold(zero, |zero, page| zero | 1 << page));
        };
        match self.firmware.place(index)? {
            Place::Ram(start) => self.ram.zero_pages(start.saturating_add(offset), pages).map_err(misuse),
            Place::Kept => {
                let mut bytes = vec![0; pages as usize * PAGE_SIZE as usize];
                self.firmware.read(index, offset, &mut bytes)?;
                let pages = bytes.chunks(PAGE_SIZE as usize);
                Ok(pages.rev().fold(0, |zero, page| zero << 1 | u64::from(page.iter().all(|&byte| byte == 0))))
            }
        }
    }

    fn untouched(&self, block: usize, offset: u64, words: &mut [u64]) -> vmstate::Result<()> {
        // QEMU's firmware is small, and its pages are not at the offsets of the RAM's block.
        if block > 0 { Ok(()) } else { self.ram.untouched(offset, words).map_err(misuse) }
    }

    /// Sends without a copy the pages that are in the guest's RAM.
    fn send(&self, to: BorrowedFd<'_>, outbox: &Outbox) -> io::Result<usize> {
        let part = |piece| match piece {
            Piece::Bytes(bytes) => Some(Part::Bytes(bytes)),
            Piece::Pages(run) => self.in_ram(&run).map(|offset| Part::Ram { offset, len: run.len }),
        };
        if outbox.pieces().next().is_some_and(|first| part(first).is_none()) {
            return copied_out(self, outbox, |bytes| Ok(nix::unistd::write(to, bytes)?));
        }
        self.ram.send(to, outbox.pieces().map_while(part))
    }

    /// Receives without a copy, like [`send`](Self::send).
    fn receive(&self, from: BorrowedFd<'_>, runs: &[PageRun]) -> io::Result<usize> {
        if runs.first().is_some_and(|first| self.in_ram(first).is_none()) {
            return copied_in(self, runs, |into| Ok(nix::unistd::read(from, into)?));
        }
        self.ram.receive(from, runs.iter().map_while(|run| self.in_ram(run).map(|offset| (offset, run.len))))
    }

    /// Writes without a copy, like [`send`](Self::send).
    fn send_at(&self, file: &File, offset: u64, run: PageRun) -> io::Result<usize> {
        match self.in_ram(&run) {
            Some(in_ram) => self.ram.send_at(file, offset, in_ram, run.len),
            None => copied_out_at(self, file, offset, run),
        }
    }

    /// Reads without a copy, like [`send`](Self::send).
    fn receive_at(&self, file: &File, offset: u64, run: PageRun) -> io::Result<usize> {
        match self.in_ram(&run) {
            Some(in_ram) => self.ram.receive_at(file, offset, in_ram, run.len),
            None => copied_in_at(self, file, offset, run),
        }
    }

    /// Maps the guest's RAM except what is beneath QEMU's firmware. Other blocks are small, memory in a file of its own stays
    /// there, and memory that is to be read before the guest runs is not mapped.
    fn map(&self, block: usize, file: BorrowedFd<'_>, offset: u64, words: &[u64]) -> vmstate::Result<bool> {
        if block > 0 || self.restore == Restore::Eager || self.ram.descriptor().is_some() {
            return Ok(false);
        }
        let hidden = self.hidden(0, self.ram.len() as usize);
        let (all, page) = (self.ram.len() / PAGE_SIZE, |byte: usize| byte as u64 / PAGE_SIZE);
        for pages in [0..page(hidden.start), page(hidden.end)..all] {
            self.ram
                .map_pages(pages, file, offset, words)
                .map_err(|error| vmstate::Error::new(ErrorKind::Rejected, "guest memory").with_source(error))?;
        }
        Ok(true)
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

    fn write_pages(&self, block: usize, pages: &[(u64, &[u8])]) -> vmstate::Result<()> {
        let hides = |(offset, bytes): &(u64, &[u8])| !self.hidden(*offset, bytes.len()).is_empty();
        if block > 0 || pages.iter().any(hides) {
            return pages.iter().try_for_each(|&(offset, bytes)| self.write(block, offset, bytes));
        }
        self.ram.write_pages(pages).map_err(misuse)
    }

    fn zero_page(&self, block: usize, offset: u64) -> vmstate::Result<()> {
        let Some(index) = block.checked_sub(1) else {
            let hidden = !self.hidden(offset, PAGE_SIZE as usize).is_empty();
            return if hidden { Ok(()) } else { self.ram.zero_run(offset, 1).map_err(misuse) };
        };
        match self.firmware.place(index)? {
            Place::Ram(start) => self.ram.zero_run(start.saturating_add(offset), 1).map_err(misuse),
            Place::Kept => self.firmware.write(index, offset, &[0; PAGE_SIZE as usize]),
        }
    }

    fn zero_run(&self, block: usize, offset: u64, pages: u64) -> vmstate::Result<()> {
        let len = usize::try_from(pages.saturating_mul(PAGE_SIZE)).unwrap_or(usize::MAX);
        if block > 0 || !self.hidden(offset, len).is_empty() {
            return (0..pages).try_for_each(|page| self.zero_page(block, offset.saturating_add(page * PAGE_SIZE)));
        }
        self.ram.zero_run(offset, pages).map_err(misuse)
    }
}

pub(super) fn misuse(error: Error) -> vmstate::Error {
    vmstate::Error::new(ErrorKind::Misuse, "guest memory was addressed outside its block").with_source(error)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    const PAGES: u64 = SEGMENT.end / PAGE_SIZE + 2;
    const FIRST: u64 = SEGMENT.start / PAGE_SIZE;

    fn page(ram: &dyn GuestRam, block: usize, page: u64) -> u8 {
        let mut bytes = [0; PAGE_SIZE as usize];
        ram.read(block, page * PAGE_SIZE, &mut bytes).unwrap();
        assert_eq!(bytes, [bytes[0]; PAGE_SIZE as usize]);
        bytes[0]
    }

    /// Makes RAM in which each page holds its number.
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

    /// QEMU sends its RAM before its firmware and again in each round; the guest must see the firmware nevertheless.
    #[test]
    fn the_firmware_of_a_qemu_covers_its_ram_in_any_order() {
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
            let together = [FIRST - 1, FIRST, FIRST + 20].map(|page| (page * PAGE_SIZE, &[1; PAGE_SIZE as usize][..]));
            arriving.write_pages(0, &together).unwrap();
            arriving.zero_page(0, (FIRST + 20) * PAGE_SIZE).unwrap();
            arriving.zero_run(0, FIRST * PAGE_SIZE, 32).unwrap();
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
            // The blocks are sent on to the next machine, in the same order.
            let leaving = MachineRam::leaving(ram, &kept, true);
            let names: Vec<_> = leaving.blocks().iter().map(|block| block.name.as_str()).collect();
            assert_eq!(names, ["microvm.ram", "/rom@etc/table-loader", "pc.bios"]);
            assert_eq!((page(&leaving, 1, 0), page(&leaving, 2, 20), page(&leaving, 0, FIRST + 20)), (5, 7, 0));
        }
    }

    /// Pages of each kind and across each border: in the guest's RAM, beneath the firmware, in the firmware, in a file of
    /// QEMU's.
    fn runs() -> Vec<PageRun> {
        let run = |block, first: u64, pages: u64| PageRun { block, offset: first * PAGE_SIZE, len: pages * PAGE_SIZE };
        vec![run(0, 3, 2), run(1, 0, 1), run(0, FIRST - 3, 5), run(2, 7, 20), run(2, 27, 5), run(0, FIRST + 30, 4)]
    }

    fn with_firmware(ram: Ram) -> MachineRam {
        let kept = Firmware::default();
        let arriving = MachineRam::arriving(ram.clone(), kept.clone());
        assert!(
            arriving.adopt("/rom@etc/table-loader", PAGE_SIZE).unwrap() && arriving.adopt("pc.bios", 0x2_0000).unwrap()
        );
        arriving.write(1, 0, &[0x77; PAGE_SIZE as usize]).unwrap();
        MachineRam::leaving(ram, &kept, true)
    }

    #[test]
    fn pages_of_each_kind_are_sent_as_they_are_read() {
        let ram = with_firmware(numbered());
        let (mut outbox, mut expected) = (Outbox::new(), Vec::new());
        for run in runs() {
            outbox.put(b"head");
            outbox.put_pages(run);
            let mut bytes = vec![0; run.len as usize];
            ram.read(run.block, run.offset, &mut bytes).unwrap();
            expected.extend([b"head".as_slice(), &bytes].concat());
        }
        let (here, mut there) = UnixStream::pair().unwrap();
        let len = expected.len();
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; len];
            there.read_exact(&mut got).map(|()| got)
        });
        while !outbox.is_empty() {
            let count = ram.send(here.as_fd(), &outbox).unwrap();
            assert!(count > 0);
            outbox.advance(count as u64);
        }
        assert!(reader.join().unwrap().unwrap() == expected);
    }

    #[test]
    fn pages_of_each_kind_are_received_as_they_are_written() {
        let (ram, model) = (with_firmware(numbered()), with_firmware(numbered()));
        let (here, mut there) = UnixStream::pair().unwrap();
        let mut sent = Vec::new();
        for (number, run) in (0x80..).zip(runs()) {
            let bytes = vec![number; run.len as usize];
            model.write(run.block, run.offset, &bytes).unwrap();
            sent.extend(bytes);
        }
        let writer = std::thread::spawn(move || there.write_all(&sent).unwrap());
        let mut runs = runs();
        let mut rest = runs.as_mut_slice();
        while !rest.is_empty() {
            let count = ram.receive(here.as_fd(), rest).unwrap();
            assert!(count > 0);
            PageRun::advance_slices(&mut rest, count as u64);
        }
        writer.join().unwrap();
        for (block, listed) in ram.blocks().iter().enumerate() {
            for number in 0..listed.len / PAGE_SIZE {
                assert_eq!(page(&ram, block, number), page(&model, block, number), "{number:#x} of {block}");
            }
        }
        assert_eq!((page(&ram, 0, 3), page(&ram, 2, 7), page(&ram, 0, FIRST - 1)), (0x80, 0x83, 0x82));
    }

    #[test]
    fn a_page_is_zero_if_it_reads_as_zero() {
        let ram = with_firmware(numbered());
        ram.write(0, 9 * PAGE_SIZE, &[0; PAGE_SIZE as usize]).unwrap();
        ram.write(2, 9 * PAGE_SIZE, &[0; PAGE_SIZE as usize]).unwrap();
        for (block, first, pages) in [(0, 0, 64), (0, FIRST - 20, 54), (1, 0, 1), (2, 0, 32)] {
            let zero = ram.zero_pages(block, first * PAGE_SIZE, pages).unwrap();
            for number in 0..u64::from(pages) {
                let expected = page(&ram, block, first + number) == 0;
                assert_eq!(zero >> number & 1 == 1, expected, "{number:#x} after {first:#x} of {block}");
            }
        }
    }
}
