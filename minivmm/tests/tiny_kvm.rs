//! The tiny guest on a real `/dev/kvm`: boot, pause between instructions, and the dirty log compared with the guest's writes.
//!
//! The oracles are the guest's own check of its memory, and its rule for the content of each page after each pass.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use minivmm::boot::{self, Payload, acpi::Machine};
use minivmm::bus::BusDevice;
use minivmm::cpu::Choice;
use minivmm::kvm;
use minivmm::kvm::cpuid::{self, Offer};
use minivmm::kvm::dirty::DirtyLog;
use minivmm::kvm::exits::Reason;
use minivmm::kvm::thread::{Halt, VcpuEvent, VcpuThread};
use minivmm::kvm::vcpu::Buses;
use minivmm::kvm::vm::KvmVm;
use minivmm::memory::{PAGE_SIZE, Ram};
use minivmm::migration::dirty_log::MachineDirtyLog;
use vmstate::ram::DirtyLog as _;
use vmstate_lab::tiny;

const TIMEOUT: Duration = Duration::from_secs(60);

/// The part of COM1 that the tiny guest needs.
#[derive(Default)]
struct Console {
    text: String,
    reads: u64,
}

impl BusDevice for Console {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        self.reads += 1;
        data.fill(0);
    }
    fn write(&mut self, _offset: u64, data: &[u8]) {
        self.text.extend(data.iter().map(|&byte| char::from(byte)));
    }
}

struct Guest {
    vm: Arc<KvmVm>,
    vcpu: VcpuThread,
    halt: Halt,
    console: Arc<Mutex<Console>>,
    pages: u64,
    events: std::sync::mpsc::Receiver<VcpuEvent>,
}

impl Guest {
    /// Boots the guest; prints that the test is skipped and returns `None` without KVM.
    fn boot(pages: u64, span: u64) -> Option<Self> {
        if let Err(error) = kvm::open() {
            vmstate_lab::skip::skip(error);
            return None;
        }
        Some(Self::boot_in(Ram::new(tiny::FIRST_PAGE + pages * PAGE_SIZE).unwrap(), pages, span))
    }

    /// Boots a machine that uses RAM of an earlier one.
    fn boot_in(ram: Ram, pages: u64, span: u64) -> Self {
        let kvm = kvm::open().unwrap();
        let offered = cpuid::show(&Offer::read(&kvm).unwrap(), &Choice::host(), 1).unwrap();
        let vm = Arc::new(KvmVm::new(kvm, &ram).unwrap());
        let vcpu = vm.create_vcpu(0).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("tiny");
        std::fs::write(&kernel, tiny::bzimage()).unwrap();
        let append = tiny::command_line(pages, span);
        let kernel = boot::BootFile::open("--kernel", &kernel).unwrap();
        let payload = Payload { kernel: &kernel, initrd: None, append: &append };
        let entry = boot::load(&ram, payload, &Machine { cpus: 1, virtio_windows: Vec::new() }).unwrap();
        vcpu.set_cpuid(&offered).unwrap();
        vcpu.set_firmware_msrs().unwrap();
        vcpu.set_start(&entry.registers(), |sregs| entry.set_system_registers(sregs)).unwrap();
        let console = Arc::new(Mutex::new(Console::default()));
        let mut buses = Buses::default();
        buses.pio.insert(0x3f8, 8, console.clone());
        let (sender, events) = std::sync::mpsc::channel();
        let halt = Halt::default();
        let report = move |event| drop(sender.send(event));
        let vcpu = VcpuThread::spawn(vcpu, Arc::new(buses), halt.clone(), report).unwrap();
        Self { vm, vcpu, halt, console, pages, events }
    }

    fn pause(&self) {
        self.vcpu.ask_pause();
        self.vcpu.wait_paused(TIMEOUT).unwrap();
    }

