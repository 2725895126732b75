//! State in KVM moves completely: read from one VM, sent through a stream into another VM, and read again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_pit_config, kvm_regs};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use minivmm::kvm::machine_check;
use minivmm::kvm::state::vcpu::HostFeatures;
use minivmm::kvm::state::{Cpu, Elapsed, HypervisorState, PreflightTimes};
use minivmm::kvm::vcpu::{Buses, Exit, Vcpu};
use minivmm::kvm::vm::KvmVm;
use minivmm::memory::Ram;
use vmstate::VmState;
use vmstate::codec::Reader;

struct Host {
    kvm: Kvm,
    features: HostFeatures,
}

fn host() -> Option<Host> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            vmstate_lab::skip::skip(format!("/dev/kvm does not open: {error}"));
            return None;
        }
    };
    let features = HostFeatures::new(&kvm).unwrap();
    Some(Host { kvm, features })
}

fn machine(host: &Host, vcpus: u64) -> (VmFd, Vec<VcpuFd>) {
    let vm = host.kvm.create_vm().unwrap();
    vm.set_tss_address(0xfffb_d000).unwrap();
    vm.create_irq_chip().unwrap();
    vm.create_pit2(kvm_pit_config::default()).unwrap();
    let cpuid = host.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    let vcpus = (0..vcpus)
        .map(|id| {
            let vcpu = vm.create_vcpu(id).unwrap();
            vcpu.set_cpuid2(&cpuid).unwrap();
            vcpu
        })
        .collect();
    (vm, vcpus)
}

/// Sets everything that can be set without running the guest to a value that is not the default.
fn disturb(vm: &VmFd, vcpus: &[VcpuFd]) {
    for (n, vcpu) in (0..).zip(vcpus) {
        let mut sregs = vcpu.get_sregs().unwrap();
        sregs.fs.base = 0x7f00_0000_1000 + n;
        sregs.cs.selector = 0x10;
        sregs.gdt.base = 0xffff_8000_0000_0000;
        sregs.cr2 = 0xdead_b000;
        vcpu.set_sregs(&sregs).unwrap();
        vcpu.set_regs(&kvm_regs {
            rax: 1 + n,
            rbx: 2,
            rsp: 3,
            r15: 4,
            rip: 0x1234,
            rflags: 0x46,
            ..Default::default()
        })
        .unwrap();
        let mut debug = vcpu.get_debug_regs().unwrap();
        debug.db[1] = 0x4000 + n;
        vcpu.set_debug_regs(&debug).unwrap();
        let mut lapic = vcpu.get_lapic().unwrap();
        lapic.regs[0x80] = 0x20; // TPR
        lapic.regs[0xf1] = 1; // SPIV: software-enabled
        lapic.regs[0x320] = 0x44; // LVT timer: vector
        lapic.regs[0x322] = 0; // and not masked
        vcpu.set_lapic(&lapic).unwrap();
    }
    let mut pit = vm.get_pit2().unwrap();
    pit.channels[2].count = 0x1234;
    vm.set_pit2(&pit).unwrap();
}

