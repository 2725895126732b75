//! What this machine can run.

use std::fs::{self, OpenOptions};

/// Checks that `/dev/kvm` opens.
///
/// # Errors
/// The reason why not, and the command that mends it.
pub fn has_kvm() -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err("/dev/kvm: permission denied (`sudo usermod -aG kvm $USER`, then log in again)".into())
        }
        Err(error) => Err(format!("/dev/kvm: {error}")),
    }
}

/// Checks that `/dev/kvm` runs an unmodified Linux. That `/dev/kvm` opens is not enough: some KVMs emulate in software
/// and implement few instructions. The test is whether the CPU has hardware virtualization.
///
/// # Errors
/// The reason why not.
pub fn runs_linux() -> Result<(), String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").map_err(|error| format!("/proc/cpuinfo: {error}"))?;
    if !cpu.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm")) {
        return Err("this CPU has no hardware virtualization (neither vmx nor svm)".into());
    }
    has_kvm()
}
