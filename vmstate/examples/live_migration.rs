//! A toy VM that migrates to another one over a pair of unix sockets while its guest runs; without KVM.
//!
//! The guest is one "vCPU", a thread that writes to its memory all the time, and sometimes to the memory of a device, a TPM with
//! some megabytes of its own: that is a section in parts, most of which is sent while the guest runs. Source and destination are
//! two threads here; in a VMM they are two processes. At the end, the memory is compared with what the guest must have written.
//!
//! `cargo run --example live_migration`

use std::collections::BTreeSet;
use std::error::Error;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmstate::VmState;
use vmstate::channel::{MonotonicClock, SocketChannel};
use vmstate::codec::{Outbox, Reader};
use vmstate::error::{Error as VmError, ErrorKind, Result};
use vmstate::migrate::destination::{self, DestinationOptions, Incoming};
use vmstate::migrate::source::{self, Outgoing, SourceOptions};
use vmstate::migrate::{Claim, Control, DestinationPhase, Machine, SourcePhase};
use vmstate::ram::{DirtyLog, GuestRam, PAGE_SIZE, RamBlock};
use vmstate::schema::Description;
use vmstate::section::{IterativeSection, Record, Sections};

const PAGES: u64 = 2048;
/// Number of pages of the TPM's memory.
const TPM_PAGES: u64 = 512;
const WORDS_PER_PAGE: u64 = PAGE_SIZE / 8;

/// Memory of the guest or of a device, with the dirty log of its pages. The vCPU and the engine share it.
struct Memory {
    blocks: [RamBlock; 1],
    words: Vec<AtomicU64>,
    /// Bit 0 of word 0 is page 0.
    dirty: Vec<AtomicU64>,
}

impl Memory {
    fn new(name: &str, pages: u64) -> Self {
        Self {
            blocks: [RamBlock { name: name.into(), len: pages * PAGE_SIZE }],
            words: (0..pages * WORDS_PER_PAGE).map(|_| AtomicU64::new(0)).collect(),
            dirty: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn all_words(&self) -> Vec<u64> {
        self.words.iter().map(|word| word.load(Ordering::SeqCst)).collect()
    }

    /// A write by the guest. The page is marked after the write: a reader that clears the mark and then reads gets this write, or
    /// the mark stays for the next round.
    fn guest_writes(&self, word: u64, value: u64) {
        self.words[word as usize].store(value, Ordering::SeqCst);
        let page = word / WORDS_PER_PAGE;
        self.dirty[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::SeqCst);
    }

    /// The words of `length` bytes at `offset`; the engine asks for whole pages.
    fn words(&self, offset: u64, length: usize) -> Result<&[AtomicU64]> {
        let first = offset as usize / 8;
        self.words
            .get(first..first + length / 8)
            .ok_or_else(|| VmError::new(ErrorKind::Misuse, "outside of the memory"))
    }
}

impl GuestRam for Memory {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn read(&self, _block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        let words = self.words(offset, into.len())?;
        for (bytes, word) in into.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.load(Ordering::SeqCst).to_le_bytes());
        }
        Ok(())
    }

    fn write(&self, _block: usize, offset: u64, from: &[u8]) -> Result<()> {
        let words = self.words(offset, from.len())?;
        for (bytes, word) in from.as_chunks().0.iter().zip(words) {
            word.store(u64::from_le_bytes(*bytes), Ordering::SeqCst);
        }
        Ok(())
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        self.write(block, offset, &[0; PAGE_SIZE as usize])
    }
}

/// The dirty log. A hypervisor's log is started and stopped; this one always records.
struct Log(Arc<Memory>);

impl DirtyLog for Log {
    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    /// Reports and clears in one step, so `clear` has nothing left to do.
    fn sync(&mut self, _block: usize, words: &mut [u64]) -> Result<()> {
        for (word, dirty) in words.iter_mut().zip(&self.0.dirty) {
            *word |= dirty.swap(0, Ordering::SeqCst);
        }
        Ok(())
    }

    fn clear(&mut self, _block: usize, _first: u64, _count: u64) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}
}

/// The TPM's memory as a section in parts. On the wire, the START has the number of pages; PART and END have a page's number and
/// bytes for each page, and then [`END`](Self::END). All numbers are u32.
struct Tpm {
    memory: Arc<Memory>,
    /// Pages of this round that are not sent yet.
    pending: BTreeSet<u32>,
}

impl Tpm {
    /// Ends a body, in place of a page's number.
    const END: u32 = u32::MAX;

    fn new(memory: &Arc<Memory>) -> Self {
        Self { memory: Arc::clone(memory), pending: BTreeSet::new() }
    }
}

