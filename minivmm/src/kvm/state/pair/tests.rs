//! A simulated host whose calls take time, sometimes too much: the guest's clocks before and after stay together.

use std::cell::{Cell, RefCell};

use super::*;

const KHZ: u32 = 2_100_000;
/// Largest difference that passes: far below what Linux notices.
const MOST_SKEW_NS: i128 = 50_000;

/// KVM's clocks as in arch/x86/kvm/x86.c of Linux 6.12. Time passes only in calls.
struct Host {
    /// Time since the host's start.
    now_ns: Cell<u64>,
    /// Number of possible delays so far: one before and one after the effect of each call.
    moments: Cell<usize>,
    delays: RefCell<Box<dyn FnMut(usize) -> u64>>,
    clock_offset: Cell<u64>,
    tsc_offsets: [Cell<u64>; 2],
    /// TSC that was written last, and the time of the write.
    last_write: Cell<Option<(u64, u64)>>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
struct Kind {
    /// Whether the host's clock uses its TSC.
    instant: bool,
    /// Whether KVM has TSC offsets, as Linux 5.16 and newer.
    offsets: bool,
    /// Guest ticks for 100 of the host's.
    scale: u64,
    /// Whether KVM accepts an offset and keeps its own.
    fixed: bool,
}

const MODERN: Kind = Kind { instant: true, offsets: true, scale: 100, fixed: false };
const KINDS: [Kind; 5] = [
    MODERN,
    Kind { instant: false, ..MODERN },
    Kind { instant: false, offsets: false, ..MODERN },
    Kind { scale: 150, ..MODERN },
    Kind { instant: false, scale: 150, ..MODERN },
];

impl Host {
    fn new(kind: Kind, up_ns: u64) -> Self {
        Self {
            now_ns: Cell::new(up_ns),
            moments: Cell::new(0),
            delays: RefCell::new(Box::new(|_| 0)),
            clock_offset: Cell::new(0_u64.wrapping_sub(up_ns - 1000)),
            tsc_offsets: Default::default(),
            last_write: Cell::default(),
            kind,
        }
    }

    fn delayed(self, delay: impl FnMut(usize) -> u64 + 'static) -> Self {
        *self.delays.borrow_mut() = Box::new(delay);
        self
    }

    fn pass(&self) {
        let moment = self.moments.get();
        self.moments.set(moment + 1);
        let delay = self.delays.borrow_mut()(moment);
        self.now_ns.set(self.now_ns.get() + 300 + delay);
    }

    fn call<T>(&self, effect: impl FnOnce() -> T) -> T {
        self.pass();
        let result = effect();
        self.pass();
        result
    }

    /// TSC of the host: the guest's rate, unless scaled.
    fn host_tsc(&self) -> u64 {
        ticks(self.now_ns.get().into(), KHZ) * 100 / self.kind.scale
    }

    fn scaled(&self) -> u64 {
        self.host_tsc() * self.kind.scale / 100
    }

    fn clock_ns(&self) -> u64 {
        self.now_ns.get().wrapping_add(self.clock_offset.get())
    }

    fn guest_tsc(&self, vcpu: usize) -> u64 {
        self.scaled().wrapping_add(self.tsc_offsets[vcpu].get())
    }

