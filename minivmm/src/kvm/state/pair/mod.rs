//! Reads and writes a machine's two clocks, the KVM clock and the TSC, as a pair.
//!
//! Linux compares how far both clocks advanced, and gives up its TSC if they differ by half a millisecond
//! (`clocksource_watchdog`, kernel/time/clocksource.c, of 6.12). KVM reads both at one instant if the host's own clock uses its
//! TSC (KVM_GET_CLOCK with `KVM_CLOCK_HOST_TSC`) and the guest's TSC is not scaled. Otherwise each is read and written by a
//! call of its own, between which this process may lose its CPU. So a TSC is read between two readings of the clock, which
//! bound the error, and the tightest of several readings is used; and written clocks are read back, and the KVM clock is
//! corrected by the difference. The TSC itself is not corrected: KVM takes a TSC that is written within a second of the
//! expected one for an attempt to synchronise vCPUs, and keeps its own (`kvm_synchronize_tsc`, arch/x86/kvm/x86.c).

use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_clock_data};

use super::StateError;

/// Number of readings, of which the tightest is used.
const TRIES: usize = 8;
/// Error below which no further reading is made: three calls without an interruption.
const TIGHT_NS: u64 = 5_000;
/// Longest reading that can distinguish a scaled TSC from the host's TSC with an offset: once a host is up, the two differ by
/// more.
const PRECISE_NS: u64 = 1_000_000;
/// Most corrections of the clock.
const CORRECTIONS: usize = 8;
/// Difference that needs no correction: a twenty-fifth of what Linux takes for a fault.
const NEAR_NS: u128 = 20_000;
/// Difference that no delay explains: this KVM cannot set a TSC.
const FAR_NS: u128 = 1_000_000_000;
/// Difference, beside the readings' error, up to which TSCs of vCPUs are equal.
const SAME_NS: u64 = 1_000;

/// The calls that read and write clocks, which a test can replace.
pub(super) trait Clocks {
    /// KVM_GET_CLOCK.
    fn clock(&self) -> Result<kvm_clock_data, StateError>;
    /// KVM_SET_CLOCK with the clock only.
    fn set_clock(&self, ns: u64) -> Result<(), StateError>;
    /// Reads a vCPU's TSC.
    fn tsc(&self, vcpu: usize) -> Result<u64, StateError>;
    /// Writes a vCPU's TSC. KVM may replace it by that of the vCPU written before, to synchronise the two.
    fn set_tsc(&self, vcpu: usize, tsc: u64) -> Result<(), StateError>;
    /// Reads the offset that KVM adds to the host's (scaled) TSC; `None` before Linux 5.16.
    fn tsc_offset(&self, vcpu: usize) -> Option<u64>;
    /// Writes the offset.
    fn set_tsc_offset(&self, vcpu: usize, offset: u64) -> Result<(), StateError>;
}

/// TSC of a vCPU and KVM clock at one instant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    /// KVM clock in ns.
    pub(super) ns: u64,
    /// The TSC.
    pub(super) tsc: u64,
    /// Largest difference between the two readings' instants, in ns; 0 if they were read together.
    pub(super) doubt_ns: u64,
    /// The reading of the clock before the TSC.
    pub(super) data: kvm_clock_data,
}

/// Values of all clocks at one instant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment<'a> {
    /// KVM clock in ns.
    pub(super) ns: u64,
    /// Each vCPU's TSC.
    pub(super) tsc: &'a [u64],
    /// Rate of the TSC in kHz.
    pub(super) khz: u32,
}

impl Moment<'_> {
    /// Ticks of the TSC from this moment until the clock shows `ns`.
    fn ticks_until(&self, ns: u64) -> u64 {
        ticks(ns.wrapping_sub(self.ns).cast_signed().into(), self.khz)
    }

    /// How much further the clock advanced since than the first vCPU's TSC, in ns.
    fn clock_ahead(&self, first: u64, now: &Pair) -> i128 {
        let tsc_ticks = i128::from(now.tsc.wrapping_sub(first).cast_signed());
        i128::from(now.ns.wrapping_sub(self.ns).cast_signed()) - tsc_ticks * 1_000_000 / i128::from(self.khz.max(1))
    }
}

