//! Guest RAM for the engine in post-copy. A fault is reported for the block that the guest sees at the address.

use std::os::fd::BorrowedFd;

use vmstate::ErrorKind;
use vmstate::codec::PageRun;
use vmstate::ram::PostcopyMemory;

use super::firmware::{Place, SEGMENT};
use super::ram::{MachineRam, misuse};
use crate::error::Error;
use crate::memory::PAGE_SIZE;

impl MachineRam {
    /// Offset of a block's page in the guest's RAM; `None` if no guest sees it: beneath QEMU's firmware, or in a file of
    /// QEMU's.
    fn seen_at(&self, block: usize, offset: u64) -> vmstate::Result<Option<u64>> {
        let Some(index) = block.checked_sub(1) else {
            let hidden = !self.hidden(offset, PAGE_SIZE as usize).is_empty();
            return Ok((!hidden).then_some(offset));
        };
        match self.firmware.place(index)? {
            Place::Ram(start) => Ok(Some(start.saturating_add(offset))),
            Place::Kept => Ok(None),
        }
    }

    /// The block that the guest sees at this offset of its RAM, and the offset in it.
    fn seen_of(&self, offset: u64) -> (usize, u64) {
        match self.segment() {
            Some(block) if SEGMENT.contains(&offset) => (block, offset - SEGMENT.start),
            _ => (0, offset),
        }
    }
}

impl PostcopyMemory for MachineRam {
    fn prepare(&self) -> vmstate::Result<()> {
        self.ram.check_postcopy().map_err(unable)
    }

    fn discard(&self, block: usize, offset: u64, len: u64) -> vmstate::Result<()> {
        // One call for each contiguous range, because the guest is stopped meanwhile.
        let discard = |at: u64, len: u64| if len == 0 { Ok(()) } else { self.ram.discard(at, len).map_err(misuse) };
        let Some(index) = block.checked_sub(1) else {
            let hidden = self.hidden(offset, usize::try_from(len).unwrap_or(usize::MAX));
            let (before, until) = (hidden.start as u64, hidden.end as u64);
            discard(offset, before)?;
            return discard(offset.saturating_add(until), len.saturating_sub(until));
        };
        match self.firmware.place(index)? {
            Place::Ram(start) => discard(start.saturating_add(offset), len),
            Place::Kept => (0..len / PAGE_SIZE)
                .try_for_each(|page| self.firmware.write(index, offset + page * PAGE_SIZE, &[0; 4096])),
        }
    }

    fn listen(&self) -> vmstate::Result<()> {
        self.ram.await_pages().map_err(unable)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.ram.faults_descriptor()
    }

    fn waited_for(&self, pages: &mut Vec<(usize, u64)>) -> vmstate::Result<()> {
        let mut waits = Vec::new();
        self.ram.waited_for(&mut waits).map_err(unable)?;
        if let Some(clock) = &self.block_clock {
            waits.iter().for_each(|wait| clock.begin(wait.thread, wait.offset));
        }
        pages.extend(waits.into_iter().map(|wait| self.seen_of(wait.offset)));
        Ok(())
    }

    fn put(&self, block: usize, offset: u64, page: Option<&[u8; 4096]>) -> vmstate::Result<()> {
        match (self.seen_at(block, offset)?, block.checked_sub(1)) {
            (Some(at), _) => {
                self.ram.put(at, page).map_err(misuse)?;
                if let Some(clock) = &self.block_clock {
                    clock.end(Some(at));
                }
                Ok(())
            }
            (None, None) => Ok(()),
            (None, Some(index)) => self.firmware.write(index, offset, page.unwrap_or(&[0; 4096])),
        }
    }

    fn put_zeros(&self, block: usize, offset: u64, pages: u64) -> vmstate::Result<()> {
        let len = pages.saturating_mul(PAGE_SIZE);
        let Some(start) = self.in_ram(&PageRun { block, offset, len }) else {
            // The guest sees none of these pages, or only some.
            return (0..pages).try_for_each(|page| self.put(block, offset + page * PAGE_SIZE, None));
        };
        self.ram.put_zeros(start, pages).map_err(misuse)?;
        if let Some(clock) = &self.block_clock {
            (0..pages).for_each(|page| clock.end(Some(start + page * PAGE_SIZE)));
        }
        Ok(())
    }