#[test]
fn state_survives_the_wire_and_another_vm() {
    let Some(host) = host() else { return };
    let (vm, vcpus) = machine(&host, 2);
    disturb(&vm, &vcpus);
    let vcpus: Vec<&VcpuFd> = vcpus.iter().collect();
    let mut source = HypervisorState::get(&vm, &vcpus, &host.features).unwrap();
    // KVM_SET_FPU does not change XSTATE_BV, so vector registers are set with the whole state; KVM_GET_FPU is the oracle.
    let cpu = &mut source.vcpus[0].cpu;
    (cpu.fpuc, cpu.fpip, cpu.xmm[0].low, cpu.xstate_bv) = (0x27f, 0x5678, 0x1111_2222, cpu.xstate_bv | 3);
    source.set(&vm, &vcpus, &host.features, None).unwrap();
    let fpu = vcpus[0].get_fpu().unwrap();
    assert_eq!((fpu.fcw, fpu.last_ip, &fpu.xmm[0][..4]), (0x27f, 0x5678, &[0x22, 0x22, 0x11, 0x11][..]));
    let source = HypervisorState::get(&vm, &vcpus, &host.features).unwrap();
    assert_eq!(source.vcpus[1].cpu.regs[0], 2, "RAX of the second vCPU");
    assert_eq!(source.vcpus[1].cpu.segs[4].base, 0x7f00_0000_1001, "FS base of the second vCPU");
    assert_eq!(source.vcpus[0].cpu.xmm[0].low, 0x1111_2222);
    assert_eq!((source.vcpus[0].cpu.fpuc, source.vcpus[0].cpu.fpip), (0x27f, 0x5678));
    assert_eq!(source.vcpus[0].apic.lvt[0], 0x44);
    assert_eq!(source.pit.channels[2].count, 0x1234);

    let mut moved = HypervisorState::new(2);
    for (from, to) in source.vcpus.clone().iter_mut().zip(&mut moved.vcpus) {
        through_wire(&mut from.common, &mut to.common);
        through_wire(&mut from.cpu, &mut to.cpu);
        through_wire(&mut from.apic, &mut to.apic);
        through_wire(&mut from.extra, &mut to.extra);
    }
    let mut copy = source.clone();
    through_wire(&mut copy.clock, &mut moved.clock);
    through_wire(&mut copy.reference, &mut moved.reference);
    through_wire(&mut copy.pics[0], &mut moved.pics[0]);
    through_wire(&mut copy.pics[1], &mut moved.pics[1]);
    through_wire(&mut copy.ioapic, &mut moved.ioapic);
    through_wire(&mut copy.pit, &mut moved.pit);
    assert_eq!(moved, source);

    let (vm, vcpus) = machine(&host, 2);
    let vcpus: Vec<&VcpuFd> = vcpus.iter().collect();
    moved.set(&vm, &vcpus, &host.features, None).unwrap();
    let mut destination = HypervisorState::get(&vm, &vcpus, &host.features).unwrap();
    assert!(destination.clock.clock > source.clock.clock, "the KVM clock goes on");
    for (there, here) in destination.vcpus.iter_mut().zip(&source.vcpus) {
        assert!(there.cpu.tsc > here.cpu.tsc, "the TSC goes on");
        assert!(there.cpu.tsc - here.cpu.tsc < 60 * 1000 * here.cpu.tsc_khz as u64, "by less than a minute");
        forget_time(there);
    }
    for (there, mut here) in destination.vcpus.iter().zip(source.vcpus) {
        forget_time(&mut here);
        assert_eq!(there.cpu, here.cpu);
        assert_eq!(there.apic, here.apic);
        assert_eq!(there.common, here.common);
        let changed: Vec<_> = here.extra.msrs.iter().filter(|msr| !there.extra.msrs.contains(msr)).collect();
        assert!(changed.is_empty(), "MSRs that did not arrive: {changed:x?}");
        assert_eq!(there.extra.xsave_rest, here.extra.xsave_rest);
        assert_eq!(there.extra.events, here.extra.events);
    }
    assert_eq!(destination.ioapic, source.ioapic);
    assert_eq!(destination.pics, source.pics);
    assert_eq!(destination.pit.channels[2].count, source.pit.channels[2].count);
}

/// A level-triggered line is high and its interrupt was not sent, as after many in a row, which KVM delays
/// (`IOAPIC_SUCCESSIVE_IRQ_MAX_COUNT`, arch/x86/kvm/ioapic.c): the new machine's LAPIC gets the interrupt once.
#[test]
fn a_pending_level_interrupt_reaches_the_new_machines_lapic() {
    const PIN: usize = 4;
    const VECTOR: u32 = 0x51;
    /// Redirection entry: level-triggered, waiting for the EOI of an interrupt that was sent (Intel 82093AA, 3.2.4).
    const LEVEL: u64 = 1 << 15;
    const REMOTE_IRR: u64 = 1 << 14;
    let Some(host) = host() else { return };
    let (vm, vcpus) = machine(&host, 1);
    disturb(&vm, &vcpus);
    let fds: Vec<&VcpuFd> = vcpus.iter().collect();
    let mut source = HypervisorState::get(&vm, &fds, &host.features).unwrap();
    source.vcpus[0].apic.tpr = 0;
    source.ioapic.irr = 1 << PIN;
    source.ioapic.ioredtbl[PIN] = LEVEL | u64::from(VECTOR);

    let (vm, vcpus) = machine(&host, 1);
    let fds: Vec<&VcpuFd> = vcpus.iter().collect();
    source.set(&vm, &fds, &host.features, None).unwrap();
    let there = HypervisorState::get(&vm, &fds, &host.features).unwrap();
    let requested = |state: &HypervisorState| state.vcpus[0].apic.irr[VECTOR as usize / 32] >> (VECTOR % 32) & 1;
    assert_eq!(requested(&there), 1, "the LAPIC's IRR: {:x?}", there.vcpus[0].apic.irr);
    assert_eq!(there.ioapic.ioredtbl[PIN] & REMOTE_IRR, REMOTE_IRR, "the I/O APIC waits for its end");

    // After another move it is still one interrupt: requested at the LAPIC, and not sent again by the I/O APIC.
    let (vm, vcpus) = machine(&host, 1);
    let fds: Vec<&VcpuFd> = vcpus.iter().collect();
    there.set(&vm, &fds, &host.features, None).unwrap();
    let third = HypervisorState::get(&vm, &fds, &host.features).unwrap();
    assert_eq!((requested(&third), third.ioapic.ioredtbl[PIN]), (1, there.ioapic.ioredtbl[PIN]));
    assert_eq!(third.vcpus[0].apic.isr, [0; 8]);
}

