//! `vm_memory`'s guest memory as the engine's RAM, and its bitmap as a dirty log.

use std::num::NonZero;

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap};
use vmstate::ErrorKind;
use vmstate::error::Result;
use vmstate::ram::{DeviceWrites, DirtyLog, GuestRam, MemoryRam, PAGE_SIZE, RamBlock};

const LOW: usize = 70 * 4096;
const HIGH: u64 = 1 << 32;

fn memory() -> GuestMemoryMmap<AtomicBitmap> {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), LOW), (GuestAddress(HIGH), 2 * 4096)]).unwrap()
}

#[test]
fn each_region_is_a_block() {
    let memory = memory();
    let ram = MemoryRam::new(memory.clone(), ["low", "high"]).unwrap();
    let block = |name: &str, len| RamBlock { name: name.into(), len };
    assert_eq!(ram.blocks(), [block("low", LOW as u64), block("high", 2 * PAGE_SIZE)]);
    ram.write(1, 4096, &[1, 2, 3]).unwrap();
    let mut seen = [0; 3];
    memory.read_slice(&mut seen, GuestAddress(HIGH + 4096)).unwrap();
    assert_eq!(seen, [1, 2, 3]);
    memory.write_slice(&[9; 4096], GuestAddress(4096)).unwrap();
    let mut page = [0; 4096];
    ram.read(0, 4096, &mut page).unwrap();
    assert_eq!(page, [9; 4096]);
    ram.zero_page(0, 4096).unwrap();
    ram.read(0, 4096, &mut page).unwrap();
    assert_eq!(page, [0; 4096]);
}

#[test]
fn zero_pages_are_those_without_a_set_bit() {
    let memory = memory();
    let ram = MemoryRam::new(memory.clone(), ["low", "high"]).unwrap();
    for (page, at) in [(3, 0), (4, 7), (5, 8), (6, 4095)] {
        memory.write_slice(&[0x10], GuestAddress(page * PAGE_SIZE + at)).unwrap();
    }
    assert_eq!(ram.zero_pages(0, 0, 64).unwrap(), !0b111_1000);
    assert_eq!(ram.zero_pages(0, 5 * PAGE_SIZE, 3).unwrap(), 0b100);
    assert_eq!(ram.zero_pages(1, 0, 3).unwrap_err().kind(), ErrorKind::Misuse);
}

#[test]
fn accesses_outside_a_block_are_misuse() {
    let ram = MemoryRam::new(memory(), ["low", "high"]).unwrap();
    let outcomes = [
        ram.read(0, LOW as u64 - 1, &mut [0; 2]),
        ram.write(1, 2 * PAGE_SIZE, &[0]),
        ram.write(1, u64::MAX, &[0]),
        ram.zero_page(1, 2 * PAGE_SIZE),
        ram.read(2, 0, &mut [0]),
    ];
    for outcome in outcomes {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Misuse);
    }
}

#[test]
fn names_and_regions_must_be_as_many_and_of_whole_pages() {
    let text = MemoryRam::new(memory(), ["low"]).unwrap_err().to_string();
    assert_eq!(text, "1 names for 2 regions of guest memory");
    let odd = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&[(GuestAddress(0), 5000)]).unwrap();
    assert_eq!(MemoryRam::new(odd, ["odd"]).unwrap_err().to_string(), "odd: 5000 bytes are no whole pages");
}

fn pages(log: &mut impl DirtyLog, block: usize, words: usize) -> Vec<usize> {
    let mut bits = vec![0; words];
    log.sync(block, &mut bits).unwrap();
    (0..words * 64).filter(|page| bits[page / 64] >> (page % 64) & 1 == 1).collect()
}

#[test]
fn device_writes_are_reported_once() {
    let memory = memory();
    let mut log = DeviceWrites::new(memory.clone()).unwrap();
    memory.write_slice(&[1], GuestAddress(0)).unwrap();
    log.start().unwrap();
    assert_eq!(pages(&mut log, 0, 2), [0; 0], "what was written before is none of its business");
    memory.write_slice(&[1; 4097], GuestAddress(0x3fff)).unwrap();
    memory.write_slice(&[1], GuestAddress(65 * 4096)).unwrap();
    memory.write_slice(&[1], GuestAddress(HIGH)).unwrap();
    assert_eq!(pages(&mut log, 0, 2), [3, 4, 65]);
    assert_eq!(pages(&mut log, 0, 2), [0; 0]);
    assert_eq!(pages(&mut log, 1, 1), [0]);
    let mut words = [1 << 63];
    log.sync(1, &mut words).unwrap();
    assert_eq!(words, [1 << 63], "bits are added");
    assert_eq!(log.sync(2, &mut words).unwrap_err().kind(), ErrorKind::Misuse);
}

#[test]
fn a_bitmap_of_other_pages_is_refused() {
    let bitmap = AtomicBitmap::new(4 * 4096, NonZero::new(8192).unwrap());
    let region = MmapRegionBuilder::new_with_bitmap(4 * 4096, bitmap).build().unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
    let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
    assert_eq!(DeviceWrites::new(memory).unwrap_err().kind(), ErrorKind::Misuse);
}

/// A hypervisor's log for one block.
#[derive(Default)]
struct Vcpus {
    written: u64,
    calls: Vec<&'static str>,
    refuses: bool,
}

impl DirtyLog for &mut Vcpus {
    fn start(&mut self) -> Result<()> {
        self.calls.push("start");
        match self.refuses {
            true => Err(vmstate::Error::new(ErrorKind::Io, "no")),
            false => Ok(()),
        }
    }

    fn sync(&mut self, _block: usize, words: &mut [u64]) -> Result<()> {
        words[0] |= std::mem::take(&mut self.written);
        Ok(())
    }

    fn clear(&mut self, _block: usize, _first: u64, _count: u64) -> Result<()> {
        self.calls.push("clear");
        Ok(())
    }

    fn stop(&mut self) {
        self.calls.push("stop");
    }
}

#[test]
fn a_pair_of_logs_is_their_union() {
    let memory = memory();
    let mut vcpus = Vcpus { written: 0b110, ..Vcpus::default() };
    let mut log = (&mut vcpus, DeviceWrites::new(memory.clone()).unwrap());
    log.start().unwrap();
    memory.write_slice(&[1], GuestAddress(HIGH)).unwrap();
    assert_eq!(pages(&mut log, 1, 1), [0, 1, 2]);
    log.clear(1, 0, 1).unwrap();
    log.stop();
    assert_eq!(vcpus.calls, ["start", "clear", "stop"]);
    let (mut first, mut second) = (Vcpus::default(), Vcpus { refuses: true, ..Vcpus::default() });
    assert!((&mut first, &mut second).start().is_err());
    assert_eq!(first.calls, ["start", "stop"], "the first does not go on alone");
}
