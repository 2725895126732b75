//! Guest memory with a copy that only the writers update: vCPUs, which a hypervisor's log records, and devices, which write
//! through `vm_memory`'s bitmap. Pages are sent to sockets and received from them without a copy.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestRegionMmap,
    MemoryRegionAddress,
};
use vmstate::codec::{Outbox, PageRun, Piece};
use vmstate::error::Result;
use vmstate::ram::{DeviceWrites, DirtyLog, GuestRam, MemoryRam, PAGE_SIZE};
use vmstate_lab::random::Random;

use crate::bytes::{BYTES, some_bytes};

pub(crate) const PAGE: usize = PAGE_SIZE as usize;
/// Pages of each block.
pub(crate) const BLOCKS: [(&str, u64); 3] = [("low", 500), ("high", 133), ("table", 1)];
/// Pages of a block from this one on are first touched during a migration.
pub(crate) const TOUCHED: u64 = 450;

/// Time between two writes of a vCPU or a device that writes all the time.
pub(crate) const PACE: Duration = Duration::from_micros(100);

/// The writer of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    Vcpu,
    Device,
}

pub(crate) struct Memory {
    devices: GuestMemoryMmap<AtomicBitmap>,
    by_devices: MemoryRam<AtomicBitmap>,
    /// The same memory, without the bitmap.
    by_vcpus: MemoryRam<()>,
    written: Mutex<Written>,
}

/// The reference copy of the writers, in the order of their writes.
struct Written {
    /// All bytes as they were last written.
    shadow: Vec<Vec<u8>>,
    touched: Vec<Vec<bool>>,
    /// A log like KVM's with manual protection: a page stays dirty until it is cleared, which only reported pages are.
    dirty: Vec<Vec<bool>>,
    reported: Vec<Vec<bool>>,
    random: Random,
}

impl Memory {
    /// Memory that was never touched.
    pub(crate) fn new(seed: u64) -> Self {
        let files: Vec<_> = BLOCKS.iter().map(|&(name, pages)| file(name, pages * PAGE_SIZE)).collect();
        let ranges = |files: &[Arc<File>]| -> Vec<_> {
            let file = |file: &Arc<File>| Some(FileOffset::from_arc(Arc::clone(file), 0));
            let blocks = (0..).zip(BLOCKS).zip(files);
            blocks.map(|((index, (_, pages)), f)| (GuestAddress(index << 32), pages as usize * PAGE, file(f))).collect()
        };
        let names = BLOCKS.map(|(name, _)| name);
        let devices = GuestMemoryMmap::from_ranges_with_files(ranges(&files)).unwrap();
        let vcpus = GuestMemoryMmap::<()>::from_ranges_with_files(ranges(&files)).unwrap();
        let pages = || BLOCKS.iter().map(|&(_, pages)| vec![false; pages as usize]).collect();
        let written = Written {
            shadow: BLOCKS.iter().map(|&(_, pages)| vec![0; pages as usize * PAGE]).collect(),
            touched: pages(),
            dirty: pages(),
            reported: pages(),
            random: Random::new(seed),
        };
        Self {
            by_devices: MemoryRam::new(devices.clone(), names).unwrap(),
            devices,
            by_vcpus: MemoryRam::new(vcpus, names).unwrap(),
            written: Mutex::new(written),
        }
    }

    /// The hypervisor's and the devices' log.
    pub(crate) fn log(self: &Arc<Self>) -> (VcpuWrites, DeviceWrites) {
        (VcpuWrites(Arc::clone(self)), DeviceWrites::new(self.devices.clone()).unwrap())
    }

    /// Writes to a random place in this page.
    pub(crate) fn write_as(&self, by: Writer, block: usize, page: u64) {
        let mut written = self.written.lock().unwrap();
        let number = page as usize;
        let (at, bytes) = some_bytes(&mut written.random);
        let bytes = &BYTES[bytes];
        written.shadow[block][number * PAGE + at..][..bytes.len()].copy_from_slice(bytes);
        written.touched[block][number] = true;
        let offset = page * PAGE_SIZE + at as u64;
        match by {
            Writer::Vcpu => {
                self.by_vcpus.write(block, offset, bytes).unwrap();
                written.dirty[block][number] = true;
            }
            Writer::Device => self.by_devices.write(block, offset, bytes).unwrap(),
        }
    }