/// Source and destination are this host, so their monotonic clocks are the same: the wall clock's difference is used exactly
/// where it agrees with them, and ignored where it does not.
#[test]
fn clocks_go_on_by_what_was_measured() {
    let Some(host) = host() else { return };
    let (vm, vcpus) = machine(&host, 1);
    let fds: Vec<&VcpuFd> = vcpus.iter().collect();
    // A host can read its TSC once its clock was set.
    let fresh = HypervisorState::get(&vm, &fds, &host.features).unwrap();
    fresh.set(&vm, &fds, &host.features, None).unwrap();
    // A new vCPU's TSC begins at 0, except on a KVM whose guests read the host's.
    let has_tsc_of_its_own = fresh.vcpus[0].cpu.tsc < 60_000 * fresh.vcpus[0].cpu.tsc_khz as u64;
    let mut source = HypervisorState::get(&vm, &fds, &host.features).unwrap();
    if source.reference.tsc.is_empty() {
        return vmstate_lab::skip::skip("this host cannot read all clocks at one instant");
    }
    // The source was paused 40 s ago, a minute after the preflight; on a host that has just booted all times are shorter.
    let ago = 40_000_000_000.min(source.reference.monotonic / 4);
    let most = ago * 5 / 2;
    source.reference.monotonic -= ago;
    source.reference.realtime -= ago;
    let start = source.reference.monotonic - (most - ago);
    let both = Some(PreflightTimes { source: start, here: start });
    for (change_s, disagrees) in [(0, false), (3600, true), (-3600, true)] {
        let mut sent = source.clone();
        sent.reference.realtime = sent.reference.realtime.wrapping_add_signed(change_s * 1_000_000_000);
        let (vm, vcpus) = machine(&host, 1);
        let fds: Vec<&VcpuFd> = vcpus.iter().collect();
        let elapsed = sent.set(&vm, &fds, &host.features, both).unwrap();
        let there = HypervisorState::get(&vm, &fds, &host.features).unwrap();
        assert_eq!(elapsed.warning().is_some(), disagrees, "{change_s} s: {elapsed:?}");
        let clock_ns = there.clock.clock - sent.clock.clock;
        let ticks = there.reference.tsc[0].wrapping_sub(sent.reference.tsc[0]);
        let tsc_ns = (u128::from(ticks) * 1_000_000 / u128::from(sent.reference.tsc_khz)) as u64;
        assert!((ago..most).contains(&clock_ns), "{change_s} s: {clock_ns}");
        if has_tsc_of_its_own {
            assert!(clock_ns.abs_diff(tsc_ns) < 1_000_000, "{change_s} s: the two clocks part: {clock_ns} {tsc_ns}");
        }
    }
    // Without a preflight the clocks stay where they were.
    let (vm, vcpus) = machine(&host, 1);
    let fds: Vec<&VcpuFd> = vcpus.iter().collect();
    assert_eq!(source.set(&vm, &fds, &host.features, None).unwrap(), Elapsed::default());
}

/// A guest of two vCPUs that only exit, with a page for the KVM clock each.
struct Clocked {
    ram: Ram,
    vm: KvmVm,
    vcpus: Vec<Vcpu>,
}

/// Page in which KVM gives a guest its clock (`struct pvclock_vcpu_time_info`, Documentation/virt/kvm/x86/msr.rst).
#[derive(Debug)]
struct ClockPage {
    tsc: u64,
    ns: u64,
    mul: u32,
    shift: i8,
}

impl Clocked {
    const PAGES: u64 = 0x5000;