impl IterativeSection for Tpm {
    fn description(&self) -> &'static Description {
        static TPM: Description = Description::undescribed("toy/tpm", 1, 1);
        &TPM
    }

    /// The memory always records writes, so nothing has to be started here.
    fn setup(&mut self, out: &mut Outbox) -> Result<()> {
        self.pending = (0..TPM_PAGES as u32).collect();
        out.put(&(TPM_PAGES as u32).to_be_bytes());
        Ok(())
    }

    fn pending(&mut self) -> u64 {
        let written: u32 = self.memory.dirty.iter().map(|word| word.load(Ordering::SeqCst).count_ones()).sum();
        (self.pending.len() as u64 + u64::from(written)) * (4 + PAGE_SIZE)
    }

    /// Clears the marks. The pages are read afterwards, so a write that is not in the bytes has a mark for the next round.
    fn sync(&mut self) -> Result<()> {
        for (first, word) in (0..).step_by(64).zip(&self.memory.dirty) {
            let written = word.swap(0, Ordering::SeqCst);
            self.pending.extend((0..64).filter(|bit| written >> bit & 1 == 1).map(|bit| first + bit));
        }
        Ok(())
    }

    fn iterate(&mut self, out: &mut Outbox, budget: u64) -> Result<bool> {
        let (full, mut bytes) = (out.len() + budget, [0; PAGE_SIZE as usize]);
        while let Some(page) = self.pending.pop_first() {
            self.memory.read(0, u64::from(page) * PAGE_SIZE, &mut bytes)?;
            out.put(&page.to_be_bytes());
            out.put(&bytes);
            if out.len() >= full {
                break;
            }
        }
        out.put(&Self::END.to_be_bytes());
        Ok(self.pending.is_empty())
    }

    fn complete(&mut self, out: &mut Outbox) -> Result<()> {
        self.iterate(out, u64::MAX / 2).map(|_| ())
    }

    fn load_start(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        match u64::from(input.u32()?) {
            TPM_PAGES => Ok(Record::Last),
            pages => Err(input.malformed(format!("the source's TPM has {pages} pages, this one {TPM_PAGES}"))),
        }
    }

    fn load_part(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        let page = input.u32()?;
        if page == Self::END {
            return Ok(Record::Last);
        }
        let bytes = input.take(PAGE_SIZE as usize)?;
        if u64::from(page) >= TPM_PAGES {
            return Err(input.malformed(format!("the TPM has no page {page}")));
        }
        self.memory.write(0, u64::from(page) * PAGE_SIZE, bytes)?;
        Ok(Record::More)
    }
}

/// The vCPU's registers: the complete state of the guest's program.
#[derive(VmState, Clone, Debug, Default, PartialEq)]
#[vmstate(name = "toy/cpu", version = 1)]
struct Cpu {
    steps: u64,
    random: u64,
}

impl Cpu {
    /// One instruction: the word that it writes, and the value. It depends on the registers alone, so a test can run the program
    /// again.
    fn step(&mut self) -> (u64, u64) {
        self.steps += 1;
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Most writes go to a few pages, as those of a real program.
        let page = if self.random >> 61 == 0 { (self.random >> 32) % PAGES } else { (self.random >> 32) % 16 };
        (page * WORDS_PER_PAGE + (self.random >> 20) % WORDS_PER_PAGE, self.steps)
    }

    /// Executes one instruction. Every 16th instruction makes the TPM write, too.
    fn run(&mut self, memory: &Memory, tpm: &Memory) {
        let (word, value) = self.step();
        memory.guest_writes(word, value);
        if value.is_multiple_of(16) {
            tpm.guest_writes((self.random >> 24) % (TPM_PAGES * WORDS_PER_PAGE), !value);
        }
    }
}

/// One side's machine: memory, the vCPU, and its thread while the guest runs.
struct Toy {
    memory: Arc<Memory>,
    tpm: Arc<Memory>,
    cpu: Arc<Mutex<Cpu>>,
    go_on: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Stands for the lock of a disk image on shared storage, which decides who may run the guest. `vmstate::ownership`
    /// implements it for real files.
    disk: Arc<AtomicBool>,
}

impl Toy {
    fn new(disk: &Arc<AtomicBool>) -> Self {
        Self {
            memory: Arc::new(Memory::new("toy.ram", PAGES)),
            tpm: Arc::new(Memory::new("toy.tpm", TPM_PAGES)),
            cpu: Arc::default(),
            go_on: Arc::default(),
            thread: None,
            disk: Arc::clone(disk),
        }
    }

