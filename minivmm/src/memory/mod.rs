//! Guest memory, with all mmap calls of the crate. One RAM block `microvm.ram`, below 3 GiB and from 4 GiB, as in QEMU's
//! `microvm`.
//!
//! Offsets are in bytes from the start of the block, as in a migration; guest addresses are those of the guest.

mod changed;
mod copy;
mod device_writes;
mod mapped;
mod other_writers;
mod postcopy;
mod shared;
mod transfer;
mod untouched;
mod zero;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use self::other_writers::OtherWriters;
use crate::error::{Error, Result};
use crate::sync::lock;

pub use changed::changed_bytes;
pub use device_writes::DeviceWrites;
pub use other_writers::OtherWriter;
pub use postcopy::Fault;
pub use shared::SharedCopy;
pub use transfer::Part;

/// Guest memory with a dirty bitmap of device writes.
pub type GuestMemory = vm_memory::GuestMemoryMmap<DeviceWrites>;

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;

/// Name of the RAM block in migration streams.
pub const RAM_BLOCK: &str = "microvm.ram";

/// RAM below 4 GiB ends here at the latest: above are MMIO windows, APICs and firmware.
pub const LOW_RAM_MAX: u64 = 0xc000_0000;

/// Start of the RAM that does not fit below [`LOW_RAM_MAX`].
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// Largest RAM in bytes.
pub const RAM_MAX: u64 = 64 << 30;

/// The RAM block. Clones share the same memory.
#[derive(Clone, Debug)]
pub struct Ram {
    guest: GuestMemory,
    len: u64,
    /// Page map of this process, which tells populated pages, if the host has it.
    pagemap: Option<Arc<File>>,
    /// Writers of the RAM outside this process.
    others: Arc<Mutex<OtherWriters>>,
    /// Descriptor for faults at missing pages, or why there is none.
    faults: Arc<io::Result<postcopy::Faults>>,
    /// Runs of pages that are mapped to a file, in order.
    mapped: Arc<Mutex<Vec<Range<u64>>>>,
}

/// A stretch of the block that is contiguous for guest and host.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    /// Bytes from the start of the block.
    pub offset: u64,
    /// Address in the guest.
    pub guest_address: u64,
    /// Length in bytes.
    pub len: u64,
    /// Address in this process; valid as long as the [`Ram`] lives.
    pub host_address: u64,
}

impl Ram {
    /// Reserves `len` bytes, which the host populates as they are touched. They are excluded from core dumps.
    ///
    /// # Errors
    /// [`Error::Memory`] if `len` is zero, no multiple of a page, or over [`RAM_MAX`], or if the host has no address space.
    pub fn new(len: u64) -> Result<Self> {
        Self::map(len, None)
    }

