//! Section `minivmm/vcpu`: state of a vCPU for which QEMU's sections have no room.

use std::collections::BTreeMap;

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_VCPUEVENT_VALID_SMM, kvm_vcpu_events,
};
use vmstate::VmState;

use super::cpu::Cpu;
use super::cpu_xsave::XSAVE_REST;
use super::msr::index;
use super::nested;

/// One model-specific register.
#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "minivmm/vcpu/msr", version = 1)]
pub struct Msr {
    /// Register number.
    pub index: u32,
    /// Value.
    pub value: u64,
}

/// Events of KVM_GET_VCPU_EVENTS that section `cpu` lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "minivmm/vcpu/events", version = 1)]
pub struct Events {
    /// Whether the exception is pending, rather than being delivered.
    pub exception_pending: u8,
    /// Error code of the exception.
    pub error_code: u32,
    /// Whether the exception has a payload (CR2 or DR6).
    pub has_payload: u8,
    /// The payload.
    pub payload: u64,
    /// Interrupt shadow (STI, MOV SS).
    pub shadow: u8,
    /// Whether the vCPU is in system-management mode.
    pub smm: u8,
    /// An SMI waits.
    pub smi_pending: u8,
    /// Whether SMM was entered inside an NMI.
    pub smm_inside_nmi: u8,
    /// An INIT waits for the end of SMM.
    pub latched_init: u8,
}

/// Section `minivmm/vcpu`, version 1; one instance per vCPU.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "minivmm/vcpu", version = 1)]
pub struct VcpuExtra {
    /// Pending events.
    pub events: Events,
    /// Current count of the LAPIC timer, from which KVM_SET_LAPIC continues.
    pub apic_current_count: u32,
    xsave_len: u32,
    /// XSAVE area after the AVX state, without trailing zeros.
    #[vmstate(buffer, len = xsave_len, max = XSAVE_REST)]
    pub xsave_rest: Vec<u8>,
    msr_count: u32,
    /// Registers of KVM_GET_MSR_INDEX_LIST that section `cpu` lacks.
    #[vmstate(len = msr_count, max = 512)]
    pub msrs: Vec<Msr>,
}

impl VcpuExtra {
    /// Selects the registers of `all` that neither section `cpu` nor other calls carry, and that the guest can have.
    pub(super) fn msr_indices(all: &[u32]) -> Vec<u32> {
        let elsewhere = [
            index::EFER,
            index::FS_BASE,
            index::GS_BASE,
            index::KVM_WALL_CLOCK_OLD,
            index::KVM_SYSTEM_TIME_OLD,
            index::KVM_ASYNC_PF_ACK,
        ];
        let cpu = Cpu::msr_indices();
        let left_out = |index: &u32| cpu.contains(index) || elsewhere.contains(index) || nested::describes_vmx(*index);
        all.iter().copied().filter(|index| !left_out(index)).collect()
    }

    pub(super) fn take_msrs(&mut self, values: BTreeMap<u32, u64>) {
        self.msrs = values.into_iter().map(|(index, value)| Msr { index, value }).collect();
        self.msr_count = self.msrs.len() as u32;
    }

    pub(super) fn take_xsave_rest(&mut self, mut rest: Vec<u8>) {
        let used = rest.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        rest.truncate(used);
        self.xsave_len = used as u32;
        self.xsave_rest = rest;
    }

    pub(super) fn take_events(&mut self, events: &kvm_vcpu_events) {
        self.events = Events {
            exception_pending: events.exception.pending,
            error_code: events.exception.error_code,
            has_payload: events.exception_has_payload,
            payload: events.exception_payload,
            shadow: events.interrupt.shadow,
            smm: events.smi.smm,
            smi_pending: events.smi.pending,
            smm_inside_nmi: events.smi.smm_inside_nmi,
            latched_init: events.smi.latched_init,
        };
    }

    /// Completes the events of section `cpu`. `host_flags` are those of this host's KVM_GET_VCPU_EVENTS: only events that it
    /// reports may be set.
    pub(super) fn complete_events(&self, events: &mut kvm_vcpu_events, host_flags: u32) {
        let ours = &self.events;
        events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING
            | KVM_VCPUEVENT_VALID_SIPI_VECTOR
            | host_flags & (KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM | KVM_VCPUEVENT_VALID_PAYLOAD);
        if ours.exception_pending != 0 && host_flags & KVM_VCPUEVENT_VALID_PAYLOAD != 0 {
            events.exception.injected = 0;
            events.exception.pending = 1;
        }
        events.exception.error_code = ours.error_code;
        events.exception_has_payload = ours.has_payload;
        events.exception_payload = ours.payload;
        events.interrupt.shadow = ours.shadow;
        events.smi.smm = ours.smm;
        events.smi.pending = ours.smi_pending;
        events.smi.smm_inside_nmi = ours.smm_inside_nmi;
        events.smi.latched_init = ours.latched_init;
    }
}
