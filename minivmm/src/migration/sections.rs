//! The sections of a machine: those of QEMU's `microvm`, with its names and instance numbers, and minivmm's own.

use std::fmt;
use std::sync::{Arc, Mutex};

use vmstate::schema::json::Schema;
use vmstate::section::Sections;

use super::bitmaps::{self, SharedBitmaps};
use super::disk::{self, SharedDisk};
use super::global::{GlobalState, Timer};
use super::in_transit::InTransit;
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

/// State without a device model, between KVM and the stream: read before a save, written after a load.
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
    /// Sections of a QEMU for devices that minivmm lacks.
    pub kept: KeptSections,
    /// Section `minivmm/in-transit`.
    pub in_transit: InTransit,
}

impl MachineState {
    /// Makes an empty state for a machine with `vcpus` vCPUs.
    pub fn new(vcpus: usize) -> Self {
        Self {
            hypervisor: HypervisorState::new(vcpus),
            timer: Timer::default(),
            global: GlobalState::new("paused"),
            preflight: Preflight::default(),
            kept: KeptSections::default(),
            in_transit: InTransit::default(),
        }
    }
}

/// All parts of a machine that have sections.
#[derive(Clone)]
pub struct Parts {
    /// State in KVM.
    pub state: Arc<Mutex<MachineState>>,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// The guest's exclusive resources.
    pub tickets: SharedTickets,
    /// Device models, with their sections' names.
    pub devices: Vec<(String, SharedSection)>,
    /// The guest's generation id.
    pub generation: Arc<Mutex<Generation>>,
    /// Named dirty bitmaps of all disks.
    pub bitmaps: SharedBitmaps,
    /// Disks whose content is sent, with their sections' instances.
    pub disks: Vec<(u32, SharedDisk)>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.devices.iter().map(|(name, _)| name)).finish()
    }
}

impl Parts {
    /// Adapts the parts for the destination's `release`: an older one that has no section for the generation id gets none, and
    /// the guest keeps its id there.
    #[must_use]
    pub fn going_to(self, release: Option<&Schema>) -> Self {
        match release {
            Some(release) if release.section(GENERATION).is_none() => Self { generation: Arc::default(), ..self },
            _ => self,
        }
    }

    /// Registers all sections, in QEMU's order.
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
        let in_transit = SectionOf::new(state, |state: &mut MachineState| &mut state.in_transit);
        sections.register(InTransit::SECTION, 0, in_transit)?.beyond_qemu();
        sections.register_iterative(bitmaps::NAME, 0, Arc::clone(&self.bitmaps))?.optional();
        for (instance, disk) in &self.disks {
            sections.register_iterative(disk::NAME, *instance, Arc::clone(disk))?.beyond_qemu();
        }
        for (name, remedy) in REMEDIES {
            sections.add_remedy(name, remedy);
        }
        Ok(sections)
    }
}
