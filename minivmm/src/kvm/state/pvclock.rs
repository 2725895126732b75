//! Page in which KVM gives a guest its clock (`struct pvclock_vcpu_time_info`, Documentation/virt/kvm/x86/msr.rst,
//! MSR_KVM_SYSTEM_TIME_NEW): a time and the TSC at this time.
//!
//! The page is in guest memory, so it may contain anything: a result that is more than ten seconds away from the source's own
//! reading is ignored.

/// Clock page of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PvClock {
    tsc_timestamp: u64,
    system_time_ns: u64,
    to_system_mul: u32,
    tsc_shift: i8,
}

/// Largest difference to the source's TSC reading for which a page is used.
const NEAR_NS: i128 = 10_000_000_000;
/// Difference up to which TSCs of vCPUs are equal; it is rounding.
const SAME_NS: i128 = 10_000;

impl PvClock {
    /// Length of the page's struct.
    const LEN: usize = 32;

    /// Reads the page at the address in MSR_KVM_SYSTEM_TIME_NEW; `None` if the guest has none, if `read` cannot read it, or if
    /// it does not hold a clock.
    pub(super) fn read(msr: u64, read: &mut impl FnMut(u64, &mut [u8]) -> bool) -> Option<Self> {
        let mut bytes = [0; Self::LEN];
        let enabled = msr & 1 == 1;
        if !enabled || !read(msr & !1, &mut bytes) {
            return None;
        }
        Self::parse(&bytes)
    }

    /// `u32 version; u32 pad; u64 tsc_timestamp; u64 system_time; u32 tsc_to_system_mul; s8 tsc_shift; u8 flags; u8 pad[2]`. KVM makes
    /// the version odd while it writes.
    fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let (version, to_system_mul, tsc_shift) = (word(0), word(24), bytes[28] as i8);
        let clock = Self { tsc_timestamp: long(8), system_time_ns: long(16), to_system_mul, tsc_shift };
        let holds = version != 0 && version.is_multiple_of(2) && to_system_mul != 0 && (-31..=31).contains(&tsc_shift);
        holds.then_some(clock)
    }

    /// Ticks of the TSC in `ns`, rounded down: the inverse of `((ticks << tsc_shift) * mul) >> 32`.
    fn ticks(&self, ns: i128) -> Option<i128> {
        let scaled = ns.checked_mul(1 << 32)?.div_euclid(self.to_system_mul.into());
        match self.tsc_shift {
            shift @ 0.. => Some(scaled >> shift),
            shift => scaled.checked_mul(1 << shift.unsigned_abs()),
        }
    }

    /// TSC at the time `clock_ns`; `None` if it is far from `near`, the source's reading.
    fn tsc_at(&self, clock_ns: u64, near: u64) -> Option<u64> {
        let ticks = self.ticks(i128::from(clock_ns) - i128::from(self.system_time_ns))?;
        let tsc = u64::try_from(i128::from(self.tsc_timestamp).checked_add(ticks)?).ok()?;
        let apart = (i128::from(tsc) - i128::from(near)).abs();
        (apart <= self.ticks(NEAR_NS)?).then_some(tsc)
    }
}