    fn end_waits(&self) -> vmstate::Result<()> {
        self.ram.end_waits().map_err(unable)?;
        if let Some(clock) = &self.block_clock {
            clock.end(None);
        }
        Ok(())
    }
}

fn unable(error: Error) -> vmstate::Error {
    vmstate::Error::new(ErrorKind::Rejected, error.to_string()).with_source(error)
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use vmstate::ram::GuestRam;

    use super::*;
    use crate::memory::Ram;
    use crate::migration::firmware::Firmware;

    fn waited_for(ram: &MachineRam) -> Vec<(usize, u64)> {
        let (begun, mut pages) = (Instant::now(), Vec::new());
        while pages.is_empty() && begun.elapsed() < Duration::from_secs(10) {
            PostcopyMemory::waited_for(ram, &mut pages).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        pages.dedup();
        pages
    }

    #[test]
    fn a_fault_is_reported_for_the_block_that_the_guest_sees_there() {
        let ram = Ram::new(SEGMENT.end + 2 * PAGE_SIZE).unwrap();
        let memory = MachineRam::arriving(ram.clone(), Firmware::default());
        if let Err(error) = memory.prepare() {
            return vmstate_lab::skip::skip(error);
        }
        assert!(
            memory.adopt("/rom@etc/table-loader", PAGE_SIZE).unwrap() && memory.adopt("pc.bios", 0x2_0000).unwrap()
        );
        let at = SEGMENT.start + 3 * PAGE_SIZE;
        memory.write(2, 3 * PAGE_SIZE, &[6; 4096]).unwrap();
        memory.write(2, 4 * PAGE_SIZE, &[5; 4096]).unwrap();
        memory.write(1, 0, &[4; 4096]).unwrap();
        // A discard skips the pages beneath the firmware, which nothing uses, and drops the pages around the segment.
        for around in [0, PAGE_SIZE] {
            let (before, behind) = (SEGMENT.start - PAGE_SIZE, SEGMENT.end);
            [before, behind].into_iter().for_each(|place| ram.write(place, &[7; 4096]).unwrap());
            let start = SEGMENT.start - around;
            PostcopyMemory::discard(&memory, 0, start, SEGMENT.end + around - start).unwrap();
            let left = [before, at, behind].map(|place| {
                let mut byte = [0];
                ram.read(place, &mut byte).unwrap();
                byte[0]
            });
            assert_eq!(left, if around == 0 { [7, 6, 7] } else { [0, 6, 0] });
        }
        PostcopyMemory::discard(&memory, 2, 3 * PAGE_SIZE, PAGE_SIZE).unwrap();
        PostcopyMemory::discard(&memory, 1, 0, PAGE_SIZE).unwrap();
        // A page that no guest sees reads as zero as well, since a zero page may not be put there again.
        let mut page = [4; 4096];
        memory.read(1, 0, &mut page).unwrap();
        assert_eq!(page, [0; 4096]);
        PostcopyMemory::discard(&memory, 0, SEGMENT.end, PAGE_SIZE).unwrap();
        memory.listen().unwrap();
        for (guest, block, offset) in [(at, 2, 3 * PAGE_SIZE), (SEGMENT.end, 0, SEGMENT.end)] {
            thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    let mut byte = [0];
                    ram.read(guest + 9, &mut byte).unwrap();
                    byte[0]
                });
                assert_eq!(waited_for(&memory), [(block, offset)]);
                memory.put(0, at, Some(&[1; 4096])).unwrap();
                memory.put(1, 0, Some(&[2; 4096])).unwrap();
                memory.put(block, offset, Some(&[8; 4096])).unwrap();
                assert_eq!(reader.join().unwrap(), 8);
            });
        }
        memory.end_waits().unwrap();
        memory.read(1, 0, &mut page).unwrap();
        assert_eq!(page, [2; 4096]);
    }
}