    fn new() -> Self {
        let ram = Ram::new(0x10000).unwrap();
        ram.write(0x1000, &[0xe6, 0x80, 0xeb, 0xfc]).unwrap(); // out %al, $0x80; jmp back to it
        let vm = KvmVm::new(Kvm::new().unwrap(), &ram).unwrap();
        let cpuid = vm.kvm().get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        let vcpus: Vec<Vcpu> = (0..2).map(|index| vm.create_vcpu(index).unwrap()).collect();
        for vcpu in &vcpus {
            vcpu.fd().set_cpuid2(&cpuid).unwrap();
            vcpu.fd().set_mp_state(Default::default()).unwrap(); // runnable
        }
        Self { ram, vm, vcpus }
    }

    fn fds(&self) -> Vec<&VcpuFd> {
        self.vcpus.iter().map(Vcpu::fd).collect()
    }

    /// Sets the registers and MSR_KVM_SYSTEM_TIME_NEW.
    fn begin(&self) {
        const SYSTEM_TIME: u32 = 0x4b56_4d01;
        for (n, vcpu) in (0..).zip(self.fds()) {
            let mut sregs = vcpu.get_sregs().unwrap();
            (sregs.cs.base, sregs.cs.selector) = (0, 0);
            vcpu.set_sregs(&sregs).unwrap();
            vcpu.set_regs(&kvm_regs { rip: 0x1000, rflags: 2, ..Default::default() }).unwrap();
            let page = kvm_msr_entry { index: SYSTEM_TIME, data: Self::PAGES + n * 0x1000 + 1, ..Default::default() };
            assert_eq!(vcpu.set_msrs(&Msrs::from_entries(&[page]).unwrap()).unwrap(), 1);
        }
    }

    /// Enters each vCPU, for which KVM updates the vCPU's page.
    fn pages(&mut self) -> Vec<ClockPage> {
        for vcpu in &mut self.vcpus {
            assert_eq!((vcpu.enter(&Buses::default()), vcpu.enter(&Buses::default())), (Exit::Handled, Exit::Handled));
        }
        let page = |n: u64| {
            let mut bytes = [0; 32];
            self.ram.read(Self::PAGES + n * 0x1000, &mut bytes).unwrap();
            let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            ClockPage { tsc: long(8), ns: long(16), mul: long(24) as u32, shift: bytes[28] as i8 }
        };
        vec![page(0), page(1)]
    }
}

impl ClockPage {
    /// Clock that the guest computes for the TSC value `tsc` (`pvclock_scale_delta`, arch/x86/include/asm/pvclock.h).
    fn clock(&self, tsc: u64) -> i128 {
        let ticks = i128::from(tsc) - i128::from(self.tsc);
        let shifted = if self.shift < 0 { ticks >> -self.shift } else { ticks << self.shift };
        i128::from(self.ns) + ((shifted * i128::from(self.mul)) >> 32)
    }
}

/// Ends the threads that keep the host busy when it is dropped.
struct Done(Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The guest's own page is the oracle: at each TSC it gives the same clock as before. This also holds where KVM keeps its own
/// TSC: the clock follows it.
#[test]
fn clock_and_tsc_stay_together_on_a_busy_host() {
    let Some(host) = host() else { return };
    let (mut skews, mut apart) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let done = Done(Arc::default());
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            let done = Arc::clone(&done.0);
            scope.spawn(move || while !done.load(Ordering::Relaxed) {});
        }
        for _ in 0..10 {
            let (mut from, mut to) = (Clocked::new(), Clocked::new());
            from.begin();
            let before = from.pages();
            let state = HypervisorState::get(from.vm.fd(), &from.fds(), &host.features).unwrap();
            state.set(to.vm.fd(), &to.fds(), &host.features, None).unwrap();
            let after = to.pages();
            let tsc = after[0].tsc;
            skews.push(after[0].clock(tsc) - before[0].clock(tsc));
            apart.push(after[0].clock(tsc) - after[1].clock(tsc));
        }
    });
    eprintln!("the clock is ahead of the TSC by ns: {skews:?}");
    assert!(skews.iter().all(|skew| skew.abs() <= 50_000), "{skews:?}");
    assert!(apart.iter().all(|apart| apart.abs() <= 1000), "the vCPUs' clocks: {apart:?}");
}

