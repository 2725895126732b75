//! Page faults of a vCPU, from KVM's statistics of the vCPU (api.rst, 4.133).
//!
//! The dirty log write-protects pages, so each page that a vCPU dirties after the page was cleared is a fault of this vCPU.
//! Hosts whose processor logs writes itself (Intel's page-modification logging) have no such faults.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;

/// Numbers of the requests. The macro makes public functions without documentation.
mod request {
    #![allow(missing_docs, unreachable_pub)]
    use kvm_bindings::KVMIO;
    vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
}

/// `struct kvm_stats_header`: flags, size of a name, number of descriptors, offsets of id, descriptors and data.
const HEADER: usize = 24;
/// `struct kvm_stats_desc` without its name; the offset of the value in the data is at 8.
const DESCRIPTOR: usize = 16;
/// Longest description that is read.
const MOST: usize = 1 << 16;

/// Fault statistics of one vCPU.
#[derive(Debug)]
pub struct FaultCounters {
    file: File,
    /// Offsets in `file` of the faults that KVM resolved, and of those among them that only made a page writable again.
    fixed: u64,
    fast: u64,
}

/// Values of the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Faults of any kind, also of a page that the vCPU read first.
    pub fixed: u64,
    /// Faults by a write to a write-protected page. Hosts that emulate page tables count none.
    pub fast: u64,
}

impl Faults {
    /// Faults since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        let Self { fixed, fast } = self;
        Self { fixed: fixed.saturating_sub(earlier.fixed), fast: fast.saturating_sub(earlier.fast) }
    }
}

impl FaultCounters {
    /// Opens the statistics; `None` on a host without them (before Linux 5.19).
    pub fn open(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: the request has no argument, and the descriptor is a vCPU's.
        let descriptor = unsafe { ioctl(vcpu, request::KVM_GET_STATS_FD()) };
        if descriptor < 0 {
            return None;
        }
        // SAFETY: the kernel has just made the descriptor for this call.
        let file = unsafe { File::from_raw_fd(descriptor) };
        let [fixed, fast] = places(&file, ["pf_fixed", "pf_fast"]).ok()??;
        Some(Self { file, fixed, fast })
    }

    /// Reads the current values, also while the vCPU runs.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self) -> io::Result<Faults> {
        let value = |at| {
            let mut bytes = [0; 8];
            self.file.read_exact_at(&mut bytes, at).map(|()| u64::from_ne_bytes(bytes))
        };
        Ok(Faults { fixed: value(self.fixed)?, fast: value(self.fast)? })
    }
}

/// Offsets of the values with these names in `file`; `None` if one is missing.
fn places<const N: usize>(file: &File, names: [&str; N]) -> io::Result<Option<[u64; N]>> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(std::array::from_fn(|index| bytes[at + index]));
    let (size, count) = (DESCRIPTOR + word(&header, 4) as usize, word(&header, 8) as usize);
    if size.saturating_mul(count) > MOST {
        return Ok(None);
    }
    let mut descriptors = vec![0; size * count];
    file.read_exact_at(&mut descriptors, word(&header, 16).into())?;
    let data = u64::from(word(&header, 20));
    let place = |wanted: &str| {
        let found = descriptors.chunks_exact(size).find(|descriptor| {
            descriptor[DESCRIPTOR..].strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
        });
        found.map(|descriptor| data + u64::from(word(descriptor, 8)))
    };
    let mut places = [0; N];
    for (at, name) in places.iter_mut().zip(names) {
        let Some(place) = place(name) else { return Ok(None) };
        *at = place;
    }
    Ok(Some(places))
}