/// Reads the pair of one vCPU, whose TSC runs at `khz`.
pub(super) fn read(clocks: &impl Clocks, vcpu: usize, khz: u32) -> Result<Pair, StateError> {
    let mut best = read_once(clocks, vcpu, khz)?;
    for _ in 1..TRIES {
        if best.doubt_ns <= TIGHT_NS {
            break;
        }
        let pair = read_once(clocks, vcpu, khz)?;
        best = if pair.doubt_ns < best.doubt_ns { pair } else { best };
    }
    Ok(best)
}

fn read_once(clocks: &impl Clocks, vcpu: usize, khz: u32) -> Result<Pair, StateError> {
    let data = clocks.clock()?;
    let tsc = clocks.tsc(vcpu)?;
    let between_ns = clocks.clock()?.clock.saturating_sub(data.clock);
    let is_precise = has_instant(&data) && between_ns <= PRECISE_NS;
    if let Some(offset) = clocks.tsc_offset(vcpu).filter(|_| is_precise) {
        let at_instant = data.host_tsc.wrapping_add(offset);
        // A scaled TSC is not the host's TSC with an offset, and lies outside of the readings.
        if tsc.wrapping_sub(at_instant) <= ticks(i128::from(between_ns.saturating_add(SAME_NS)), khz) {
            return Ok(Pair { ns: data.clock, tsc: at_instant, doubt_ns: 0, data });
        }
    }
    let doubt_ns = between_ns / 2;
    Ok(Pair { ns: data.clock.saturating_add(doubt_ns), tsc, doubt_ns, data })
}

/// Reads each vCPU's TSC at the instant of `first`, the first vCPU's pair.
pub(super) fn read_others(clocks: &impl Clocks, vcpus: usize, khz: u32, first: &Pair) -> Result<Vec<u64>, StateError> {
    let at_first = |vcpu: usize| {
        if let (Some(its), Some(firsts)) = (clocks.tsc_offset(vcpu), clocks.tsc_offset(0)) {
            return Ok(first.tsc.wrapping_add(its.wrapping_sub(firsts)));
        }
        let pair = read(clocks, vcpu, khz)?;
        let then = pair.tsc.wrapping_sub(Moment { ns: first.ns, tsc: &[], khz }.ticks_until(pair.ns));
        let apart = then.wrapping_sub(first.tsc).cast_signed().unsigned_abs();
        let doubt_ns = SAME_NS.saturating_add(pair.doubt_ns).saturating_add(first.doubt_ns);
        Ok(if apart <= ticks(doubt_ns.into(), khz) { first.tsc } else { then })
    };
    std::iter::once(Ok(first.tsc)).chain((1..vcpus).map(at_first)).collect()
}

/// Sets both clocks to their values at `then`, advanced by `elapsed_ns` and by the time that this call takes.
pub(super) fn write(clocks: &impl Clocks, then: &Moment<'_>, elapsed_ns: u64) -> Result<(), StateError> {
    clocks.set_clock(then.ns.saturating_add(elapsed_ns))?;
    let Some(&first) = then.tsc.first() else { return Ok(()) };
    let now = read(clocks, 0, then.khz)?;
    if let Some(offset) = clocks.tsc_offset(0) {
        let offset = offset.wrapping_add(then.ticks_until(now.ns)).wrapping_sub(now.tsc);
        for (vcpu, &tsc) in then.tsc.iter().enumerate() {
            clocks.set_tsc_offset(vcpu, offset.wrapping_add(tsc))?;
        }
    } else {
        for (vcpu, &tsc) in then.tsc.iter().enumerate() {
            let ns = clocks.clock()?.clock;
            clocks.set_tsc(vcpu, tsc.wrapping_add(then.ticks_until(ns)))?;
        }
    }
    for _ in 0..CORRECTIONS {
        let now = read(clocks, 0, then.khz)?;
        let ahead = then.clock_ahead(first, &now);
        if then.khz == 0 || !(NEAR_NS..FAR_NS).contains(&ahead.unsigned_abs()) {
            break;
        }
        let corrected = i128::from(clocks.clock()?.clock) - ahead;
        clocks.set_clock(u64::try_from(corrected).unwrap_or(0))?;
    }
    Ok(())
}

/// Ticks in `ns` of a TSC that runs at `khz`, wrapping as a TSC does.
fn ticks(ns: i128, khz: u32) -> u64 {
    (ns * i128::from(khz)).div_euclid(1_000_000) as u64
}

/// Whether clock, wall clock and host TSC were read at one instant (Linux 5.16 and a stable TSC).
pub(super) fn has_instant(data: &kvm_clock_data) -> bool {
    let wanted = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    data.flags & wanted == wanted
}

#[cfg(test)]
mod tests;