    /// Maps `len` bytes of `file`, which has the same length, or private ones.
    fn map(len: u64, file: Option<Arc<File>>) -> Result<Self> {
        if len == 0 || len > RAM_MAX || !len.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Memory {
                what: format!("{len} bytes is not possible; give a multiple of 4096 bytes, at most 64G"),
            });
        }
        let low = len.min(LOW_RAM_MAX);
        let part = |offset| file.as_ref().map(|file| FileOffset::from_arc(Arc::clone(file), offset));
        let mut ranges = vec![(GuestAddress(0), low as usize, part(0))];
        if len > low {
            ranges.push((GuestAddress(HIGH_RAM_START), (len - low) as usize, part(low)));
        }
        let guest = GuestMemory::from_ranges_with_files(&ranges)
            .map_err(|error| Error::Memory { what: format!("the host does not give {len} bytes: {error}") })?;
        let ram = Self {
            guest,
            len,
            pagemap: untouched::open().map(Arc::new),
            others: Arc::default(),
            faults: Arc::new(postcopy::open()),
            mapped: Arc::default(),
        };
        for stretch in ram.stretches() {
            // SAFETY: the range is exactly a live mapping of `ram`, and MADV_HUGEPAGE changes no contents.
            // Its result does not matter: without huge pages the guest is only slower.
            unsafe { libc::madvise(stretch.host_address as *mut _, stretch.len as usize, libc::MADV_HUGEPAGE) };
            // SAFETY: as above; MADV_DONTDUMP changes no contents either.
            if unsafe { libc::madvise(stretch.host_address as *mut _, stretch.len as usize, libc::MADV_DONTDUMP) } != 0
            {
                let error = std::io::Error::last_os_error();
                let what = format!("the host does not keep guest RAM out of core dumps (MADV_DONTDUMP): {error}");
                return Err(Error::Memory { what });
            }
        }
        Ok(ram)
    }

    /// The memory for devices.
    pub fn guest(&self) -> &GuestMemory {
        &self.guest
    }

    /// Length of the block in bytes.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// End of the RAM below 4 GiB.
    pub fn low_end(&self) -> u64 {
        self.len.min(LOW_RAM_MAX)
    }

    /// The contiguous stretches, ordered by offset.
    pub fn stretches(&self) -> impl Iterator<Item = Stretch> + '_ {
        self.guest.iter().map(|region| Stretch {
            offset: offset_of(region.start_addr().0),
            guest_address: region.start_addr().0,
            len: region.len(),
            host_address: region.get_mmap().as_ptr() as u64,
        })
    }

    /// Guest address of the byte at `offset`; `None` outside the block.
    pub fn guest_address(&self, offset: u64) -> Option<u64> {
        (offset < self.len).then(|| if offset < LOW_RAM_MAX { offset } else { offset - LOW_RAM_MAX + HIGH_RAM_START })
    }

    /// Copies out of RAM. vCPUs may write meanwhile: the dirty log reports such writes.
    ///
    /// # Errors
    /// [`Error::OutsideRam`]; nothing was copied then.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let outside = Error::OutsideRam { at: offset, len: into.len() as u64 };
        let Some((low_len, low, high)) = self.place(offset, into.len()) else { return Err(outside) };
        let (first, second) = into.split_at_mut(low_len);
        self.guest.read_slice(first, low).and_then(|()| self.guest.read_slice(second, high)).map_err(|_| outside)
    }

    /// Copies into RAM, and marks the pages as written by a device.
    ///
    /// # Errors
    /// [`Error::OutsideRam`]; nothing was copied then.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<()> {
        let outside = Error::OutsideRam { at: offset, len: from.len() as u64 };
        let Some((low_len, low, high)) = self.place(offset, from.len()) else { return Err(outside) };
        let (first, second) = from.split_at(low_len);
        self.guest.write_slice(first, low).and_then(|()| self.guest.write_slice(second, high)).map_err(|_| outside)
    }

    /// Makes `pages` pages from `offset` on zero. Precondition, true at a destination: no vCPU has written, and the bitmap of
    /// device writes was never cleared. A page that is neither in the bitmap nor mapped to a file was never written, so it is
    /// zero, and is skipped without faulting it in.
    ///
    /// # Errors
    /// [`Error::OutsideRam`].
    pub fn zero_run(&self, offset: u64, pages: u64) -> Result<()> {
        let end = pages.checked_mul(PAGE_SIZE).and_then(|len| offset.checked_add(len)).filter(|&end| end <= self.len);
        let (Some(end), true) = (end, offset.is_multiple_of(PAGE_SIZE)) else {
            return Err(Error::OutsideRam { at: offset, len: pages.saturating_mul(PAGE_SIZE) });
        };
        for region in self.guest.iter() {
            let begin = offset_of(region.start_addr().0);
            let (mut at, end) = (offset.max(begin), end.min(begin + region.len()));
            while at < end {
                let written = region.get_mmap().bitmap().written((at - begin) / PAGE_SIZE, (end - at) / PAGE_SIZE);
                let mut bits = written.bits;
                let first = at / PAGE_SIZE;
                self.see_mapped(first..first + written.pages, |run| {
                    bits |= u64::MAX >> (64 - (run.end - run.start)) << (run.start - first);
                });
                self.clear_pages(at, bits)?;
                at += written.pages * PAGE_SIZE;
            }
        }
        Ok(())
    }

    /// Clears those pages of `bits` that are not zero; bit 0 is the page at `offset`.
    fn clear_pages(&self, offset: u64, mut bits: u64) -> Result<()> {
        while bits != 0 {
            let (first, count) = (bits.trailing_zeros(), (bits >> bits.trailing_zeros()).trailing_ones());
            let run = u64::MAX >> (u64::BITS - count) << first;
            let mut others = run & !(self.zero_pages(offset + u64::from(first) * PAGE_SIZE, count)? << first);
            while others != 0 {
                let page = offset + u64::from(others.trailing_zeros()) * PAGE_SIZE;
                self.write(page, &[0; PAGE_SIZE as usize])?;
                others &= others - 1;
            }
            bits &= !run;
        }
        Ok(())
    }

    /// Adds a writer outside this process, whose writes are in the bitmap of device writes while [others are
    /// recorded](Self::record_others).
    pub fn add_writer(&self, writer: Arc<dyn OtherWriter>) {
        self.others().add(writer);
    }

    /// Starts or stops the dirty logs of the writers outside this process. If one cannot start, none is recorded.
    ///
    /// # Errors
    /// The host's.
    pub fn record_others(&self, on: bool) -> io::Result<()> {
        self.others().record(on)
    }

    fn mapped(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        lock(&self.mapped)
    }

    fn others(&self) -> MutexGuard<'_, OtherWriters> {
        lock(&self.others)
    }

    /// Moves the bitmap of device writes into `words`: ORs it in and clears it. Bit 0 of word 0 is the block's first page.
    ///
    /// # Panics
    /// If `words` is shorter than one bit a page.
    pub fn take_device_writes(&self, words: &mut [u64]) {
        for region in self.guest.iter() {
            // Both stretches begin at a whole word: 3 GiB is 12288 words of 64 pages.
            let first = (offset_of(region.start_addr().0) / PAGE_SIZE / 64) as usize;
            region.get_mmap().bitmap().take(|index, word| words[first + index] |= word);
        }
        self.others().take(words);
    }

    /// ORs `words` into the bitmap of device writes, with the bits of [`take_device_writes`](Self::take_device_writes).
    pub fn add_device_writes(&self, words: &[u64]) {
        for region in self.guest.iter() {
            let first = (offset_of(region.start_addr().0) / PAGE_SIZE / 64) as usize;
            region.get_mmap().bitmap().add(words.get(first..).unwrap_or_default());
        }
    }

    /// Calls `see` with each word of the bitmap of device writes that has bits, and with the number of its first page, without
    /// clearing it; stops when `see` returns false, and returns that.
    pub fn see_device_writes(&self, mut see: impl FnMut(u64, u64) -> bool) -> bool {
        self.guest.iter().all(|region| {
            let first = offset_of(region.start_addr().0) / PAGE_SIZE;
            region.get_mmap().bitmap().see(|index, word| see(first + index as u64 * 64, word))
        })
    }

    /// Returns how many of `len` bytes at `offset` are below the hole, their guest address, and the address of the rest. The
    /// address of an empty part is inside RAM, too, as vm-memory requires.
    fn place(&self, offset: u64, len: usize) -> Option<(usize, GuestAddress, GuestAddress)> {
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.len)?;
        let low_len = LOW_RAM_MAX.min(end).saturating_sub(offset);
        let low = if low_len == 0 { 0 } else { offset };
        let high = if end <= LOW_RAM_MAX { 0 } else { self.guest_address(offset + low_len)? };
        Some((low_len as usize, GuestAddress(low), GuestAddress(high)))
    }
}

