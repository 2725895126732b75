//! Memory of a minivmm guest, with a copy that the writers maintain: a vCPU, whose writes KVM logs, and devices, which write as
//! minivmm's do.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use minivmm::kvm::{self, vm::KvmVm};
use minivmm::memory::{RAM_BLOCK, Ram};
use minivmm::migration::dirty_log::MachineDirtyLog;
use minivmm::migration::firmware::{Firmware, SEGMENT};
use minivmm::migration::ram::MachineRam;
use vm_memory::{Bytes, GuestAddress};
use vmstate::codec::{Outbox, PageRun};
use vmstate::error::Result;
use vmstate::ram::{GuestRam, PAGE_SIZE, RamBlock};
use vmstate_lab::random::Random;

use crate::bytes::{BYTES, some_bytes};
use crate::vcpu::{CODE, Vcpu};

const PAGE: usize = PAGE_SIZE as usize;
/// Memory that the guest writes: pages of its RAM, and RAM in place of a QEMU's firmware.
pub(crate) const BLOCKS: [(&str, u64); 2] = [(RAM_BLOCK, 1024), ("pc.bios", (SEGMENT.end - SEGMENT.start) / PAGE_SIZE)];
/// Number of a page from which on pages are first touched during a migration: they belong to another huge page.
pub(crate) const TOUCHED: u64 = 512;
/// Interval between two writes of a vCPU or device that writes all the time: a copy takes half a millisecond where KVM emulates
/// it.
pub(crate) const PACE: Duration = Duration::from_millis(2);

/// After the written pages: the vCPU's code, and the bytes that it copies.
const CODE_AT: u64 = BLOCKS[0].1 * PAGE_SIZE;
const BYTES_AT: u64 = CODE_AT + PAGE_SIZE;
/// Most writes of the vCPU after which a guest resets its machine in a migration.
const RESET_WITHIN: u64 = 500;

/// Writer of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    Vcpu,
    Device,
}

pub(crate) struct Memory {
    ram: Ram,
    firmware: Firmware,
    /// The memory as a migration sees it.
    machine: MachineRam,
    written: Mutex<Written>,
}

/// State of the writers, in the order of their writes.
struct Written {
    /// Last written value of each byte.
    shadow: Vec<u8>,
    /// Machine and vCPU, from the vCPU's first write on.
    processor: Option<(Arc<KvmVm>, Vcpu)>,
    log: Option<MachineDirtyLog>,
    /// Writes of the vCPU until a reset.
    until_reset: u64,
    random: Random,
}

impl Memory {
    /// Makes untouched memory. Every other one shows a QEMU the firmware's segment as a block.
    pub(crate) fn new(seed: u64) -> Self {
        let ram = Ram::new(BYTES_AT + BYTES.len() as u64).unwrap();
        let firmware = Firmware::default();
        let machine = match seed {
            // A machine that waits for a source.
            0 => MachineRam::arriving(ram.clone(), firmware.clone()),
            _ => MachineRam::leaving(ram.clone(), &firmware, seed.is_multiple_of(2)),
        };
        let random = Random::new(seed);
        let shadow = vec![0; ram.len() as usize];
        let written = Written { shadow, processor: None, log: None, until_reset: u64::MAX, random };
        Self { ram, firmware, machine, written: Mutex::new(written) }
    }

    /// Makes the dirty log of a migration that begins.
    pub(crate) fn log(&self) -> MachineDirtyLog {
        let written = &mut *self.written.lock().unwrap();
        let log = MachineDirtyLog::new(Arc::clone(&self.processor(written).0), self.machine.segment());
        written.log = Some(log.clone());
        written.until_reset = written.random.below(RESET_WITHIN);
        log
    }

