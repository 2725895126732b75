//! `vm_memory`'s guest memory as a [`GuestRam`], and a dirty log of writes through it.

use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use super::zero::is_zero;
use super::{DirtyLog, GuestRam, PAGE, PAGE_SIZE, RamBlock};
use crate::error::{Error, ErrorKind, Result};

/// Guest memory in which each region is a block. Clones share the memory.
#[derive(Clone, Debug)]
pub struct MemoryRam<B: Bitmap = AtomicBitmap> {
    memory: GuestMemoryMmap<B>,
    blocks: Vec<RamBlock>,
}

impl<B: Bitmap + 'static> MemoryRam<B> {
    /// Wraps all of `memory`; `names` are the names of the regions as blocks, in the order of guest addresses.
    ///
    /// # Errors
    /// `Misuse` if the numbers of names and regions differ, or a region does not consist of whole pages.
    pub fn new<N: Into<String>>(memory: GuestMemoryMmap<B>, names: impl IntoIterator<Item = N>) -> Result<Self> {
        let misuse = |message: String| Err(Error::new(ErrorKind::Misuse, message));
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        if names.len() != memory.num_regions() {
            return misuse(format!("{} names for {} regions of guest memory", names.len(), memory.num_regions()));
        }
        let lengths = memory.iter().map(GuestMemoryRegion::len);
        let blocks: Vec<_> = names.into_iter().zip(lengths).map(|(name, len)| RamBlock { name, len }).collect();
        match blocks.iter().find(|block| !block.len.is_multiple_of(PAGE_SIZE)) {
            Some(RamBlock { name, len }) => misuse(format!("{name}: {len} bytes are no whole pages")),
            None => Ok(Self { memory, blocks }),
        }
    }

    fn region(&self, block: usize) -> Result<&GuestRegionMmap<B>> {
        self.memory.iter().nth(block).ok_or_else(|| Error::new(ErrorKind::Misuse, format!("there is no block {block}")))
    }
}

impl<B: Bitmap + Send + Sync + 'static> GuestRam for MemoryRam<B> {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        self.region(block)?.read_slice(into, MemoryRegionAddress(offset)).map_err(outside)
    }

    fn zero_pages(&self, block: usize, offset: u64, pages: u32) -> Result<u64> {
        let region = self.region(block)?;
        let (mut zero, mut page) = (0, ZEROS);
        for index in 0..pages {
            let address = MemoryRegionAddress(offset.saturating_add(u64::from(index) * PAGE_SIZE));
            // Most pages that are not zero differ in their first bytes.
            let first = region.read_obj::<u64>(address).map_err(outside)?;
            if first == 0 {
                region.read_slice(&mut page, address).map_err(outside)?;
                zero |= u64::from(is_zero(&page)) << index;
            }
        }
        Ok(zero)
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        self.region(block)?.write_slice(from, MemoryRegionAddress(offset)).map_err(outside)
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        let mut page = ZEROS;
        self.read(block, offset, &mut page)?;
        // Reading a page that was never touched allocates no memory, and writing zeros would.
        if page == ZEROS { Ok(()) } else { self.write(block, offset, &ZEROS) }
    }
}

const ZEROS: [u8; PAGE] = [0; PAGE];

#[cold]
fn outside(error: vm_memory::GuestMemoryError) -> Error {
    Error::new(ErrorKind::Misuse, "guest memory was addressed outside its block").with_source(error)
}

/// The dirty log of pages that devices wrote, from the bitmap of guest memory. vCPUs bypass that bitmap: pair this log with the
/// hypervisor's.
#[derive(Clone, Debug)]
pub struct DeviceWrites {
    memory: GuestMemoryMmap<AtomicBitmap>,
}

impl DeviceWrites {
    /// Logs writes to `memory`.
    ///
    /// # Errors
    /// `Misuse` if the page size of the bitmap differs from the engine's [`PAGE_SIZE`].
    pub fn new(memory: GuestMemoryMmap<AtomicBitmap>) -> Result<Self> {
        let by_page = |region: &GuestRegionMmap<AtomicBitmap>| {
            region.get_mmap().bitmap().len() as u64 == region.len().div_ceil(PAGE_SIZE)
        };
        if !memory.iter().all(by_page) {
            return Err(Error::new(ErrorKind::Misuse, "the bitmap of guest memory must count in pages of 4096 bytes"));
        }
        Ok(Self { memory })
    }
}

impl DirtyLog for DeviceWrites {
    fn start(&mut self) -> Result<()> {
        self.memory.iter().for_each(|region| region.get_mmap().bitmap().reset());
        Ok(())
    }

    fn sync(&mut self, block: usize, words: &mut [u64]) -> Result<()> {
        let region = self.memory.iter().nth(block);
        let region = region.ok_or_else(|| Error::new(ErrorKind::Misuse, format!("there is no block {block}")))?;
        for (word, written) in words.iter_mut().zip(region.get_mmap().bitmap().get_and_reset()) {
            *word |= written;
        }
        Ok(())
    }

    fn clear(&mut self, _block: usize, _first: u64, _count: u64) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}
}
