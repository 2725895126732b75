//! Processor that a guest sees: CPUID, MSRs that report features, and the TSC's rate.
//!
//! Read from a vCPU, so it is what this guest sees, wherever the guest began; for a new vCPU it is what this host offers. All
//! vCPUs of a machine show the same, except for their APIC ids.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Kvm, VcpuFd};
use vmstate::VmState;

use super::extra::Msr;
use super::{StateError, call, msr, nested};

/// Most leaves of CPUID (`KVM_MAX_CPUID_ENTRIES`, arch/x86/include/asm/kvm_host.h).
pub const LEAVES_MAX: usize = 256;
/// Most feature MSRs; KVM has about 25, most of them for VMX.
pub const MSRS_MAX: usize = 64;

/// One leaf of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, VmState)]
#[vmstate(name = "minivmm/preflight/leaf", version = 1)]
pub struct Leaf {
    /// EAX of the query.
    pub function: u32,
    /// ECX of the query.
    pub index: u32,
    /// `KVM_CPUID_FLAG_*`.
    pub flags: u32,
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// A processor as its guest sees it.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "minivmm/preflight/processor", version = 1)]
#[vmstate(pre_save = Self::count)]
pub struct Processor {
    leaf_count: u32,
    /// CPUID of the first vCPU.
    #[vmstate(len = leaf_count, max = LEAVES_MAX)]
    pub leaves: Vec<Leaf>,
    msr_count: u32,
    /// MSRs of KVM_GET_MSR_FEATURE_INDEX_LIST, without those that describe VMX.
    #[vmstate(len = msr_count, max = MSRS_MAX)]
    pub msrs: Vec<Msr>,
    /// TSC rate in kHz.
    pub tsc_khz: u32,
}

impl Processor {
    /// Makes a processor with these leaves and MSRs.
    pub fn new(leaves: Vec<Leaf>, msrs: Vec<Msr>, tsc_khz: u32) -> Self {
        Self { leaf_count: leaves.len() as u32, leaves, msr_count: msrs.len() as u32, msrs, tsc_khz }
    }

    /// Reads what the first vCPU, which is paused, shows.
    ///
    /// # Errors
    /// An ioctl failed.
    pub fn read(kvm: &Kvm, first: &VcpuFd) -> Result<Self, StateError> {
        let cpuid = call("KVM_GET_CPUID2", first.get_cpuid2(KVM_MAX_CPUID_ENTRIES))?;
        let leaves = cpuid.as_slice().iter().map(Leaf::from).collect();
        // An older KVM has no such list, and no such MSRs.
        let features = kvm.get_msr_feature_index_list().map(|list| list.as_slice().to_vec()).unwrap_or_default();
        let features: Vec<u32> = features.into_iter().filter(|&index| !nested::describes_vmx(index)).collect();
        let msrs = msr::read(first, &features)?.into_iter().map(|(index, value)| Msr { index, value }).collect();
        Ok(Self::new(leaves, msrs, call("KVM_GET_TSC_KHZ", first.get_tsc_khz())?))
    }

    /// Converts the leaves to KVM's list; `None` if there are more than KVM accepts.
    pub fn cpuid(&self) -> Option<CpuId> {
        let entries: Vec<_> = self.leaves.iter().map(kvm_cpuid_entry2::from).collect();
        CpuId::from_entries(&entries).ok()
    }

    /// Sets the counts, which come before the lists in the stream.
    fn count(&mut self) -> Result<(), std::convert::Infallible> {
        (self.leaf_count, self.msr_count) = (self.leaves.len() as u32, self.msrs.len() as u32);
        Ok(())
    }
}

impl From<&kvm_cpuid_entry2> for Leaf {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        let kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding: _ } = *entry;
        Self { function, index, flags, eax, ebx, ecx, edx }
    }
}

impl From<&Leaf> for kvm_cpuid_entry2 {
    fn from(leaf: &Leaf) -> Self {
        let Leaf { function, index, flags, eax, ebx, ecx, edx } = *leaf;
        Self { function, index, flags, eax, ebx, ecx, edx, padding: [0; 3] }
    }
}
