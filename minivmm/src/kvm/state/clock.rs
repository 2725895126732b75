//! The clocks: sections `kvmclock` and `minivmm/clock`.
//!
//! A guest reads two clocks that must agree: its TSC and the KVM clock. QEMU reads one after the other, so the two drift apart
//! in a migration and Linux marks its TSC unstable; for such a source the matching pair is taken from the guest's own memory
//! (`pvclock`). Here both are read and written as a pair, and both advance by the time that passed ([`elapsed`]), as
//! Documentation/virt/kvm/devices/vcpu.rst, section 4.1, describes for KVM_VCPU_TSC_OFFSET.

use kvm_bindings::KVM_CLOCK_TSC_STABLE;
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use nix::time::{ClockId, clock_gettime};
use vmstate::VmState;

use super::elapsed::{self, Elapsed, Readings};
use super::pair::{self, Clocks, Moment};
use super::tsc::KvmClocks;
use super::{StateError, call};

/// Largest difference of TSC rates that count as equal (`tsc_tolerance_ppm`, arch/x86/kvm/x86.c).
const TOLERANCE_PPM: u64 = 250;
/// Largest error of a TSC reading that is sent.
const MOST_DOUBT_NS: u64 = 50_000;

/// Section `kvmclock`, version 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "kvmclock", version = 1)]
#[vmstate(subsection(name = "kvmclock/clock_is_reliable", version = 1, needed = Self::is_reliable))]
pub struct KvmClock {
    /// Guest's KVM clock in ns.
    pub clock: u64,
    /// Whether `clock` came from a stable TSC, rather than from the guest's last reading.
    #[vmstate(subsection = "kvmclock/clock_is_reliable")]
    pub clock_is_reliable: bool,
}

impl KvmClock {
    fn is_reliable(&self) -> bool {
        self.clock_is_reliable
    }
}

/// Section `minivmm/clock`, version 2: the host's clocks and the TSCs at the instant of `kvmclock`'s reading.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "minivmm/clock", version = 2, minimum_version = 1)]
pub struct ClockReference {
    /// CLOCK_REALTIME of the host in ns; before version 2, 0 if the host could not read it at the same instant.
    pub realtime: u64,
    /// Guest TSC frequency in kHz.
    pub tsc_khz: u32,
    tsc_count: u32,
    /// TSC of each vCPU at that instant; empty if the host could not read it.
    #[vmstate(len = tsc_count, max = 8)]
    pub tsc: Vec<u64>,
    /// CLOCK_MONOTONIC of the host in ns, read right after.
    #[vmstate(since = 2)]
    pub monotonic: u64,
}

impl ClockReference {
    /// Adds each vCPU's TSC at the clock's instant, and the TSC's rate, if the source sent none.
    pub(super) fn complete(&mut self, tsc: Vec<u64>, khz: u32) {
        (self.tsc_count, self.tsc) = (tsc.len() as u32, tsc);
        if self.tsc_khz == 0 {
            self.tsc_khz = khz;
        }
    }
}

/// Times at which both sides were at the same point of the stream, `minivmm/preflight`, in ns of each host's CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreflightTimes {
    /// Time at which the source sent the section.
    pub source: u64,
    /// Time at which this host read the section.
    pub here: u64,
}

/// Reads all clocks at one instant.
///
/// # Errors
/// A clock ioctl failed.
pub fn get(vm: &VmFd, vcpus: &[&VcpuFd]) -> Result<(KvmClock, ClockReference), StateError> {
    let clocks = KvmClocks { vm, vcpus };
    let Some(first) = vcpus.first() else { return Ok(Default::default()) };
    let tsc_khz = call("KVM_GET_TSC_KHZ", first.get_tsc_khz())?;
    let pair = pair::read(&clocks, 0, tsc_khz)?;
    // The guest's own page is more exact at the destination.
    let known = pair.doubt_ns <= MOST_DOUBT_NS;
    let tsc = if known { pair::read_others(&clocks, vcpus.len(), tsc_khz, &pair)? } else { Vec::new() };
    let since_ns = clocks.clock()?.clock.saturating_sub(pair.ns);
    let monotonic = read(ClockId::CLOCK_MONOTONIC).saturating_sub(since_ns);
    let realtime = if pair::has_instant(&pair.data) && pair.doubt_ns == 0 {
        pair.data.realtime
    } else {
        read(ClockId::CLOCK_REALTIME).saturating_sub(since_ns)
    };
    let clock = KvmClock { clock: pair.ns, clock_is_reliable: pair.data.flags & KVM_CLOCK_TSC_STABLE != 0 };
    let reference = ClockReference { realtime, tsc_khz, tsc_count: tsc.len() as u32, tsc, monotonic };
    Ok((clock, reference))
}

