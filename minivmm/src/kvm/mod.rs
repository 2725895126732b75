//! KVM: all ioctls of the crate on it. Opens it and checks the host's capabilities.

pub mod cpuid;
pub mod dirty;
pub mod exits;
pub mod faults;
pub mod machine_check;
pub mod populate;
pub mod power_on;
pub mod state;
pub mod thread;
pub mod throttle;
pub mod vcpu;
pub mod vm;

use std::io::ErrorKind;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};

use crate::error::{Error, Result};
use crate::passed;

/// API version, which has not changed since Linux 2.6.22 (Documentation/virt/kvm/api.rst, section 4.1).
const API_VERSION: i32 = 12;

/// Opens `/dev/kvm` and checks the capabilities that every machine needs.
///
/// # Errors
/// [`Error::OpenKvm`] with what to do, [`Error::MissingCapability`].
pub fn open() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(|errno| {
        let source: std::io::Error = errno.into();
        let remedy = match source.kind() {
            ErrorKind::NotFound => "switch on virtualization in the firmware and load the module kvm_intel or kvm_amd",
            ErrorKind::PermissionDenied => "join the group that owns it, usually `kvm`, or run as root",
            _ => "see the host's kernel log",
        };
        Error::OpenKvm { remedy, source }
    })?;
    check(kvm)
}

/// Takes a passed `/dev/kvm`.
///
/// # Errors
/// [`Error::Flag`] if the descriptor is not `/dev/kvm`, [`Error::MissingCapability`].
pub fn passed(path: &Path) -> Result<Kvm> {
    let refused = |what| Error::Flag { flag: "--kvm", what: format!("{}: {what}; pass /dev/kvm", path.display()) };
    let descriptor = passed::descriptor(passed::reference(path).unwrap_or_default());
    let descriptor = descriptor.map_err(|error| refused(error.to_string()))?;
    // SAFETY: the descriptor is open, and handed over.
    let kvm = unsafe { Kvm::from_raw_fd(descriptor.into_raw_fd()) };
    if kvm.get_api_version() < 0 {
        return Err(refused("it is something else".into()));
    }
    check(kvm)
}

fn check(kvm: Kvm) -> Result<Kvm> {
    if kvm.get_api_version() != API_VERSION {
        return Err(Error::MissingCapability { capability: "KVM_API_VERSION 12", since: "2.6.22" });
    }
    for (cap, capability, since) in NEEDED {
        if !kvm.check_extension(cap) {
            return Err(Error::MissingCapability { capability, since });
        }
    }
    Ok(kvm)
}

const NEEDED: [(Cap, &str, &str); 13] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP", "2.6.20"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "2.6.25"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR", "2.6.25"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR", "2.6.32"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "2.6.26"),
    (Cap::MpState, "KVM_CAP_MP_STATE", "2.6.26"),
    (Cap::Pit2, "KVM_CAP_PIT2", "2.6.31"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2", "2.6.32"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD", "2.6.32"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS", "2.6.33"),
    (Cap::Xsave, "KVM_CAP_XSAVE", "2.6.36"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK", "2.6.33"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "4.12"),
];