#[test]
fn nested_virtualization_and_another_tsc_rate_are_refused() {
    let Some(host) = host() else { return };
    let (vm, vcpus) = machine(&host, 2);
    let fds: Vec<&VcpuFd> = vcpus.iter().collect();
    let good = HypervisorState::get(&vm, &fds, &host.features).unwrap();
    let mut nested = good.clone();
    nested.vcpus[1].cpu.efer |= 1 << 12;
    let error = nested.set(&vm, &fds, &host.features, None).unwrap_err().to_string();
    assert!(
        error.starts_with("nested virtualization is not migrated, and the stream has EFER.SVME of vCPU 1"),
        "{error}"
    );
    if host.kvm.check_extension(Cap::TscControl) {
        return;
    }
    for (factor, by) in [(2, 1), (1, 2)] {
        let mut other = good.clone();
        let rate = other.vcpus[0].cpu.tsc_khz;
        other.vcpus[0].cpu.tsc_khz = rate * factor / by;
        let error = other.set(&vm, &fds, &host.features, None).unwrap_err().to_string();
        assert!(error.contains(&format!("runs at {} kHz, this host's at {rate} kHz", rate * factor / by)), "{error}");
    }
    good.set(&vm, &fds, &host.features, None).unwrap();
}

/// State of features that this KVM lacks, as a source on a newer processor may send it: extended supervisor states that no
/// processor has (IA32_XSS, Intel SDM volume 1, 13.3), and a control register that only some have (IA32_UMWAIT_CONTROL).
/// Afterwards the machine takes a guest that fits.
#[test]
fn state_of_features_that_kvm_lacks_is_refused_by_the_registers_name() {
    let Some(host) = host() else { return };
    let (vm, vcpus) = machine(&host, 1);
    let fds: Vec<&VcpuFd> = vcpus.iter().collect();
    let good = HypervisorState::get(&vm, &fds, &host.features).unwrap();
    type Change = fn(&mut Cpu);
    let changes: [(Change, &str); 2] = [
        (|cpu| cpu.xss = 1 << 62, "MSR 0xda0 = 0x4000000000000000"),
        (|cpu| cpu.umwait = 0xffff_fffc | 2, "MSR 0xe1 = 0xfffffffe"),
    ];
    for (change, register) in changes {
        let mut foreign = good.clone();
        change(&mut foreign.vcpus[0].cpu);
        let error = foreign.set(&vm, &fds, &host.features, None).unwrap_err().to_string();
        assert!(
            error.contains(&format!("this host's KVM refuses {register}; migrate to a host with the same")),
            "{error}"
        );
        good.set(&vm, &fds, &host.features, None).unwrap();
    }
}

/// Removes what no destination can make equal: the times of the two readings.
fn forget_time(state: &mut minivmm::kvm::state::VcpuState) {
    state.cpu.tsc = 0;
    state.apic.initial_count_load_time = 0;
    state.apic.next_time = 0;
    state.extra.apic_current_count = 0;
}

fn through_wire<T: vmstate::VmState + vmstate::Section>(from: &mut T, to: &mut T) {
    let mut out = vmstate::codec::Writer::new();
    vmstate::Section::save(from, &mut out).unwrap();
    let mut bytes = out.into_bytes();
    bytes.push(0x7e); // the footer that follows a section, which the look for a subsection sees
    let mut input = vmstate::codec::Reader::strict(&bytes);
    vmstate::Section::load(to, &mut input, T::DESCRIPTION.version).unwrap();
    assert_eq!(input.rest(), [0x7e]);
}

/// A vCPU of minivmm describes itself as QEMU's own vCPU under KVM does in a stream of QEMU 10.0: otherwise QEMU refuses it, or
/// writes registers that its vCPU lacks.
#[test]
fn a_vcpu_says_of_itself_what_qemus_does() {
    let Some(host) = host() else { return };
    let fixture = include_str!("fixtures/qemu-10.0-cpu.jsonl").lines().next().unwrap();
    let fixture: serde_json::Value = serde_json::from_str(fixture).unwrap();
    assert_eq!(fixture["accel"], "kvm");
    let text = fixture["body"].as_str().unwrap();
    let body: Vec<u8> =
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect();
    let mut qemus = Cpu::default();
    qemus.load_or_keep(&mut Reader::strict(&body).complete(), 12).unwrap();

    let (vm, vcpus) = machine(&host, 1);
    machine_check::set_up(&host.kvm, &vcpus[0]).unwrap();
    let ours = &HypervisorState::get(&vm, &[&vcpus[0]], &host.features).unwrap().vcpus[0].cpu;
    assert_eq!(ours.hflags2, qemus.hflags2);
    if host.kvm.check_extension_int(Cap::Mce) >= 10 {
        assert_eq!((ours.mcg_cap, ours.mcg_ctl, ours.mce_banks), (qemus.mcg_cap, qemus.mcg_ctl, qemus.mce_banks));
    }
}