fn offset_of(guest_address: u64) -> u64 {
    if guest_address < HIGH_RAM_START { guest_address } else { guest_address - HIGH_RAM_START + LOW_RAM_MAX }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_ram_is_one_stretch() {
        let ram = Ram::new(16 << 20).unwrap();
        let stretches: Vec<_> = ram.stretches().map(|s| (s.offset, s.guest_address, s.len)).collect();
        assert_eq!(stretches, [(0, 0, 16 << 20)]);
        assert_eq!(ram.guest_address(16 << 20), None);
    }

    /// `dd` in VmFlags is "do not include area into core dump" (Documentation/filesystems/proc.rst).
    #[test]
    fn guest_memory_is_in_no_core_dump() {
        let ram = Ram::new((3 << 30) + (1 << 20)).unwrap();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        for stretch in ram.stretches() {
            let mut here = false;
            let flags = smaps.lines().find(|line| {
                if let Some((start, end)) = line.split_once(' ').and_then(|(range, _)| range.split_once('-'))
                    && let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
                {
                    here = (start..end).contains(&stretch.host_address);
                }
                here && line.starts_with("VmFlags:")
            });
            assert!(flags.unwrap().split(' ').any(|flag| flag == "dd"), "{flags:?}");
        }
    }

    /// QEMU's `microvm`: 3 GiB below, the rest from 4 GiB.
    #[test]
    fn large_ram_goes_on_at_4_gib() {
        let ram = Ram::new(5 << 30).unwrap();
        let stretches: Vec<_> = ram.stretches().map(|s| (s.offset, s.guest_address, s.len)).collect();
        assert_eq!(stretches, [(0, 0, 3 << 30), (3 << 30, 4 << 30, 2 << 30)]);
        assert_eq!(ram.guest_address((3 << 30) - 1), Some((3 << 30) - 1));
        assert_eq!(ram.guest_address(3 << 30), Some(4 << 30));
        ram.write((3 << 30) + 8, &[7]).unwrap();
        let mut seen = [0];
        ram.guest().read_slice(&mut seen, GuestAddress((4 << 30) + 8)).unwrap();
        assert_eq!(seen, [7]);
        ram.write((3 << 30) - 2, &[1, 2, 3, 4]).unwrap();
        let mut across = [0; 6];
        ram.read((3 << 30) - 3, &mut across).unwrap();
        assert_eq!(across, [0, 1, 2, 3, 4, 0]);
    }

    #[test]
    fn device_writes_are_taken_once_by_block_offset() {
        let ram = Ram::new((3 << 30) + (1 << 20)).unwrap();
        let pages = (ram.len() / PAGE_SIZE) as usize;
        let mut words = vec![0; pages.div_ceil(64)];
        ram.guest().write_slice(&[1; 4097], GuestAddress(0x3fff)).unwrap();
        ram.guest().write_slice(&[1], GuestAddress((4 << 30) + 0x41000)).unwrap();
        ram.take_device_writes(&mut words);
        let set: Vec<_> = (0..pages).filter(|page| words[page / 64] >> (page % 64) & 1 == 1).collect();
        assert_eq!(set, [3, 4, 786_432 + 0x41]);
        let mut again = vec![0; words.len()];
        ram.take_device_writes(&mut again);
        assert!(again.iter().all(|&word| word == 0));
    }

    #[test]
    fn accesses_outside_are_refused() {
        let ram = Ram::new(1 << 20).unwrap();
        assert!(matches!(ram.read((1 << 20) - 1, &mut [0; 2]), Err(Error::OutsideRam { .. })));
        assert!(matches!(ram.write(u64::MAX, &[0]), Err(Error::OutsideRam { .. })));
        for (offset, pages) in [(1 << 20, 1), (0, 257), (0xff000, 2), (0x800, 1), (0, u64::MAX)] {
            assert!(matches!(ram.zero_run(offset, pages), Err(Error::OutsideRam { .. })), "{offset:#x}, {pages}");
        }
        for len in [0, 4095, RAM_MAX + PAGE_SIZE] {
            assert!(matches!(Ram::new(len), Err(Error::Memory { .. })), "{len}");
        }
    }

    #[test]
    fn pages_written_in_either_stretch_are_zeroed_and_their_neighbours_are_not() {
        let ram = Ram::new((3 << 30) + (1 << 20)).unwrap();
        for offset in [0x5000, 0x6000, 3 << 30, (3 << 30) + 0x1000] {
            ram.write(offset, &[7; 4096]).unwrap();
        }
        ram.zero_run(0x5000, 1).unwrap();
        ram.zero_run((3 << 30) + 0x1000, 1).unwrap();
        let first = |offset| {
            let mut byte = [9];
            ram.read(offset, &mut byte).unwrap();
            byte[0]
        };
        assert_eq!([0x5000, 0x6000, 3 << 30, (3 << 30) + 0x1000].map(first), [0, 7, 7, 0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        /// Compares the pages' first bytes: runs of any length, across words of the bitmap and across the hole.
        #[test]
        fn a_run_of_zeroed_pages_is_zero_and_no_other_page_is_changed(
            written in prop::collection::btree_set(0..300_u64, 0..200),
            runs in prop::collection::vec((0..300_u64, 0..200_u64), 1..4),
        ) {
            let ram = Ram::new(LOW_RAM_MAX + (1 << 20)).unwrap();
            let begin = LOW_RAM_MAX - 100 * PAGE_SIZE;
            let mut model = [0; 300];
            for page in written {
                model[page as usize] = page as u8 | 1;
                ram.write(begin + page * PAGE_SIZE, &[page as u8 | 1; PAGE_SIZE as usize]).unwrap();
            }
            for (first, pages) in runs {
                let pages = pages.min(300 - first);
                ram.zero_run(begin + first * PAGE_SIZE, pages).unwrap();
                model[first as usize..(first + pages) as usize].fill(0);
            }
            for (page, byte) in (0..).zip(model) {
                let mut bytes = [9; PAGE_SIZE as usize];
                ram.read(begin + page * PAGE_SIZE, &mut bytes).unwrap();
                prop_assert!(bytes == [byte; PAGE_SIZE as usize], "page {}", page);
            }
        }
    }

    #[test]
    fn zeroing_a_zero_page_touches_nothing() {
        let ram = Ram::new(1 << 20).unwrap();
        let mut words = [0; 4];
        ram.zero_run(0x3000, 1).unwrap();
        ram.take_device_writes(&mut words);
        assert_eq!(words, [0; 4]);
        ram.write(0x3fff, &[1]).unwrap();
        ram.zero_run(0x3000, 1).unwrap();
        let mut page = [9; 4096];
        ram.read(0x3000, &mut page).unwrap();
        assert_eq!(page, [0; 4096]);
    }
}
