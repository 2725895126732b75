//! All state that KVM has of a machine: vCPUs, interrupt chips, timer and clocks, at one instant.

use kvm_ioctls::{VcpuFd, VmFd};
use nix::time::ClockId;

use super::pvclock::{self, PvClock};
use super::vcpu::HostFeatures;
use super::{
    ClockReference, Elapsed, IoApic, KvmClock, Pic, Pit, PreflightTimes, StateError, VcpuState, clock, nested,
};

/// State of a machine in KVM.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HypervisorState {
    /// Section `kvmclock`.
    pub clock: KvmClock,
    /// Section `minivmm/clock`.
    pub reference: ClockReference,
    /// Sections of each vCPU.
    pub vcpus: Vec<VcpuState>,
    /// Sections `i8259`, master and slave.
    pub pics: [Pic; 2],
    /// Section `ioapic`.
    pub ioapic: IoApic,
    /// Section `i8254`.
    pub pit: Pit,
}

impl HypervisorState {
    /// Makes an empty state for `vcpus` vCPUs.
    pub fn new(vcpus: usize) -> Self {
        Self { vcpus: vec![VcpuState::default(); vcpus], ..Default::default() }
    }

    /// Reads a machine whose vCPUs are all stopped.
    ///
    /// # Errors
    /// An ioctl failed.
    pub fn get(vm: &VmFd, vcpus: &[&VcpuFd], host: &HostFeatures) -> Result<Self, StateError> {
        let (clock, reference) = clock::get(vm, vcpus)?;
        let now = clock.clock as i64;
        let at_clock = |vcpu: usize| reference.tsc.get(vcpu).copied();
        let states = vcpus.iter().enumerate().map(|(index, vcpu)| VcpuState::get(vcpu, host, now, at_clock(index)));
        Ok(Self {
            vcpus: states.collect::<Result<_, _>>()?,
            pics: [Pic::get(vm, 0)?, Pic::get(vm, 1)?],
            ioapic: IoApic::get(vm)?,
            pit: Pit::get(vm, now.wrapping_sub(monotonic()))?,
            clock,
            reference,
        })
    }

    /// Completes a reference without TSCs at its clock's instant, as of a QEMU, which reads the two one after the other: the
    /// TSCs are computed from the page of the guest's clock, which its KVM wrote last. `read` copies the page out of guest
    /// memory and returns whether it could.
    pub fn complete_reference(&mut self, mut read: impl FnMut(u64, &mut [u8]) -> bool) {
        if self.reference.tsc.len() == self.vcpus.len() {
            return;
        }
        let cpus = self.vcpus.iter().map(|vcpu| &vcpu.cpu);
        let readings: Vec<_> = cpus.map(|cpu| (cpu.tsc, PvClock::read(cpu.system_time_msr, &mut read))).collect();
        if let Some(tsc) = pvclock::tsc_at(self.clock.clock, &readings) {
            let khz = self.vcpus.first().and_then(|vcpu| u32::try_from(vcpu.cpu.tsc_khz).ok()).unwrap_or(0);
            self.reference.complete(tsc, khz);
        }
    }

    /// Writes a machine that has not run yet. The clocks come first: a TSC deadline is armed against the TSC. Then come the
    /// vCPUs with their LAPICs, and after them the chips that send interrupts to these: KVM_SET_IRQCHIP delivers pending
    /// interrupts of the I/O APIC at once (`kvm_ioapic_inject_all`, arch/x86/kvm/ioapic.c), and a LAPIC after reset does not
    /// accept them. QEMU has the same order (`MIG_PRI_APIC` of hw/intc/apic_common.c).
    ///
    /// The clocks advance by the time since the source's pause, which is returned; that needs `preflight`.
    ///
    /// # Errors
    /// The guest cannot run here, or an ioctl failed; the machine must not run.
    pub fn set(
        &self,
        vm: &VmFd,
        vcpus: &[&VcpuFd],
        host: &HostFeatures,
        preflight: Option<PreflightTimes>,
    ) -> Result<Elapsed, StateError> {
        for (index, (vcpu, state)) in vcpus.iter().zip(&self.vcpus).enumerate() {
            if let Some(what) = nested::found(state) {
                return Err(StateError::Nested { index, what });
            }
            clock::set_rate(vm, vcpu, u32::try_from(state.cpu.tsc_khz).unwrap_or(0))?;
        }
        let tsc: Vec<u64> = self.vcpus.iter().map(|vcpu| vcpu.cpu.tsc).collect();
        let elapsed = clock::set(vm, vcpus, &self.clock, &self.reference, preflight, &tsc)?;
        for (vcpu, state) in vcpus.iter().zip(&self.vcpus) {
            state.set(vcpu, host)?;
        }
        for (chip, pic) in (0..).zip(&self.pics) {
            pic.set(vm, chip)?;
        }
        self.ioapic.set(vm)?;
        self.pit.set(vm, (self.clock.clock as i64).wrapping_sub(monotonic()))?;
        Ok(elapsed)
    }
}

/// Clock of KVM's timer, in ns.
fn monotonic() -> i64 {
    clock::read(ClockId::CLOCK_MONOTONIC) as i64
}