/// Sets all clocks to the present: advances them by the time that both sides measured since `preflight`; leaves them
/// at the read values if a side did not measure. `tsc` are the values of section `cpu`, for a reference without any. Returns by
/// how much the clocks advanced.
///
/// # Errors
/// A clock ioctl failed.
pub fn set(
    vm: &VmFd,
    vcpus: &[&VcpuFd],
    clock: &KvmClock,
    reference: &ClockReference,
    preflight: Option<PreflightTimes>,
    tsc: &[u64],
) -> Result<Elapsed, StateError> {
    let tsc = if reference.tsc.len() == vcpus.len() { reference.tsc.as_slice() } else { tsc };
    let tsc = &tsc[..tsc.len().min(vcpus.len())];
    let elapsed = match preflight {
        Some(preflight) if reference.monotonic != 0 => elapsed::since_pause(&Readings {
            source_preflight: preflight.source,
            source_paused: reference.monotonic,
            source_wall: reference.realtime,
            destination_preflight: preflight.here,
            destination_now: read(ClockId::CLOCK_MONOTONIC),
            destination_wall: read(ClockId::CLOCK_REALTIME),
        }),
        _ => Elapsed::default(),
    };
    let here_khz = vcpus.first().map_or(Ok(0), |vcpu| call("KVM_GET_TSC_KHZ", vcpu.get_tsc_khz()))?;
    let khz = if reference.tsc_khz == 0 { here_khz } else { reference.tsc_khz };
    pair::write(&KvmClocks { vm, vcpus }, &Moment { ns: clock.clock, tsc, khz }, elapsed.ns)?;
    Ok(elapsed)
}

/// Whether the guest cannot distinguish the two rates.
pub fn same_rate(one_khz: u32, other_khz: u32) -> bool {
    u64::from(one_khz.abs_diff(other_khz)) * 1_000_000 <= u64::from(one_khz) * TOLERANCE_PPM
}

/// Whether this host's KVM can scale a guest's TSC to another rate than the host's. Without that KVM also accepts a higher rate
/// (`set_tsc_khz`, arch/x86/kvm/x86.c), but then the TSC does not advance between exits.
pub fn scales(vm: &VmFd) -> bool {
    vm.check_extension(Cap::TscControl)
}

/// Sets the TSC rate of a vCPU of `vm` to `guest_khz`, with KVM's scaling if the rates differ. 0 means that the source did not
/// send a rate.
///
/// # Errors
/// [`StateError::TscRate`], KVM_GET_TSC_KHZ failed.
pub fn set_rate(vm: &VmFd, vcpu: &VcpuFd, guest_khz: u32) -> Result<(), StateError> {
    let host_khz = call("KVM_GET_TSC_KHZ", vcpu.get_tsc_khz())?;
    if guest_khz == 0 || guest_khz == host_khz {
        return Ok(());
    }
    let same = same_rate(guest_khz, host_khz);
    // Within KVM's tolerance nothing is scaled, but the guest's clock uses the guest's rate.
    let set = (same || scales(vm)) && vcpu.set_tsc_khz(guest_khz).is_ok();
    if set || same { Ok(()) } else { Err(StateError::TscRate { guest_khz, host_khz }) }
}

/// Reads a clock of the host in ns.
pub fn read(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}
