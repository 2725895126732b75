//! Parts of a machine that a reset replaces: KVM's machine, the vCPUs, the devices. RAM stays.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;

use crate::boot::{self, Payload, acpi};
use crate::config::Config;
use crate::cpu::Choice;
use crate::error::{Error, Result};
use crate::kvm::cpuid::{self, Offer};
use crate::kvm::machine_check;
use crate::kvm::populate::Populated;
use crate::kvm::state::vcpu::HostFeatures;
use crate::kvm::state::{Elapsed, HypervisorState, PreflightTimes, Processor, StateError, clock};
use crate::kvm::thread::{VcpuEvent, VcpuThread};
use crate::kvm::vcpu::{Buses, Vcpu};
use crate::kvm::vm::KvmVm;
use crate::memory::Ram;
use crate::sync::lock;
use crate::vm::backends::{Backends, BootImages};
use crate::vm::devices::Devices;
use crate::vm::guest_events::GuestEvents;
use crate::vm::queue::Waiting;
use crate::vm::request::GuestEvent;

/// vCPUs and devices of a machine, using its RAM. The vCPUs are paused until [`resume_vcpus`](Self::resume_vcpus).
#[derive(Debug)]
pub struct Machine {
    /// vCPUs, by APIC id. The first field, so that they end before the fields that they use.
    pub vcpus: Vec<VcpuThread>,
    /// KVM's machine: slots, interrupt chips, timer, clock.
    pub kvm: Arc<KvmVm>,
    /// Populated second-level page tables.
    populated: Populated,
    host: HostFeatures,
    /// Processor that this host offers; an arriving guest may have any part of it.
    offered: Processor,
    /// Processor that the guest sees.
    processor: Processor,
    /// Devices.
    pub devices: Devices,
    events: Arc<GuestEvents>,
}

impl Machine {
    /// Makes a machine as after power-on, with RAM as it is. Actions of the guest on its machine wake `driver`. The devices
    /// replace those of `previous`.
    ///
    /// # Errors
    /// Any; see [`Error`].
    pub(super) fn new(
        config: &Config,
        ram: &Ram,
        kvm: Arc<Kvm>,
        backends: &Backends,
        driver: &Arc<Waiting>,
        previous: Option<&Devices>,
    ) -> Result<Self> {
        let events = Arc::new(GuestEvents::new(driver));
        let kvm = Arc::new(KvmVm::new(kvm, ram)?);
        let host = HostFeatures::new(kvm.kvm()).map_err(Error::device)?;
        let mut buses = Buses::default();
        let devices = Devices::new(&kvm, backends, &mut buses, &events, previous)?;
        let Made { vcpus, offered, processor } = make_vcpus(&kvm, config)?;
        let buses = Arc::new(buses);
        let vcpus = vcpus.into_iter().map(|vcpu| spawn(vcpu, Arc::clone(&buses), Arc::clone(&events)));
        let vcpus = vcpus.collect::<Result<_>>()?;
        let populated = Populated::new(&kvm);
        Ok(Self { vcpus, kvm, populated, host, offered, processor, devices, events })
    }

    /// Loads the kernel of `images` and its data, and sets the first vCPU to its entry.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Flag`], [`Error::Memory`].
    pub(super) fn load(&self, config: &Config, images: &BootImages) -> Result<()> {
        let payload = Payload { kernel: &images.kernel, initrd: images.initrd.as_ref(), append: &config.append };
        let acpi = acpi::Machine { cpus: config.cpus, virtio_windows: self.devices.virtio_windows().to_vec() };
        let entry = boot::load(self.kvm.ram(), payload, &acpi)?;
        let mut generation = lock(&self.devices.generation);
        generation.power_on(self.kvm.ram().guest()).map_err(Error::device)?;
        self.vcpus[0].vcpu().set_start(&entry.registers(), |sregs| entry.set_system_registers(sregs))
    }

    /// Pauses all vCPUs `within` this time: outside the guest, with no half-done access. Devices continue.
    ///
    /// # Errors
    /// [`Error::VcpuStuck`]; all run on.
    pub fn pause_vcpus(&self, within: Duration) -> Result<()> {
        let until = Instant::now() + within;
        self.vcpus.iter().for_each(VcpuThread::ask_pause);
        let paused =
            self.vcpus.iter().try_for_each(|vcpu| vcpu.wait_paused(until.saturating_duration_since(Instant::now())));
        if paused.is_err() {
            self.vcpus.iter().for_each(VcpuThread::resume);
        }
        paused
    }

    /// Resumes all vCPUs, which are paused.
    pub fn resume_vcpus(&self) {
        for vcpu in &self.vcpus {
            // Otherwise the guest's watchdog would take the pause for a lock-up. KVM refuses the call while the guest has no
            // kvmclock; then it is not needed.
            let _ = vcpu.vcpu().fd().kvmclock_ctrl();
        }
        self.vcpus.iter().for_each(VcpuThread::resume);
    }