    fn run(&mut self) {
        self.go_on.store(true, Ordering::SeqCst);
        let (memory, tpm) = (Arc::clone(&self.memory), Arc::clone(&self.tpm));
        let (cpu, go_on) = (Arc::clone(&self.cpu), Arc::clone(&self.go_on));
        self.thread = Some(thread::spawn(move || {
            while go_on.load(Ordering::SeqCst) {
                let mut cpu = whole(&cpu);
                (0..64).for_each(|_| cpu.run(&memory, &tpm));
                drop(cpu);
                thread::sleep(Duration::from_micros(50));
            }
        }));
    }

    fn stop(&mut self) -> Result<()> {
        self.go_on.store(false, Ordering::SeqCst);
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(VmError::new(ErrorKind::Rejected, "the vCPU's thread panicked")),
            _ => Ok(()),
        }
    }

    /// Checks that both memories are as the program leaves them after as many steps as the vCPU has done.
    fn verify(&self) -> bool {
        let (mut again, memory, tpm) = (Cpu::default(), Memory::new("", PAGES), Memory::new("", TPM_PAGES));
        let steps = whole(&self.cpu).steps;
        (0..steps).for_each(|_| again.run(&memory, &tpm));
        steps > 15 && memory.all_words() == self.memory.all_words() && tpm.all_words() == self.tpm.all_words()
    }
}

fn whole<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine for Toy {
    fn pause(&mut self, _within: Duration) -> Result<()> {
        self.stop()
    }

    fn loaded(&mut self) -> Result<()> {
        // Here, state that a hypervisor holds would be passed to it.
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        self.run();
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        self.disk.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn claim(&mut self) -> Result<Claim> {
        let won = !self.disk.swap(true, Ordering::SeqCst);
        Ok(if won { Claim::Won } else { Claim::Held })
    }
}

fn send(mut toy: Toy, stream: UnixStream) -> Result<Toy, Box<dyn Error + Send + Sync>> {
    let mut channel = SocketChannel::try_from(stream)?;
    let memory = Arc::clone(&toy.memory);
    let mut sections = Sections::new();
    sections.add(Arc::clone(&toy.cpu))?;
    sections.add_iterative(Tpm::new(&toy.tpm))?;
    let outgoing = Outgoing {
        channel: &mut channel,
        clock: &MonotonicClock::new(),
        machine: &mut toy,
        sections: &mut sections,
        ram: &*memory,
        log: &mut Log(Arc::clone(&memory)),
    };
    // Another thread would hold a clone of it, to cancel, to change limits, and to read the progress.
    let control = Control::default();
    let departure = source::run(outgoing, &SourceOptions::new("toy"), &control);
    let report = &departure.report;
    println!("source       {:?}: {} rounds, {} bytes", departure.phase, report.rounds.len(), report.bytes);
    match departure.phase {
        SourcePhase::Completed => Ok(toy),
        _ => Err(departure.error.map_or("not completed".into(), Into::into)),
    }
}

fn receive(mut toy: Toy, stream: UnixStream) -> Result<Toy, Box<dyn Error + Send + Sync>> {
    let mut channel = SocketChannel::try_from(stream)?;
    let memory = Arc::clone(&toy.memory);
    let mut sections = Sections::new();
    sections.add(Arc::clone(&toy.cpu))?;
    sections.add_iterative(Tpm::new(&toy.tpm))?;
    let incoming = Incoming {
        channel: &mut channel,
        clock: &MonotonicClock::new(),
        machine: &mut toy,
        sections: &mut sections,
        ram: &*memory,
    };
    let arrival = destination::run(incoming, &DestinationOptions::new("toy"), &Control::default());
    println!("destination  {:?}", arrival.phase);
    match arrival.phase {
        DestinationPhase::Completed => Ok(toy),
        _ => Err(arrival.error.map_or("not completed".into(), Into::into)),
    }
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let disk = Arc::default();
    let (mut here, there) = (Toy::new(&disk), Toy::new(&disk));
    if here.claim()? != Claim::Won {
        return Err("the disk is in use".into());
    }
    here.run();
    thread::sleep(Duration::from_millis(100));

    let (near, far) = UnixStream::pair()?;
    let receiver = thread::spawn(move || receive(there, far));
    let here = send(here, near)?;
    let mut there = receiver.join().map_err(|_| "the destination panicked")??;

    let (left, moved) = (whole(&here.cpu).steps, whole(&there.cpu).steps);
    thread::sleep(Duration::from_millis(50));
    there.stop()?;
    let steps = whole(&there.cpu).steps;
    println!("guest        left after {left} steps, arrived by step {moved}, went on to step {steps}");
    if here.thread.is_some() || left > moved || steps <= left || !there.verify() {
        return Err("the guest is not the one that left".into());
    }
    println!("memory       verified: {PAGES} pages, and {TPM_PAGES} of the TPM");
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_guest_arrives_with_all_of_its_writes() {
        super::main().unwrap();
    }
}
