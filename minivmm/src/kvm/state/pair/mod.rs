//! A machine's two clocks read and written as a pair.
//!
//! Linux compares how far the KVM clock and the TSC went, and gives up its TSC if that differs by half a millisecond
//! (`clocksource_watchdog`, kernel/time/clocksource.c, of 6.12). KVM tells both at one instant where the host's own clock runs
//! by its TSC (KVM_GET_CLOCK with `KVM_CLOCK_HOST_TSC`) and the guest's TSC is not scaled. Else each is read and written by a
//! call of its own, and this process may lose its CPU in between. So a TSC is read between two readings of the clock, which
//! bound the error, and the tightest of several such readings counts; and what was written is read back, and the clock is set
//! again by the difference. It is not the TSC that is corrected: KVM takes one that is written within a second of the
//! one it expects for an attempt to synchronise vCPUs, and keeps its own (`kvm_synchronize_tsc`, arch/x86/kvm/x86.c).

use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_clock_data};

use super::StateError;

/// Readings from which the tightest is taken.
const TRIES: usize = 8;
/// A reading as tight as this is not tried again: three calls that nothing interrupts.
const TIGHT_NS: u64 = 5_000;
/// A reading that took no longer tells a scaled TSC from the host's with an offset: once a host is up, the two differ by more.
const TELLS_NS: u64 = 1_000_000;
/// Times that the clock is moved after the TSC.
const CORRECTIONS: usize = 8;
/// Clocks that are nearer need no correction: a twenty-fifth of what Linux takes for a fault.
const NEAR_NS: u128 = 20_000;
/// Clocks that are further apart were not parted by a delay: this KVM does not set a TSC.
const FAR_NS: u128 = 1_000_000_000;
/// TSCs of vCPUs that differ by less than this and the error of their readings are one TSC.
const SAME_NS: u64 = 1_000;

/// The calls that read and write clocks, so that a test can stand between them.
pub(super) trait Clocks {
    /// KVM_GET_CLOCK.
    fn clock(&self) -> Result<kvm_clock_data, StateError>;
    /// KVM_SET_CLOCK, without more than the clock.
    fn set_clock(&self, ns: u64) -> Result<(), StateError>;
    /// A vCPU's TSC.
    fn tsc(&self, vcpu: usize) -> Result<u64, StateError>;
    /// Writes a vCPU's TSC, which becomes that of the vCPU written before if KVM takes the two for one.
    fn set_tsc(&self, vcpu: usize, tsc: u64) -> Result<(), StateError>;
    /// What KVM adds to the host's TSC, scaled if it is; `None` before Linux 5.16.
    fn tsc_offset(&self, vcpu: usize) -> Option<u64>;
    /// Writes it.
    fn set_tsc_offset(&self, vcpu: usize, offset: u64) -> Result<(), StateError>;
}

/// A vCPU's TSC and the KVM clock, at one instant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    /// KVM clock in ns.
    pub(super) ns: u64,
    /// The TSC.
    pub(super) tsc: u64,
    /// The two may be this far apart, in ns; 0 if they were read at once.
    pub(super) doubt_ns: u64,
    /// The clock's reading that went before.
    pub(super) data: kvm_clock_data,
}

/// What the clocks showed at one instant.
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
    /// Ticks of the TSC since, when the clock shows `ns`.
    fn ticks_until(&self, ns: u64) -> u64 {
        ticks(ns.wrapping_sub(self.ns).cast_signed().into(), self.khz)
    }

    /// By how much the clock went further than the first vCPU's TSC since, in ns.
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
    let tells = has_instant(&data) && between_ns <= TELLS_NS;
    if let Some(offset) = clocks.tsc_offset(vcpu).filter(|_| tells) {
        let at_instant = data.host_tsc.wrapping_add(offset);
        // A scaled TSC is not the host's with an offset, and does not fit in between.
        if tsc.wrapping_sub(at_instant) <= ticks(i128::from(between_ns.saturating_add(SAME_NS)), khz) {
            return Ok(Pair { ns: data.clock, tsc: at_instant, doubt_ns: 0, data });
        }
    }
    let doubt_ns = between_ns / 2;
    Ok(Pair { ns: data.clock.saturating_add(doubt_ns), tsc, doubt_ns, data })
}

/// Each vCPU's TSC at the instant of `first`, the first one's pair.
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

/// Lets both clocks go on from what they have shown `then`, by `elapsed_ns` and the time that this takes.
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

/// Ticks in `ns` of a TSC that runs at `khz`, as a TSC counts them.
fn ticks(ns: i128, khz: u32) -> u64 {
    (ns * i128::from(khz)).div_euclid(1_000_000) as u64
}

/// Clock, wall clock and host TSC were read at one instant (Linux 5.16 and a stable TSC).
pub(super) fn has_instant(data: &kvm_clock_data) -> bool {
    let wanted = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    data.flags & wanted == wanted
}

#[cfg(test)]
mod tests;
