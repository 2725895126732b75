//! The throttle on a real `/dev/kvm`: a guest of two vCPUs, one of which dirties memory while the other one computes.
//!
//! The oracles are the guest's own counters.

use std::sync::Arc;
use std::time::{Duration, Instant};

use minivmm::boot::{self, Payload, acpi};
use minivmm::cpu::Choice;
use minivmm::kvm;
use minivmm::kvm::cpuid::{self, Offer};
use minivmm::kvm::dirty::DirtyLog;
use minivmm::kvm::thread::{Halt, VcpuThread};
use minivmm::kvm::throttle::Throttle;
use minivmm::kvm::vcpu::Buses;
use minivmm::kvm::vm::KvmVm;
use minivmm::memory::{PAGE_SIZE, Ram};
use vmstate_lab::tiny;
use vmstate_lab::wait::{TIMEOUT, until};

const CODE: u64 = 0x20_0000;
/// Address of the computing vCPU's counter.
const COUNTER: u64 = 0x30_0000;
/// Address of the memory that the other one dirties again and again.
const FIRST: u64 = 0x40_0000;
const PAGES: u64 = 256;

const DIRTIES: [u8; 24] = [
    0xbf, 0x00, 0x00, 0x40, 0x00, // mov $FIRST, %edi
    0xb9, 0x00, 0x01, 0x00, 0x00, // mov $PAGES, %ecx
    0x48, 0xff, 0x07, // next: incq (%rdi)
    0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add $0x1000, %rdi
    0xe2, 0xf4, // loop next
    0xeb, 0xe8, // jmp back to the first page
];
const COMPUTES: [u8; 13] = [
    0xbf, 0x00, 0x00, 0x30, 0x00, // mov $COUNTER, %edi
    0x48, 0xff, 0xc0, // next: inc %rax
    0x48, 0x89, 0x07, // mov %rax, (%rdi)
    0xeb, 0xf8, // jmp next
];

struct Guest {
    vm: Arc<KvmVm>,
    vcpus: Vec<VcpuThread>,
    log: DirtyLog,
}

impl Guest {
    /// Starts the guest and its dirty log; prints that the test is skipped and returns `None` without KVM.
    fn start() -> Option<Self> {
        let kvm = match kvm::open() {
            Ok(kvm) => kvm,
            Err(error) => {
                vmstate_lab::skip::skip(error);
                return None;
            }
        };
        let ram = Ram::new(FIRST + PAGES * PAGE_SIZE).unwrap();
        let cpuid = cpuid::show(&Offer::read(&kvm).unwrap(), &Choice::host(), 2).unwrap();
        let vm = Arc::new(KvmVm::new(kvm, &ram).unwrap());
        // Only for the processor's tables, which map memory one to one.
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("kernel"), tiny::bzimage()).unwrap();
        let kernel = boot::BootFile::open("--kernel", &dir.path().join("kernel")).unwrap();
        let payload = Payload { kernel: &kernel, initrd: None, append: "" };
        let entry = boot::load(&ram, payload, &acpi::Machine { cpus: 2, virtio_windows: Vec::new() }).unwrap();
        let start = |(index, code): (u8, &[u8])| {
            let at = CODE + u64::from(index) * PAGE_SIZE;
            ram.write(at, code).unwrap();
            let vcpu = vm.create_vcpu(index).unwrap();
            vcpu.set_cpuid(&cpuid::with_apic_id(&cpuid, index)).unwrap();
            let mut registers = entry.registers();
            registers.rip = at;
            vcpu.set_start(&registers, |sregs| entry.set_system_registers(sregs)).unwrap();
            VcpuThread::spawn(vcpu, Arc::new(Buses::default()), Halt::default(), |event| panic!("{event:?}")).unwrap()
        };
        let vcpus: Vec<_> = [(0, &DIRTIES[..]), (1, &COMPUTES[..])].into_iter().map(start).collect();
        let log = DirtyLog::start(&vm).unwrap();
        vcpus.iter().for_each(VcpuThread::resume);
        let mut guest = Self { vm, vcpus, log };
        guest.take_dirty_pages();
        Some(guest)
    }

    /// Reads and clears the dirty log, as a round does.
    fn take_dirty_pages(&mut self) {
        let pages = self.vm.ram().len() / PAGE_SIZE;
        let mut words = vec![0; pages.div_ceil(64) as usize];
        self.log.sync(&self.vm, &mut words).unwrap();
        self.log.clear(&self.vm, 0, pages).unwrap();
    }

    /// Passes of the first vCPU over its memory, and the other one's counter.
    fn counters(&self) -> [u64; 2] {
        [FIRST, COUNTER].map(|at| {
            let mut word = [0; 8];
            self.vm.ram().read(at, &mut word).unwrap();
            u64::from_le_bytes(word)
        })
    }

    /// Time for which each vCPU was stopped.
    fn stopped_time(&self) -> Vec<Duration> {
        self.vcpus.iter().map(|vcpu| vcpu.throttle().stopped_time()).collect()
    }

    /// Progress of both in a second, while pages are taken.
    fn speeds(&mut self, time: Duration) -> [f64; 2] {
        let (begun, before) = (Instant::now(), self.counters());
        while begun.elapsed() < time {
            self.take_dirty_pages();
            std::thread::sleep(Duration::from_millis(10));
        }
        let (after, passed) = (self.counters(), begun.elapsed().as_secs_f64());
        [0, 1].map(|index| (after[index] - before[index]) as f64 / passed)
    }
}