    /// Writes somewhere in this page.
    pub(crate) fn write_as(&self, by: Writer, block: usize, page: u64) {
        let written = &mut *self.written.lock().unwrap();
        let (at, bytes) = some_bytes(&mut written.random);
        let offset = if block == 0 { 0 } else { SEGMENT.start } + page * PAGE_SIZE + at as u64;
        match by {
            Writer::Vcpu => {
                self.processor(written).1.copy(BYTES_AT + bytes.start as u64, offset, bytes.len() as u64);
                self.count_towards_reset(written);
            }
            Writer::Device => self.ram.guest().write_slice(&BYTES[bytes.clone()], GuestAddress(offset)).unwrap(),
        }
        written.shadow[offset as usize..][..bytes.len()].copy_from_slice(&BYTES[bytes]);
    }

    fn processor<'a>(&self, written: &'a mut Written) -> &'a mut (Arc<KvmVm>, Vcpu) {
        let Written { shadow, processor, .. } = written;
        processor.get_or_insert_with(|| {
            for (offset, bytes) in [(CODE_AT, &CODE[..]), (BYTES_AT, &BYTES)] {
                self.ram.write(offset, bytes).unwrap();
                shadow[offset as usize..][..bytes.len()].copy_from_slice(bytes);
            }
            self.made()
        })
    }

    /// Makes a machine that uses the RAM.
    fn made(&self) -> (Arc<KvmVm>, Vcpu) {
        let vm = KvmVm::new(kvm::open().unwrap(), &self.ram).unwrap();
        let vcpu = Vcpu::new(&vm, CODE_AT);
        (Arc::new(vm), vcpu)
    }

    /// Replaces the machine, whose vCPU has ended, as a reset does; the dirty log follows.
    fn count_towards_reset(&self, written: &mut Written) {
        written.until_reset -= 1;
        if written.until_reset == 0 {
            written.processor = None;
            let (vm, vcpu) = self.made();
            written.log.as_ref().unwrap().follow(&vm).unwrap();
            (written.processor, written.until_reset) = (Some((vm, vcpu)), u64::MAX);
        }
    }

    /// Fills most of the memory with values that no guest wrote, so that a page that is not sent shows.
    pub(crate) fn litter(&self) {
        for page in (0..self.ram.len() / PAGE_SIZE).filter(|page| page % 5 > 0) {
            self.ram.write(page * PAGE_SIZE, &[0xad; PAGE]).unwrap();
        }
    }

    /// Finds block and number of the first page that differs from its last write at `source`.
    pub(crate) fn stale_page(&self, source: &Self) -> Option<(usize, u64)> {
        let written = source.written.lock().unwrap();
        let mut bytes = vec![0; self.ram.len() as usize];
        self.ram.guest().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        let stale = bytes.chunks(PAGE).zip(written.shadow.chunks(PAGE)).position(|(here, written)| here != written);
        stale.map(|page| (0, page as u64))
    }
}

/// Memory for the engine. [`Guest`](crate::guest::Guest) has the rest of a source.
impl GuestRam for Memory {
    fn blocks(&self) -> &[RamBlock] {
        self.machine.blocks()
    }

    /// There is one such block; a block of an earlier source is forgotten, as in a waiting machine.
    fn adopt(&self, name: &str, len: u64) -> Result<bool> {
        self.firmware.clear();
        self.machine.adopt(name, len)
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        self.machine.read(block, offset, into)
    }

    fn zero_pages(&self, block: usize, offset: u64, pages: u32) -> Result<u64> {
        self.machine.zero_pages(block, offset, pages)
    }

    fn untouched(&self, block: usize, offset: u64, words: &mut [u64]) -> Result<()> {
        self.machine.untouched(block, offset, words)
    }

    fn send(&self, to: BorrowedFd<'_>, outbox: &Outbox) -> io::Result<usize> {
        self.machine.send(to, outbox)
    }

    fn receive(&self, from: BorrowedFd<'_>, runs: &[PageRun]) -> io::Result<usize> {
        self.machine.receive(from, runs)
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        self.machine.write(block, offset, from)
    }

    fn write_pages(&self, block: usize, pages: &[(u64, &[u8])]) -> Result<()> {
        self.machine.write_pages(block, pages)
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        self.machine.zero_page(block, offset)
    }

    fn zero_run(&self, block: usize, offset: u64, pages: u64) -> Result<()> {
        self.machine.zero_run(block, offset, pages)
    }
}
