//! State of vCPUs and interrupt chips in KVM, as sections with QEMU's field layout.
//!
//! Each struct here is a section of QEMU's `microvm` (names, versions and fields as its streams describe themselves), with a
//! `get` that reads from KVM and a `set` that writes to KVM. State for which QEMU's sections have no room is in sections of
//! minivmm's own ([`VcpuExtra`], [`ClockReference`]), so nothing of a vCPU is lost.
//!
//! [`vcpu`] documents the order of the KVM calls.

pub mod apic;
pub mod clock;
pub mod cpu;
mod cpu_kvm;
mod cpu_needed;
mod cpu_xsave;
pub mod elapsed;
pub mod extra;
pub mod ioapic;
pub mod machine;
pub mod msr;
mod nested;
mod pair;
pub mod pic;
pub mod pit;
pub mod processor;
mod pvclock;
pub mod registers;
mod shown;
mod tsc;
pub mod vcpu;

pub use apic::Apic;
pub use clock::{ClockReference, KvmClock, PreflightTimes};
pub use cpu::{Cpu, CpuCommon};
pub use elapsed::Elapsed;
pub use extra::VcpuExtra;
pub use ioapic::IoApic;
pub use machine::HypervisorState;
pub use pic::Pic;
pub use pit::Pit;
pub use processor::Processor;
pub use vcpu::VcpuState;

/// Why state could not be read from KVM or written to it.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// An ioctl failed.
    #[error("{call} failed: {source}; the host kernel may be older than the one the state came from")]
    Ioctl {
        /// The ioctl's name.
        call: &'static str,
        /// The kernel's error.
        source: kvm_ioctls::Error,
    },
    /// The destination's KVM refuses a model-specific register.
    #[error("this host's KVM refuses MSR {index:#x} = {value:#x}; migrate to a host with the same CPU features")]
    Msr {
        /// Register number.
        index: u32,
        /// The value that was refused.
        value: u64,
    },
    /// The guest runs nested guests, or was about to.
    #[error(
        "nested virtualization is not migrated, and the stream has {what} of vCPU {index}; end the guest's own guests and \
         start it on a CPU without VMX and SVM"
    )]
    Nested {
        /// Index of the vCPU.
        index: usize,
        /// State of nested virtualization that was found.
        what: String,
    },
    /// The TSC cannot run at the guest's rate.
    #[error(
        "the guest's TSC runs at {guest_khz} kHz, this host's at {host_khz} kHz, and its KVM cannot scale it; migrate to a \
         host with the same TSC rate, or with TSC scaling"
    )]
    TscRate {
        /// TSC rate of the guest.
        guest_khz: u32,
        /// TSC rate of this host.
        host_khz: u32,
    },
    /// The guest uses registers that the vCPU here does not have.
    #[error("the guest has used {what}, which its processor here lacks; start it with a -cpu that both hosts have")]
    Lacks {
        /// Registers that the guest has used.
        what: &'static str,
    },
    /// The XSAVE area does not fit the format.
    #[error("the vCPU's XSAVE area has {bytes} bytes, {limit} are supported; start the guest without AMX")]
    XsaveSize {
        /// Bytes that KVM needs.
        bytes: usize,
        /// Most bytes that the format supports.
        limit: usize,
    },
}

/// Adds the ioctl's name to the error.
fn call<T>(call: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, StateError> {
    result.map_err(|source| StateError::Ioctl { call, source })
}
