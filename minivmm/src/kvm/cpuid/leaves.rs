//! A list of CPUID leaves that is looked up and changed by leaf and register.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::cpu::Register;

/// Leaves in the order of their numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Leaves(Vec<kvm_cpuid_entry2>);

impl Leaves {
    /// Takes the leaves that KVM lists.
    pub(super) fn new(cpuid: &CpuId) -> Self {
        Self(cpuid.as_slice().to_vec())
    }

    /// Converts to KVM's list; `None` if there are more leaves than KVM accepts.
    pub(super) fn into_cpuid(mut self) -> Option<CpuId> {
        self.0.sort_by_key(|leaf| (leaf.function, leaf.index));
        CpuId::from_entries(&self.0).ok()
    }

    /// Returns a register; 0 if the leaf does not exist, as CPUID answers.
    pub(super) fn register(&self, function: u32, index: u32, register: Register) -> u32 {
        let leaf = self.0.iter().find(|leaf| (leaf.function, leaf.index) == (function, index));
        leaf.map_or(0, |leaf| match register {
            Register::Eax => leaf.eax,
            Register::Ebx => leaf.ebx,
            Register::Ecx => leaf.ecx,
            Register::Edx => leaf.edx,
        })
    }

    /// Returns a register to change; adds the leaf if it does not exist.
    pub(super) fn register_mut(&mut self, function: u32, index: u32, register: Register) -> &mut u32 {
        let at = self.0.iter().position(|leaf| (leaf.function, leaf.index) == (function, index));
        let at = at.unwrap_or_else(|| {
            let flags = if has_subleaves(function) { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            self.0.push(kvm_cpuid_entry2 { function, index, flags, ..Default::default() });
            self.0.len() - 1
        });
        let leaf = &mut self.0[at];
        match register {
            Register::Eax => &mut leaf.eax,
            Register::Ebx => &mut leaf.ebx,
            Register::Ecx => &mut leaf.ecx,
            Register::Edx => &mut leaf.edx,
        }
    }

    /// Sets or clears a bit.
    pub(super) fn switch(&mut self, (function, index, register): (u32, u32, Register), bit: u32, on: bool) {
        let register = self.register_mut(function, index, register);
        *register = *register & !(1 << bit) | u32::from(on) << bit;
    }

    /// Sets all registers of a leaf: EAX, EBX, ECX, EDX.
    pub(super) fn set(&mut self, function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        *self.register_mut(function, index, Register::Eax) = eax;
        *self.register_mut(function, index, Register::Ebx) = ebx;
        *self.register_mut(function, index, Register::Ecx) = ecx;
        *self.register_mut(function, index, Register::Edx) = edx;
    }

    /// Returns all registers of a leaf; zeros if it does not exist.
    pub(super) fn get(&self, function: u32, index: u32) -> [u32; 4] {
        use Register::{Eax, Ebx, Ecx, Edx};
        [Eax, Ebx, Ecx, Edx].map(|register| self.register(function, index, register))
    }

    /// Removes the leaves for which `keep` returns false.
    pub(super) fn retain(&mut self, keep: impl Fn(u32, u32) -> bool) {
        self.0.retain(|leaf| keep(leaf.function, leaf.index));
    }

    /// Returns leaf and sub-leaf numbers.
    pub(super) fn numbers(&self) -> Vec<(u32, u32)> {
        self.0.iter().map(|leaf| (leaf.function, leaf.index)).collect()
    }
}

/// Whether the leaf depends on ECX (Intel SDM volume 2 and AMD APM volume 3, CPUID).
fn has_subleaves(function: u32) -> bool {
    matches!(function, 0x4 | 0x7 | 0xb | 0xd | 0x8000_001d)
}