    fn read(&self) -> (u64, Vec<u64>) {
        let first = read(self, 0, KHZ).unwrap();
        (first.ns, read_others(self, 2, KHZ, &first).unwrap())
    }
}

impl Clocks for Host {
    fn clock(&self) -> Result<kvm_clock_data, StateError> {
        Ok(self.call(|| {
            let mut data = kvm_clock_data { clock: self.clock_ns(), ..Default::default() };
            if self.kind.instant {
                (data.flags, data.host_tsc) = (KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC, self.host_tsc());
            }
            data
        }))
    }
    fn set_clock(&self, ns: u64) -> Result<(), StateError> {
        self.call(|| self.clock_offset.set(ns.wrapping_sub(self.now_ns.get())));
        Ok(())
    }
    fn tsc(&self, vcpu: usize) -> Result<u64, StateError> {
        Ok(self.call(|| self.guest_tsc(vcpu)))
    }
    /// `kvm_synchronize_tsc`: a TSC within a second of what the last written one has become is replaced by that one.
    fn set_tsc(&self, vcpu: usize, tsc: u64) -> Result<(), StateError> {
        self.call(|| {
            let now = self.scaled();
            let expected = self.last_write.get().map(|(written, then)| written.wrapping_add(now.wrapping_sub(then)));
            let near = |expected: u64| tsc.wrapping_sub(expected).cast_signed().unsigned_abs() < u64::from(KHZ) * 1000;
            let tsc = expected.filter(|&expected| near(expected)).unwrap_or(tsc);
            self.last_write.set(Some((tsc, now)));
            self.tsc_offsets[vcpu].set(tsc.wrapping_sub(now));
        });
        Ok(())
    }
    fn tsc_offset(&self, vcpu: usize) -> Option<u64> {
        self.call(|| self.kind.offsets.then(|| self.tsc_offsets[vcpu].get()))
    }
    fn set_tsc_offset(&self, vcpu: usize, offset: u64) -> Result<(), StateError> {
        self.call(|| {
            if !self.kind.fixed {
                self.tsc_offsets[vcpu].set(offset);
            }
        });
        Ok(())
    }
}

/// Host with a guest that has run for an hour, and itself for a day; the second vCPU's TSC is ahead by `second_ahead` ticks.
fn source(kind: Kind, second_ahead: u64) -> Host {
    let host = Host::new(kind, 86_400_000_000_000);
    host.clock_offset.set(0_u64.wrapping_sub(82_800_000_000_000));
    let offset = 7_000_000_u64.wrapping_sub(ticks(82_800_000_000_000, KHZ));
    host.tsc_offsets[0].set(offset);
    host.tsc_offsets[1].set(offset.wrapping_add(second_ahead));
    host
}

/// How much further the clock advanced than the TSC from one host to the other, in ns; and how far the vCPUs' TSCs drifted
/// apart, in ticks.
fn skew(from: &Host, to: &Host) -> (i128, u64) {
    let clock = i128::from(to.clock_ns()) - i128::from(from.clock_ns());
    let tsc = i128::from(to.guest_tsc(0)) - i128::from(from.guest_tsc(0));
    let apart = |host: &Host| host.guest_tsc(1).wrapping_sub(host.guest_tsc(0));
    (clock - tsc * 1_000_000 / i128::from(KHZ), apart(to).wrapping_sub(apart(from)))
}

/// Moves the clocks from one host to the other, 60 ms later.
fn moved(from: &Host, to: &Host) -> (i128, u64) {
    let (ns, tsc) = from.read();
    write(to, &Moment { ns, tsc: &tsc, khz: KHZ }, 60_000_000).unwrap();
    skew(from, to)
}

/// One delay at each moment of reading and writing in turn. Without offsets, KVM synchronises vCPUs that are written within a
/// second.
#[test]
fn one_delay_anywhere_parts_no_clocks() {
    for from in KINDS {
        for to in KINDS {
            for delay_ns in [600_000, 40_000_000, if to.offsets { 3_000_000_000 } else { 900_000_000 }] {
                for at in 0..120 {
                    let source = source(from, 0).delayed(move |moment| if moment == at { delay_ns } else { 0 });
                    let after_source = at.checked_sub(60);
                    let destination = Host::new(to, 5_000_000_000)
                        .delayed(move |moment| if Some(moment) == after_source { delay_ns } else { 0 });
                    let (skew_ns, apart) = moved(&source, &destination);
                    let case = format!("{from:?} to {to:?}, {delay_ns} ns at {at}");
                    assert!(skew_ns.abs() <= MOST_SKEW_NS, "{case}: the clock is {skew_ns} ns ahead of the TSC");
                    assert_eq!(apart, 0, "{case}: the vCPUs' TSCs are apart");
                }
            }
        }
    }
}

/// A tenth of all moments have a delay of up to a few ms.
#[test]
fn a_busy_host_parts_no_clocks() {
    for seed in 0..400_u64 {
        let (from, to) = (KINDS[seed as usize % 5], KINDS[seed as usize / 5 % 5]);
        let busy = |salt: u64| {
            let mut state = seed * 2 + salt + 1;
            move |_| {
                // xorshift64* (Vigna, An experimental exploration of Marsaglia's xorshift generators, scrambled).
                state ^= state >> 12;
                state ^= state << 25;
                state ^= state >> 27;
                let draw = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
                if draw.is_multiple_of(10) { draw / 10 % 3_000_000 } else { 0 }
            }
        };
        let (source, destination) = (source(from, 0).delayed(busy(0)), Host::new(to, 5_000_000_000).delayed(busy(1)));
        let (skew_ns, apart) = moved(&source, &destination);
        let case = format!("seed {seed}: {from:?} to {to:?}");
        assert!(skew_ns.abs() <= MOST_SKEW_NS, "{case}: the clock is {skew_ns} ns ahead of the TSC");
        assert_eq!(apart, 0, "{case}: the vCPUs' TSCs are apart");
    }
}

/// A guest may have set its second vCPU's TSC to another value; with offsets the difference stays exact.
#[test]
fn tscs_that_differ_stay_so() {
    for kind in KINDS.into_iter().filter(|kind| kind.offsets) {
        let (source, destination) = (source(kind, 2_100_000), Host::new(kind, 5_000_000_000));
        assert_eq!(moved(&source, &destination).1, 0, "{kind:?}");
        assert_eq!(destination.guest_tsc(1) - destination.guest_tsc(0), 2_100_000, "{kind:?}");
    }
}

/// If the TSC cannot be set, the clock follows it for the time of a migration on the same host, and no further.
#[test]
fn a_clock_follows_a_tsc_that_cannot_be_set_for_a_second_at_most() {
    let kind = Kind { fixed: true, ..MODERN };
    for (away_ns, follows) in [(300_000_000_u64, true), (90_000_000_000, false)] {
        let source = Host::new(kind, 86_400_000_000_000);
        let destination = Host::new(kind, 86_400_000_000_000 + away_ns);
        let (ns, tsc) = source.read();
        write(&destination, &Moment { ns, tsc: &tsc, khz: KHZ }, 0).unwrap();
        let (skew_ns, _) = skew(&source, &destination);
        assert_eq!(skew_ns.abs() <= MOST_SKEW_NS, follows, "{away_ns} ns: {skew_ns}");
        let went = destination.clock_ns() - source.clock_ns();
        assert!(follows || went < 1_000_000, "the clock leapt by {went} ns");
    }
}

/// A stream may contain any values.
#[test]
fn hostile_values() {
    for ns in [0, 1, u64::MAX / 2, u64::MAX] {
        for tsc in [0, 1, u64::MAX / 2, u64::MAX] {
            for khz in [0, 1, u32::MAX] {
                for kind in KINDS {
                    let host = Host::new(kind, 5_000_000_000);
                    write(&host, &Moment { ns, tsc: &[tsc, !tsc], khz }, u64::MAX).unwrap();
                    write(&host, &Moment { ns, tsc: &[], khz }, 0).unwrap();
                }
            }
        }
    }
}