/// TSC of each vCPU at the time `clock_ns`, from its page and the source's reading; `None` if the first vCPU's page has none. A
/// vCPU whose page has none does not use its TSC yet, and gets the first one's.
pub(super) fn tsc_at(clock_ns: u64, vcpus: &[(u64, Option<PvClock>)]) -> Option<Vec<u64>> {
    let tsc_of = |(near, page): &(u64, Option<PvClock>)| page.and_then(|page| page.tsc_at(clock_ns, *near));
    let &(_, page) = vcpus.first()?;
    let (first, same) = (tsc_of(vcpus.first()?)?, page?.ticks(SAME_NS)?);
    let together = |tsc: u64| (i128::from(tsc) - i128::from(first)).abs() <= same;
    Some(vcpus.iter().map(|vcpu| tsc_of(vcpu).filter(|&tsc| !together(tsc)).unwrap_or(first)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The guest's arithmetic (`pvclock_scale_delta`, arch/x86/include/asm/pvclock.h), which Linux does in 96 bits.
    fn guest_reads(page: &PvClock, tsc: u64) -> u64 {
        let delta = u128::from(tsc - page.tsc_timestamp);
        let shifted = if page.tsc_shift < 0 { delta >> -page.tsc_shift } else { delta << page.tsc_shift };
        page.system_time_ns + ((shifted * u128::from(page.to_system_mul)) >> 32) as u64
    }

    /// Pages as KVM makes them for these rates in kHz (`kvm_get_time_scale`, arch/x86/kvm/x86.c): ns = ticks · 10⁶ / kHz.
    fn page(khz: u64) -> PvClock {
        let (mut shift, mut ns_a_tick_scaled) = (0_i8, (1_000_000_u128 << 32) / u128::from(khz));
        while ns_a_tick_scaled >= 1 << 32 {
            ns_a_tick_scaled >>= 1;
            shift += 1;
        }
        while ns_a_tick_scaled < 1 << 31 {
            ns_a_tick_scaled <<= 1;
            shift -= 1;
        }
        let to_system_mul = u32::try_from(ns_a_tick_scaled).unwrap();
        PvClock { tsc_timestamp: 5_000_000_000, system_time_ns: 7_000_000, to_system_mul, tsc_shift: shift }
    }

    fn bytes(page: &PvClock, version: u32) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&version.to_le_bytes());
        bytes[8..16].copy_from_slice(&page.tsc_timestamp.to_le_bytes());
        bytes[16..24].copy_from_slice(&page.system_time_ns.to_le_bytes());
        bytes[24..28].copy_from_slice(&page.to_system_mul.to_le_bytes());
        bytes[28] = page.tsc_shift as u8;
        bytes
    }

    #[test]
    fn the_guest_reads_the_clock_at_the_tsc_that_is_found() {
        for khz in [500_000, 999_999, 1_000_000, 1_000_001, 2_100_000, 3_893_123, 6_000_000] {
            let page = page(khz);
            // A second, an hour, a month after the page was written; the source read its TSC 118 ms earlier.
            for since_ns in [0, 1_000_000_000, 3_600_000_000_000, 2_592_000_000_000_000] {
                let clock = page.system_time_ns + since_ns;
                let exact = page.tsc_timestamp + (u128::from(since_ns) * u128::from(khz) / 1_000_000) as u64;
                let read = exact.saturating_sub(118 * khz);
                let tsc = page.tsc_at(clock, read).unwrap_or_else(|| panic!("{khz} kHz, {since_ns} ns"));
                let seen = guest_reads(&page, tsc);
                assert!(seen.abs_diff(clock) <= 3, "{khz} kHz: {seen} is not {clock}");
                let elsewhere = read + 10_200 * khz;
                assert_eq!(page.tsc_at(clock, elsewhere), None, "{khz} kHz");
            }
            let before = page.tsc_at(page.system_time_ns - 1_000_000, page.tsc_timestamp).unwrap();
            assert!((page.tsc_timestamp - before).abs_diff(khz) <= 4, "{khz}");
        }
    }

    #[test]
    fn vcpus_that_had_one_tsc_have_one_again() {
        let first = page(2_000_000);
        let clock = first.system_time_ns + 50_000_001;
        let tsc = first.tsc_timestamp + 100_000_000;
        // A page that was written later: the same line through other points, with another rounding.
        let later = PvClock {
            tsc_timestamp: first.tsc_timestamp + 30_000_001,
            system_time_ns: guest_reads(&first, first.tsc_timestamp + 30_000_001),
            ..first
        };
        // A page whose guest has advanced its TSC by a millisecond.
        let moved = PvClock { tsc_timestamp: first.tsc_timestamp + 2_000_000, ..first };
        let all =
            tsc_at(clock, &[(tsc, Some(first)), (tsc + 40_000, Some(later)), (tsc, Some(moved)), (0, None)]).unwrap();
        assert!(all[0].abs_diff(tsc) <= 4, "{all:?}");
        assert_eq!(all, [all[0], all[0], all[0] + 2_000_000, all[0]]);
        assert_eq!(tsc_at(clock, &[(tsc, None), (tsc, Some(first))]), None);
        assert_eq!(tsc_at(clock, &[]), None);
    }

    #[test]
    fn a_page_that_is_none_is_not_read() {
        let good = page(2_000_000);
        let mut asked = Vec::new();
        let mut read = |address: u64, into: &mut [u8]| {
            asked.push(address);
            into.copy_from_slice(&bytes(&good, 8));
            true
        };
        assert_eq!(PvClock::read(0x1234_5001, &mut read), Some(good));
        assert_eq!(PvClock::read(0x1234_5000, &mut read), None);
        assert_eq!(asked, [0x1234_5000]);
        assert_eq!(PvClock::read(u64::MAX, &mut |_, _| false), None);
        for version in [0, 7, u32::MAX] {
            assert_eq!(PvClock::parse(&bytes(&good, version)), None, "{version}");
        }
        assert_eq!(PvClock::parse(&bytes(&PvClock { to_system_mul: 0, ..good }, 2)), None);
        for shift in [i8::MIN, -32, 32, i8::MAX] {
            assert_eq!(PvClock::parse(&bytes(&PvClock { tsc_shift: shift, ..good }, 2)), None, "{shift}");
        }
    }

    /// No page makes the arithmetic overflow.
    #[test]
    fn hostile_pages() {
        let extremes = [0, 1, u64::MAX / 2, u64::MAX];
        for to_system_mul in [1, u32::MAX] {
            for tsc_shift in [-31, 0, 31] {
                for tsc_timestamp in extremes {
                    for system_time_ns in extremes {
                        let page = PvClock { tsc_timestamp, system_time_ns, to_system_mul, tsc_shift };
                        for clock in extremes {
                            for near in extremes {
                                let found = tsc_at(clock, &[(near, Some(page)), (0, Some(page))]);
                                assert!(found.is_none_or(|tsc| tsc.len() == 2));
                            }
                        }
                    }
                }
            }
        }
    }
}
