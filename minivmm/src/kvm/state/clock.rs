//! Time: sections `kvmclock` and `minivmm/clock`.
//!
//! A guest reads two clocks that must agree: its TSC and the KVM clock. QEMU stops the KVM clock with the guest, but
//! reads the TSC later, so the two come apart and Linux marks its TSC unstable. Here both are read at one instant
//! (KVM_GET_CLOCK gives clock, wall clock and host TSC together), and both go on by the wall-clock time that
//! passed, as Documentation/virt/kvm/devices/vcpu.rst, section 4.1, lays out for KVM_VCPU_TSC_OFFSET.

use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_CLOCK_TSC_STABLE, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET,
    kvm_clock_data, kvm_device_attr,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmstate::VmState;

use super::{StateError, call};

/// Section `kvmclock`, version 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "kvmclock", version = 1)]
#[vmstate(subsection(name = "kvmclock/clock_is_reliable", version = 1, needed = Self::is_reliable))]
pub struct KvmClock {
    /// Guest's KVM clock in ns.
    pub clock: u64,
    /// `clock` came from a stable TSC, rather than from the guest's last reading.
    #[vmstate(subsection = "kvmclock/clock_is_reliable")]
    pub clock_is_reliable: bool,
}

impl KvmClock {
    fn is_reliable(&self) -> bool {
        self.clock_is_reliable
    }
}

/// Section `minivmm/clock`, version 1: the wall clock and the TSCs at the instant of `kvmclock`'s reading.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "minivmm/clock", version = 1)]
pub struct ClockReference {
    /// Host's CLOCK_REALTIME in ns; 0 if the host could not tell it for the same instant.
    pub realtime: u64,
    /// Guest TSC frequency in kHz.
    pub tsc_khz: u32,
    tsc_count: u32,
    /// Each vCPU's TSC at that instant.
    #[vmstate(len = tsc_count, max = 8)]
    pub tsc: Vec<u64>,
}

/// Reads all clocks at one instant.
///
/// # Errors
/// A clock ioctl failed.
pub fn get(vm: &VmFd, vcpus: &[&VcpuFd]) -> Result<(KvmClock, ClockReference), StateError> {
    let data = call("KVM_GET_CLOCK", vm.get_clock())?;
    let clock = KvmClock { clock: data.clock, clock_is_reliable: data.flags & KVM_CLOCK_TSC_STABLE != 0 };
    let mut reference = ClockReference::default();
    if has_instant(&data) {
        reference.realtime = data.realtime;
        reference.tsc_khz = vcpus.first().map_or(Ok(0), |vcpu| call("KVM_GET_TSC_KHZ", vcpu.get_tsc_khz()))?;
        reference.tsc = vcpus
            .iter()
            .map(|vcpu| Ok(data.host_tsc.wrapping_add(get_tsc_offset(vcpu)?)))
            .collect::<Result<_, StateError>>()?;
        reference.tsc_count = reference.tsc.len() as u32;
    }
    Ok((clock, reference))
}

/// Sets all clocks: to now by the wall clock, if the source gave its instant; else to the values read. `tsc` are the
/// values of section `cpu`, for a stream without a reference.
///
/// # Errors
/// A clock ioctl failed.
pub fn set(
    vm: &VmFd,
    vcpus: &[&VcpuFd],
    clock: &KvmClock,
    reference: &ClockReference,
    tsc: &[u64],
) -> Result<(), StateError> {
    let same_rate = match vcpus.first() {
        Some(vcpu) => call("KVM_GET_TSC_KHZ", vcpu.get_tsc_khz())? == reference.tsc_khz,
        None => false,
    };
    let by_wall_clock = reference.realtime != 0 && same_rate && reference.tsc.len() == vcpus.len();
    let mut data = kvm_clock_data { clock: clock.clock, ..Default::default() };
    if by_wall_clock {
        data.flags = KVM_CLOCK_REALTIME;
        data.realtime = reference.realtime;
    }
    call("KVM_SET_CLOCK", vm.set_clock(&data))?;
    let tsc = if by_wall_clock { reference.tsc.as_slice() } else { tsc };
    // A host tells its TSC only once KVM_SET_CLOCK has made it look whether its own clock runs by it.
    let now = call("KVM_GET_CLOCK", vm.get_clock())?;
    let passed_ns = u128::from(now.clock.saturating_sub(clock.clock));
    let passed_ticks = (passed_ns * u128::from(reference.tsc_khz) / 1_000_000) as u64;
    for (vcpu, &tsc) in vcpus.iter().zip(tsc) {
        let tsc = tsc.wrapping_add(passed_ticks);
        if has_instant(&now) {
            set_tsc_offset(vcpu, tsc.wrapping_sub(now.host_tsc))?;
        } else {
            super::msr::write(vcpu, &[(super::msr::index::TSC, tsc)])?;
        }
    }
    Ok(())
}

/// Clock, wall clock and host TSC were read at one instant (Linux 5.16 and a stable TSC).
fn has_instant(data: &kvm_clock_data) -> bool {
    let wanted = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    data.flags & wanted == wanted
}

/// kvm-ioctls has these for other devices, but not for x86 vCPUs. The macro makes public functions without documentation.
mod request {
    #![allow(missing_docs, unreachable_pub)]

    use kvm_bindings::{KVMIO, kvm_device_attr};
    use vmm_sys_util::ioctl_iow_nr;

    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
}

fn get_tsc_offset(vcpu: &VcpuFd) -> Result<u64, StateError> {
    let mut offset = 0_u64;
    let attribute = tsc_offset_attribute(&raw mut offset as u64);
    // SAFETY: the attribute's address is of a live u64, which is what KVM_VCPU_TSC_OFFSET writes.
    match unsafe { ioctl_with_ref(vcpu, request::KVM_GET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(offset),
        _ => Err(StateError::Ioctl { call: "KVM_GET_DEVICE_ATTR", source: kvm_ioctls::Error::last() }),
    }
}

fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), StateError> {
    let attribute = tsc_offset_attribute(&raw const offset as u64);
    // SAFETY: the attribute's address is of a live u64, which is what KVM_VCPU_TSC_OFFSET reads.
    match unsafe { ioctl_with_ref(vcpu, request::KVM_SET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(()),
        _ => Err(StateError::Ioctl { call: "KVM_SET_DEVICE_ATTR", source: kvm_ioctls::Error::last() }),
    }
}

fn tsc_offset_attribute(addr: u64) -> kvm_device_attr {
    kvm_device_attr { flags: 0, group: KVM_VCPU_TSC_CTRL, attr: KVM_VCPU_TSC_OFFSET.into(), addr }
}