/// On a busy host either vCPU may be slow for a while for other reasons: so the test repeats until one measurement shows both.
#[test]
fn only_the_vcpu_that_dirties_is_slowed() {
    let Some(mut guest) = Guest::start() else { return };
    let throttle = Throttle::new(&guest.vm, &guest.vcpus);
    let [mut dirties, mut computes] = [0.0_f64; 2];
    until("look at a guest of which just one vCPU is slowed", || {
        assert!(throttle.slow(0));
        assert_eq!(throttle.shares(), [0, 0]);
        let free = guest.speeds(Duration::from_millis(250));
        (dirties, computes) = (dirties.max(free[0]), computes.max(free[1]));
        let before = guest.stopped_time();
        assert!(throttle.slow(80));
        let slowed = guest.speeds(Duration::from_millis(100));
        let (shares, after) = (throttle.shares(), guest.stopped_time());
        (70..=80).contains(&shares[0])
            && shares[1] == 0
            && after[0] > before[0]
            && after[1] == before[1]
            && slowed[0] < 0.5 * dirties
            && slowed[1] >= 0.9 * computes
    });
    let stopped = guest.stopped_time();
    assert!(throttle.stopped_time() >= (stopped[0] + stopped[1]) / 2, "{:?} of {stopped:?}", throttle.stopped_time());
    drop(throttle);
    until("look at a guest that nothing slows", || guest.speeds(Duration::from_millis(50))[0] >= 0.6 * dirties);
    guest.log.stop(&guest.vm);
}

/// The vCPU is stopped for 99 ms of each 100: a pause that waited for the end of a stop would take half of that on average.
#[test]
fn a_stopped_vcpu_pauses_at_once_and_a_new_machine_begins_unthrottled() {
    let Some(mut guest) = Guest::start() else { return };
    let throttle = Throttle::new(&guest.vm, &guest.vcpus);
    until("look at the vCPU that dirties", || {
        guest.speeds(Duration::from_millis(250));
        throttle.slow(99) && throttle.shares() == [99, 0]
    });
    let quickest = (0..10).map(|_| {
        let stopped = guest.stopped_time()[0];
        until("stop", || guest.stopped_time()[0] > stopped);
        // After a stop it runs for 1 ms.
        std::thread::sleep(Duration::from_millis(3));
        let begun = Instant::now();
        guest.vcpus.iter().for_each(VcpuThread::ask_pause);
        guest.vcpus.iter().for_each(|vcpu| vcpu.wait_paused(TIMEOUT).unwrap());
        let took = begun.elapsed();
        guest.vcpus.iter().for_each(VcpuThread::resume);
        took
    });
    let quickest = quickest.min().unwrap();
    assert!(quickest < Duration::from_millis(30), "{quickest:?}");

    let Some(made) = Guest::start() else { return };
    let stopped = throttle.stopped_time();
    assert!(stopped > Duration::ZERO);
    throttle.follow(&made.vm, &made.vcpus);
    assert_eq!(throttle.shares(), [0, 0]);
    assert!(throttle.stopped_time() >= stopped, "what the guest stood before its reset counts");
    drop(guest);
    assert!(throttle.slow(99));
    drop(throttle);
}