    /// Reads KVM's state of the machine, which is paused.
    ///
    /// # Errors
    /// [`StateError`].
    pub(super) fn read_state(&self) -> Result<HypervisorState, StateError> {
        let vcpus: Vec<_> = self.vcpus.iter().map(VcpuThread::vcpu).collect();
        let fds: Vec<_> = vcpus.iter().map(|vcpu| vcpu.fd()).collect();
        HypervisorState::get(self.kvm.fd(), &fds, &self.host)
    }

    /// Writes KVM's state of the machine, which has not run. The guest's memory is complete.
    ///
    /// # Errors
    /// [`StateError`].
    pub(super) fn write_state(
        &self,
        state: &HypervisorState,
        preflight: Option<PreflightTimes>,
    ) -> Result<Elapsed, StateError> {
        let vcpus: Vec<_> = self.vcpus.iter().map(VcpuThread::vcpu).collect();
        let fds: Vec<_> = vcpus.iter().map(|vcpu| vcpu.fd()).collect();
        state.set(self.kvm.fd(), &fds, &self.host, preflight)
    }

    /// Populates second-level page tables for memory that was written, until the time `until`. No vCPU runs.
    pub(super) fn populate(&mut self, until: Instant) {
        if let Some(vcpu) = self.vcpus.first() {
            self.populated.catch_up(vcpu.vcpu().fd(), until);
        }
    }

    /// Actions of the guest on its machine.
    pub(super) fn events(&self) -> &GuestEvents {
        &self.events
    }

    /// Processor that the guest sees, set here or where the guest began.
    pub(super) fn processor(&self) -> &Processor {
        &self.processor
    }

    /// Whether the guest sees an invariant TSC.
    pub(super) fn has_invariant_tsc(&self) -> bool {
        self.processor.leaves.iter().any(|leaf| leaf.function == 0x8000_0007 && leaf.edx >> 8 & 1 == 1)
    }

    /// Processor that this host offers: that of `--cpu host`, whatever was selected.
    pub(super) fn offered(&self) -> &Processor {
        &self.offered
    }

    /// Whether the vCPUs' TSC can run at another rate than the host's.
    pub(super) fn tsc_scales(&self) -> bool {
        clock::scales(self.kvm.fd())
    }

    /// Gives the vCPUs of an arriving guest, which has not run here, the processor that it saw before.
    ///
    /// # Errors
    /// KVM refuses it; the guest must not run here.
    pub(super) fn adopt(&mut self, processor: Processor) -> Result<()> {
        if processor == self.processor {
            return Ok(());
        }
        let too_many = || Error::Device { what: "the source's CPUID has more leaves than KVM takes".into() };
        let cpuid = processor.cpuid().ok_or_else(too_many)?;
        for vcpu in &self.vcpus {
            let vcpu = vcpu.vcpu();
            vcpu.set_cpuid(&cpuid::with_apic_id(&cpuid, vcpu.index()))?;
            clock::set_rate(self.kvm.fd(), vcpu.fd(), processor.tsc_khz).map_err(Error::device)?;
        }
        self.processor = processor;
        Ok(())
    }
}

/// New vCPUs, the processor that the host offers, and the one that was set.
struct Made {
    vcpus: Vec<Vcpu>,
    offered: Processor,
    processor: Processor,
}

fn make_vcpus(kvm: &KvmVm, config: &Config) -> Result<Made> {
    let choice = Choice::new(&config.cpu).map_err(|what| Error::Flag { flag: "--cpu", what })?;
    let offer = Offer::read(kvm.kvm())?;
    let host = cpuid::show(&offer, &Choice::host(), config.cpus)?;
    let shown = cpuid::show(&offer, &choice, config.cpus)?;
    let make = |index| {
        let vcpu = kvm.create_vcpu(index)?;
        vcpu.set_cpuid(&cpuid::with_apic_id(&host, index))?;
        machine_check::set_up(kvm.kvm(), vcpu.fd())?;
        vcpu.set_firmware_msrs()?;
        Ok(vcpu)
    };
    let vcpus = (0..config.cpus).map(make).collect::<Result<Vec<_>>>()?;
    let read = || Processor::read(kvm.kvm(), vcpus[0].fd()).map_err(Error::device);
    let offered = read()?;
    for vcpu in &vcpus {
        vcpu.set_cpuid(&cpuid::with_apic_id(&shown, vcpu.index()))?;
        vcpu.clear_hidden_msrs(&shown);
    }
    let processor = read()?;
    Ok(Made { vcpus, offered, processor })
}

fn spawn(vcpu: Vcpu, buses: Arc<Buses>, events: Arc<GuestEvents>) -> Result<VcpuThread> {
    let index = vcpu.index();
    let halt = events.halt().clone();
    VcpuThread::spawn(vcpu, buses, halt, move |event| {
        events.report(match event {
            // A real machine resets when its CPU shuts down.
            VcpuEvent::TripleFault => GuestEvent::Reset,
            VcpuEvent::Failed(why) => GuestEvent::Failed(format!("vCPU {index}: {why}")),
        });
    })
}