    /// Passes the guest has printed.
    fn passes(&self) -> u64 {
        let console = self.console.lock().unwrap();
        assert!(!console.text.contains('E'), "the guest found its memory wrong: {}", console.text);
        console.text.lines().filter(|line| line.len() == 9 && line.starts_with('p')).count() as u64
    }

    fn run_until_pass(&self, pass: u64) {
        self.vcpu.resume();
        let until = Instant::now() + TIMEOUT;
        while self.passes() < pass {
            if let Ok(event) = self.events.try_recv() {
                panic!("{event:?}");
            }
            assert!(Instant::now() < until, "no pass {pass} within {TIMEOUT:?}: {}", self.console.lock().unwrap().text);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// First word of each page of the block.
    fn words(&self) -> Vec<u64> {
        let read = |page: u64| {
            let mut bytes = [0; 8];
            self.vm.ram().read(tiny::FIRST_PAGE + page * PAGE_SIZE, &mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        };
        (0..self.pages).map(read).collect()
    }
}

#[test]
fn boots_and_prints_its_passes() {
    let Some(guest) = Guest::boot(64, 0) else { return };
    guest.run_until_pass(3);
    guest.pause();
    let text = guest.console.lock().unwrap().text.clone();
    assert!(text.starts_with("tiny\np00000001\np00000002\np00000003\n"), "{text}");
    // The guest has no other reads that exit.
    let reads = guest.console.lock().unwrap().reads;
    let exits = Reason::ALL.map(|reason| guest.vcpu.exits().get(reason));
    assert!(exits[4] >= 1, "the pause is a signal: {exits:?}");
    assert_eq!(exits, [reads, text.len() as u64, 0, 0, exits[4], 0, 0]);
}

/// A paused guest has written some pages in the current pass and the rest in the one before, and writes nothing more.
#[test]
fn pause_is_exact_and_resume_goes_on() {
    let Some(guest) = Guest::boot(256, 0) else { return };
    let mut seen = 1;
    for _ in 0..20 {
        guest.run_until_pass(seen + 1);
        guest.pause();
        seen = guest.passes();
        let words = guest.words();
        let pass_of = |page: u64, word| {
            (seen..=seen + 1).find(|&pass| tiny::expected(tiny::FIRST_PAGE + page * PAGE_SIZE, pass) == word)
        };
        // The line of a pass is printed after its last page, so pages are of the current pass or of the last one.
        let passes: Vec<_> = (0..).zip(&words).map(|(page, &word)| pass_of(page, word)).collect();
        assert!(passes.iter().all(Option::is_some), "after pass {seen}: {passes:?}");
        assert!(passes.is_sorted_by(|a, b| a >= b), "{passes:?}");
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(guest.words(), words, "a paused guest writes nothing");
    }
}

/// Follows the guest by the log alone: a copy that takes only the reported pages always equals the memory.
#[test]
fn dirty_log_loses_no_write() {
    let Some(guest) = Guest::boot(1000, 0) else { return };
    let ram = guest.vm.ram();
    guest.run_until_pass(1);
    let mut log = DirtyLog::start(&guest.vm).unwrap();
    let pages = (ram.len() / PAGE_SIZE) as usize;
    let mut copy = vec![0; ram.len() as usize];
    ram.read(0, &mut copy).unwrap();
    let mut dirty = vec![0; pages.div_ceil(64)];
    let mut take = |dirty: &mut Vec<u64>, copy: &mut Vec<u8>| {
        log.sync(&guest.vm, dirty).unwrap();
        // A page that is written between report and clearing belongs to the next report.
        std::thread::sleep(Duration::from_micros(300));
        log.clear(&guest.vm, 0, pages as u64).unwrap();
        let mut count = 0;
        for page in (0..pages).filter(|page| dirty[page / 64] >> (page % 64) & 1 == 1) {
            let at = page * PAGE_SIZE as usize;
            ram.read(at as u64, &mut copy[at..at + PAGE_SIZE as usize]).unwrap();
            count += 1;
        }
        dirty.fill(0);
        count
    };
    for round in 0..30 {
        // The guest runs while pages are copied: pages that it writes meanwhile must be in the next report.
        take(&mut dirty, &mut copy);
        std::thread::sleep(Duration::from_micros(300 * round));
        guest.pause();
        take(&mut dirty, &mut copy);
        let mut now = vec![0; copy.len()];
        ram.read(0, &mut now).unwrap();
        let lost: Vec<_> = (0..pages).filter(|page| now[page << 12..][..4096] != copy[page << 12..][..4096]).collect();
        assert!(lost.is_empty(), "round {round}: pages {lost:x?} changed and were not reported");
        assert_eq!(take(&mut dirty, &mut copy), 0, "a paused guest dirties nothing");
        guest.run_until_pass(guest.passes() + 1);
    }
    guest.pause();
    // The log is exact, too: after one whole pass only the guest's pages and its stack are reported.
    take(&mut dirty, &mut copy);
    guest.run_until_pass(guest.passes() + 2);
    guest.pause();
    let count = take(&mut dirty, &mut copy);
    assert!((1000..1010).contains(&count), "{count} pages reported");
    log.stop(&guest.vm);
}

/// The next exit of a halted vCPU is its last, even if the vCPU is resumed.
#[test]
fn a_halted_vcpu_does_not_get_beyond_its_next_exit() {
    let Some(guest) = Guest::boot(16, 0) else { return };
    guest.run_until_pass(2);
    guest.halt.set();
    guest.vcpu.wait_paused(TIMEOUT).unwrap();
    let (words, text) = (guest.words(), guest.console.lock().unwrap().text.clone());
    for _ in 0..3 {
        guest.vcpu.resume();
        guest.vcpu.wait_paused(TIMEOUT).unwrap();
    }
    assert_eq!(guest.words(), words);
    assert_eq!(guest.console.lock().unwrap().text, text);
    assert!(guest.events.try_recv().is_err(), "it is halted by who knows why");
}

/// Writes of a guest before its reset are reported after it, and pages that were not written since are not.
#[test]
fn the_dirty_log_follows_a_guest_through_its_reset() {
    let Some(before) = Guest::boot(100, 0) else { return };
    let ram = before.vm.ram().clone();
    let pages = (ram.len() / PAGE_SIZE) as usize;
    let mut engine = MachineDirtyLog::new(Arc::clone(&before.vm), None);
    let driver = engine.clone();
    let report = |engine: &mut MachineDirtyLog| {
        let mut words = vec![0_u64; pages.div_ceil(64)];
        engine.sync(0, &mut words).unwrap();
        engine.clear(0, 0, pages as u64).unwrap();
        (0..pages).filter(|page| words[page / 64] >> (page % 64) & 1 == 1).collect::<Vec<_>>()
    };
    let first = (tiny::FIRST_PAGE / PAGE_SIZE) as usize;
    let written: Vec<_> = (first..first + 100).collect();
    engine.start().unwrap();
    before.run_until_pass(1);
    before.pause();
    report(&mut engine);
    assert!(report(&mut engine).is_empty());
    before.run_until_pass(before.passes() + 2);
    drop(before.vcpu);

    let after = Guest::boot_in(ram, 100, 0);
    driver.follow(&after.vm).unwrap();
    let reported = report(&mut engine);
    assert!(written.iter().all(|page| reported.contains(page)), "{reported:x?}");
    // Pages loaded for the new boot are reported, but not the whole of RAM, which would be sent again at each reset.
    assert!(reported.len() < 150, "{} of {pages} pages reported", reported.len());
    assert!(report(&mut engine).is_empty(), "nothing was written since");
    after.run_until_pass(2);
    after.pause();
    let reported = report(&mut engine);
    assert!(written.iter().all(|page| reported.contains(page)), "{reported:x?}");
    assert!(reported.len() < 110, "{} pages reported", reported.len());
    engine.stop();
}