    /// Fills the memory with data that no guest wrote, which reveals a page that is not sent.
    pub(crate) fn litter(&self) {
        for (block, (_, pages)) in BLOCKS.into_iter().enumerate() {
            self.by_vcpus.write(block, 0, &vec![0xad; pages as usize * PAGE]).unwrap();
        }
    }

    /// Block and number of the first page that differs from its last write at `source`.
    pub(crate) fn stale_page(&self, source: &Self) -> Option<(usize, u64)> {
        let written = source.written.lock().unwrap();
        let mut bytes = vec![0; PAGE];
        let all =
            BLOCKS.into_iter().enumerate().flat_map(|(block, (_, pages))| (0..pages).map(move |page| (block, page)));
        all.into_iter().find(|&(block, page)| {
            self.by_vcpus.read(block, page * PAGE_SIZE, &mut bytes).unwrap();
            bytes != written.shadow[block][page as usize * PAGE..][..PAGE]
        })
    }

    fn region(&self, block: usize) -> &GuestRegionMmap<AtomicBitmap> {
        self.devices.iter().nth(block).unwrap()
    }
}

fn file(name: &str, len: u64) -> Arc<File> {
    let file = File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    Arc::new(file)
}

/// Memory as the engine reads and fills it. The additional writes at a source are in [`Guest`](crate::guest::Guest).
impl GuestRam for Memory {
    fn blocks(&self) -> &[vmstate::ram::RamBlock] {
        self.by_devices.blocks()
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        self.by_devices.read(block, offset, into)
    }

    fn zero_pages(&self, block: usize, offset: u64, pages: u32) -> Result<u64> {
        self.by_devices.zero_pages(block, offset, pages)
    }

    fn untouched(&self, block: usize, offset: u64, words: &mut [u64]) -> Result<()> {
        let written = self.written.lock().unwrap();
        let pages = written.touched[block].iter().skip((offset / PAGE_SIZE) as usize).take(words.len() * 64);
        pages.enumerate().filter(|(_, touched)| !**touched).for_each(|(page, _)| words[page / 64] |= 1 << (page % 64));
        Ok(())
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        self.by_vcpus.write(block, offset, from)
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        self.by_vcpus.zero_page(block, offset)
    }

    fn send(&self, mut to: BorrowedFd<'_>, outbox: &Outbox) -> io::Result<usize> {
        match outbox.pieces().next() {
            Some(Piece::Bytes(bytes)) => Ok(nix::unistd::write(to, bytes)?),
            Some(Piece::Pages(PageRun { block, offset, len })) => {
                let sent = self.region(block).write_volatile_to(MemoryRegionAddress(offset), &mut to, len as usize);
                sent.map_err(system)
            }
            None => Ok(0),
        }
    }

    fn receive(&self, mut from: BorrowedFd<'_>, runs: &[PageRun]) -> io::Result<usize> {
        let PageRun { block, offset, len } = runs[0];
        let came = self.region(block).read_volatile_from(MemoryRegionAddress(offset), &mut from, len as usize);
        came.map_err(system)
    }
}

fn system(error: GuestMemoryError) -> io::Error {
    match error {
        GuestMemoryError::IOError(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

/// The hypervisor's log.
pub(crate) struct VcpuWrites(Arc<Memory>);

impl DirtyLog for VcpuWrites {
    fn start(&mut self) -> Result<()> {
        let mut written = self.0.written.lock().unwrap();
        written.dirty.iter_mut().for_each(|pages| pages.fill(true));
        written.reported.iter_mut().for_each(|pages| pages.fill(false));
        Ok(())
    }

    fn sync(&mut self, block: usize, words: &mut [u64]) -> Result<()> {
        let written = &mut *self.0.written.lock().unwrap();
        for (page, dirty) in written.dirty[block].iter().enumerate().filter(|(_, dirty)| **dirty) {
            words[page / 64] |= u64::from(*dirty) << (page % 64);
            written.reported[block][page] = true;
        }
        Ok(())
    }

    fn clear(&mut self, block: usize, first: u64, count: u64) -> Result<()> {
        let written = &mut *self.0.written.lock().unwrap();
        for page in first as usize..(first + count) as usize {
            written.dirty[block][page] &= !std::mem::take(&mut written.reported[block][page]);
        }
        Ok(())
    }

    fn stop(&mut self) {}
}
