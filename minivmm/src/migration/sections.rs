//! Which sections a machine has: QEMU `microvm`'s, by its names and instance numbers, and what minivmm adds.

use std::fmt;
use std::sync::{Arc, Mutex};

use vmstate::section::Sections;

use super::global::{GlobalState, Timer};
use super::kept::KeptSections;
use super::ownership::SharedTickets;
use super::preflight::Preflight;
pub use super::view::SharedSection;
use super::view::View;
use crate::kvm::state::HypervisorState;

/// State that no device model owns, between the kernel and the stream: read before a save, written after a load.
#[derive(Clone, Debug)]
pub struct MachineState {
    /// vCPUs, interrupt chips, timer, clocks.
    pub hypervisor: HypervisorState,
    /// Section `timer`.
    pub timer: Timer,
    /// Section `globalstate`.
    pub global: GlobalState,
    /// Section `minivmm/preflight`.
    pub preflight: Preflight,
    /// What a QEMU sent for devices that are not here.
    pub kept: KeptSections,
}

/// What to do when a QEMU sends a section that this machine lacks, or lacks one that this machine has.
const REMEDIES: [(&str, &str); 8] = [
    ("mc146818rtc", "this machine has no real-time clock; start QEMU with -M microvm,rtc=off"),
    ("ioapic", "this machine has one I/O APIC; start QEMU with -M microvm,ioapic2=off"),
    ("i8254", "this machine has a timer chip; start QEMU with -M microvm,pit=on"),
    ("i8259", "this machine has two interrupt controllers; start QEMU with -M microvm,pic=on"),
    ("serial", "this machine has one serial port; start QEMU with -M microvm,isa-serial=on and one -serial"),
    ("acpi-ged", "this machine has ACPI; start QEMU with -M microvm,acpi=on"),
    ("kvmclock", "this machine runs under KVM; start QEMU with -accel kvm"),
    ("slirp", "QEMU's user-mode network is not here; give both sides a tap"),
];

impl MachineState {
    /// Room for the state of a machine with so many vCPUs.
    pub fn new(vcpus: usize) -> Self {
        Self {
            hypervisor: HypervisorState::new(vcpus),
            timer: Timer::default(),
            global: GlobalState::new("paused"),
            preflight: Preflight::default(),
            kept: KeptSections::default(),
        }
    }
}

/// Everything that has a section.
#[derive(Clone)]
pub struct Parts {
    /// The kernel's side.
    pub state: Arc<Mutex<MachineState>>,
    /// How many vCPUs there are.
    pub vcpus: usize,
    /// What is told of the guest's exclusive resources.
    pub tickets: SharedTickets,
    /// Device models, with their sections' names.
    pub devices: Vec<(String, SharedSection)>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.devices.iter().map(|(name, _)| name)).finish()
    }
}

impl Parts {
    /// Registers all of them, in the order that QEMU sends them.
    ///
    /// # Errors
    /// Two devices have the same name.
    pub fn sections(&self) -> vmstate::Result<Sections<'static>> {
        let state = &self.state;
        let mut sections = Sections::new();
        let preflight = View::new(state, |state: &mut MachineState| &mut state.preflight);
        sections.register("minivmm/preflight", 0, preflight)?.beyond_qemu();
        sections.register("minivmm/ownership", 0, Arc::clone(&self.tickets))?.beyond_qemu();
        sections.register("timer", 0, View::new(state, |state: &mut MachineState| &mut state.timer))?;
        for vcpu in 0..self.vcpus {
            let instance = vcpu as u32;
            let common = View::new(state, move |state: &mut MachineState| &mut state.hypervisor.vcpus[vcpu].common);
            sections.register("cpu_common", instance, common)?;
            let cpu = View::new(state, move |state: &mut MachineState| &mut state.hypervisor.vcpus[vcpu].cpu);
            sections.register("cpu", instance, cpu)?;
            let apic = View::new(state, move |state: &mut MachineState| &mut state.hypervisor.vcpus[vcpu].apic);
            sections.register("apic", instance, apic)?;
        }
        sections.register("ioapic", 0, View::new(state, |state: &mut MachineState| &mut state.hypervisor.ioapic))?;
        sections.register("kvmclock", 0, View::new(state, |state: &mut MachineState| &mut state.hypervisor.clock))?;
        for chip in 0..2 {
            let pic = View::new(state, move |state: &mut MachineState| &mut state.hypervisor.pics[chip]);
            sections.register("i8259", chip as u32, pic)?;
        }
        sections.register("i8254", 0, View::new(state, |state: &mut MachineState| &mut state.hypervisor.pit))?;
        for (name, device) in &self.devices {
            sections.register(name, 0, device.clone())?;
        }
        let fw_cfg = View::new(state, |state: &mut MachineState| &mut state.kept.fw_cfg);
        sections.register("fw_cfg", 0, fw_cfg)?.optional();
        let kvm_tpr_opt = View::new(state, |state: &mut MachineState| &mut state.kept.kvm_tpr_opt);
        sections.register("kvm-tpr-opt", 0, kvm_tpr_opt)?.optional();
        sections.register("globalstate", 0, View::new(state, |state: &mut MachineState| &mut state.global))?;
        let reference = View::new(state, |state: &mut MachineState| &mut state.hypervisor.reference);
        sections.register("minivmm/clock", 0, reference)?.beyond_qemu();
        for vcpu in 0..self.vcpus {
            let extra = View::new(state, move |state: &mut MachineState| &mut state.hypervisor.vcpus[vcpu].extra);
            sections.register("minivmm/vcpu", vcpu as u32, extra)?.beyond_qemu();
        }
        for (idstr, remedy) in REMEDIES {
            sections.add_remedy(idstr, remedy);
        }
        Ok(sections)
    }
}
