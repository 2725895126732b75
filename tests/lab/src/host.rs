//! What this machine can run.

use std::fs::{self, OpenOptions};

/// Whether `/dev/kvm` opens.
///
/// # Errors
/// Why not, and what would mend it.
pub fn has_kvm() -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err("/dev/kvm: permission denied (`sudo usermod -aG kvm $USER`, then log in again)".into())
        }
        Err(error) => Err(format!("/dev/kvm: {error}")),
    }
}

/// Whether `/dev/kvm` runs an unmodified Linux. One that opens does not tell: there are KVMs that emulate in software
/// and know few instructions. The CPU's own virtualization tells.
///
/// # Errors
/// Why not.
pub fn runs_linux() -> Result<(), String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").map_err(|error| format!("/proc/cpuinfo: {error}"))?;
    if !cpu.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm")) {
        return Err("this CPU has no hardware virtualization (neither vmx nor svm)".into());
    }
    has_kvm()
}
