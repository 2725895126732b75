//! Which sections a machine has: QEMU `microvm`'s, by its names and instance numbers, and what minivmm adds.

use std::fmt;
use std::sync::{Arc, Mutex};

use vmstate::schema::json::Schema;
use vmstate::section::Sections;

use super::disk::{self, SharedDisk};
use super::global::{GlobalState, Timer};
use super::ownership::SharedTickets;
use super::preflight::Preflight;
use super::qemu_sections::KeptSections;
use super::remedies::REMEDIES;
use super::section_of::SectionOf;
pub use super::section_of::SharedSection;
use crate::devices::generation::Generation;
use crate::kvm::state::HypervisorState;

/// Section of the generation id.
const GENERATION: &str = "minivmm/generation";

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
    /// The guest's generation id.
    pub generation: Arc<Mutex<Generation>>,
    /// Disks whose content goes along, with their sections' instances.
    pub disks: Vec<(u32, SharedDisk)>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.devices.iter().map(|(name, _)| name)).finish()
    }
}

impl Parts {
    /// What goes to `release`, where that is an older one: without the generation id if it knows none. The guest keeps its id there.
    #[must_use]
    pub fn going_to(self, release: Option<&Schema>) -> Self {
        match release {
            Some(release) if release.section(GENERATION).is_none() => Self { generation: Arc::default(), ..self },
            _ => self,
        }
    }

    /// Registers all of them, in the order that QEMU sends them.
    ///
    /// # Errors
    /// Two devices have the same name.
    pub fn sections(&self) -> vmstate::Result<Sections<'static>> {
        let state = &self.state;
        let mut sections = Sections::new();
        let preflight = SectionOf::new(state, |state: &mut MachineState| &mut state.preflight);
        sections.register("minivmm/preflight", 0, preflight)?.beyond_qemu();
        sections.register("minivmm/ownership", 0, Arc::clone(&self.tickets))?.beyond_qemu();
        sections.register("timer", 0, SectionOf::new(state, |state: &mut MachineState| &mut state.timer))?;
        for vcpu in 0..self.vcpus {
            let instance = vcpu as u32;
            let common =
                SectionOf::new(state, move |state: &mut MachineState| &mut state.hypervisor.vcpus[vcpu].common);
            sections.register("cpu_common", instance, common)?;
            let cpu = SectionOf::new(state, move |state: &mut MachineState| &mut state.hypervisor.vcpus[vcpu].cpu);
            sections.register("cpu", instance, cpu)?;
            let apic = SectionOf::new(state, move |state: &mut MachineState| &mut state.hypervisor.vcpus[vcpu].apic);
            sections.register("apic", instance, apic)?;
        }
        sections.register(
            "ioapic",
            0,
            SectionOf::new(state, |state: &mut MachineState| &mut state.hypervisor.ioapic),
        )?;
        sections.register(
            "kvmclock",
            0,
            SectionOf::new(state, |state: &mut MachineState| &mut state.hypervisor.clock),
        )?;
        for chip in 0..2 {
            let pic = SectionOf::new(state, move |state: &mut MachineState| &mut state.hypervisor.pics[chip]);
            sections.register("i8259", chip as u32, pic)?;
        }
        sections.register("i8254", 0, SectionOf::new(state, |state: &mut MachineState| &mut state.hypervisor.pit))?;
        for (name, device) in &self.devices {
            sections.register(name, 0, device.clone())?;
        }
        let fw_cfg = SectionOf::new(state, |state: &mut MachineState| &mut state.kept.fw_cfg);
        sections.register("fw_cfg", 0, fw_cfg)?.optional();
        let kvm_tpr_opt = SectionOf::new(state, |state: &mut MachineState| &mut state.kept.kvm_tpr_opt);
        sections.register("kvm-tpr-opt", 0, kvm_tpr_opt)?.optional();
        sections.register("globalstate", 0, SectionOf::new(state, |state: &mut MachineState| &mut state.global))?;
        let reference = SectionOf::new(state, |state: &mut MachineState| &mut state.hypervisor.reference);
        sections.register("minivmm/clock", 0, reference)?.beyond_qemu();
        for vcpu in 0..self.vcpus {
            let extra = SectionOf::new(state, move |state: &mut MachineState| &mut state.hypervisor.vcpus[vcpu].extra);
            sections.register("minivmm/vcpu", vcpu as u32, extra)?.beyond_qemu();
        }
        sections.register(GENERATION, 0, SharedSection::new(&self.generation))?.beyond_qemu();
        for (instance, disk) in &self.disks {
            sections.register_iterative(disk::NAME, *instance, Arc::clone(disk))?.beyond_qemu();
        }
        for (name, remedy) in REMEDIES {
            sections.add_remedy(name, remedy);
        }
        Ok(sections)
    }
}
