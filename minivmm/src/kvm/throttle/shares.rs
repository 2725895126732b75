//! Which vCPU stands for how much of the time: a pure function of what each was seen to do.

use std::time::Duration;

use crate::kvm::faults::Faults;

/// The most that a vCPU stands, in percent: QEMU's `max-cpu-throttle`.
pub const MOST: u8 = 99;

/// A vCPU that is busy for less than this part of the time is not the one that dirties much.
const BUSY: f64 = 0.05;

/// vCPUs that together dirty no more than this part of all are left alone: a tick of the guest's clock dirties a page, too.
const LIGHT: f64 = 0.05;

/// What a vCPU did in a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// How long it could run: it was not made to stand.
    pub free: Duration,
    /// Processor time of its thread.
    pub busy: Duration,
    /// If the host counts them.
    pub faults: Option<Faults>,
}

/// What each vCPU would dirty if none stood, in a unit of its own. `reported`: pages in the dirty log in that time; if there are none,
/// nothing can be told.
///
/// A host that tells each vCPU's write faults shows it. One that lets the processor log writes has far fewer faults than
/// dirty pages: there nothing tells the vCPUs apart but how busy they are.
pub fn rates(seen: &[Seen], reported: u64) -> Option<Vec<f64>> {
    if reported == 0 {
        return None;
    }
    let a_second = |what: f64, seen: &Seen| what / seen.free.as_secs_f64().max(1e-3);
    let faults: Option<Vec<Faults>> = seen.iter().map(|seen| seen.faults).collect();
    if let Some(faults) = faults {
        let (fixed, fast) = faults.iter().fold((0, 0), |(fixed, fast), of| (fixed + of.fixed, fast + of.fast));
        let all = fixed.max(fast);
        if all >= reported.div_ceil(4) {
            // Where there are fast faults, the others are those of the guest's reads.
            let count = |of: &Faults| if fast >= fixed / 2 { of.fast } else { of.fixed };
            return Some(seen.iter().zip(&faults).map(|(seen, of)| a_second(count(of) as f64, seen)).collect());
        }
    }
    let busy = |seen: &Seen| a_second(seen.busy.as_secs_f64(), seen);
    Some(seen.iter().map(busy).map(|busy| if busy < BUSY { 0.0 } else { busy.min(1.0) }).collect())
}

/// Percent of the time that each vCPU stands so that `percent` less than `rates` is dirtied: those above a bound are held to it,
/// the others are left alone.
pub fn shares(rates: &[f64], percent: u8) -> Vec<u8> {
    let mut ascending = rates.to_vec();
    ascending.sort_by(f64::total_cmp);
    let all: f64 = rates.iter().sum();
    let sums = ascending.iter().scan(0.0, |sum, rate| {
        *sum += rate;
        Some(*sum)
    });
    let light = sums.take_while(|&sum| sum <= all * LIGHT).count();
    let (light, heavy) = ascending.split_at(light);
    let lightest = light.last().copied().unwrap_or(0.0);
    let bound = bound(heavy, 1.0 - f64::from(percent.min(MOST)) / 100.0);
    let share = |rate: f64| (100.0 * (1.0 - bound / rate)).round().clamp(0.0, f64::from(MOST)) as u8;
    rates.iter().map(|&rate| if rate > lightest { share(rate) } else { 0 }).collect()
}

/// If each of the rates, which ascend, is cut off here, this part of their sum is left.
fn bound(ascending: &[f64], part: f64) -> f64 {
    let mut left = ascending.iter().sum::<f64>() * part;
    for (index, &rate) in ascending.iter().enumerate() {
        let others = (ascending.len() - index) as f64;
        if rate * others >= left {
            return left / others;
        }
        left -= rate;
    }
    f64::INFINITY
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seen(busy_ms: u64, fixed: u64, fast: u64) -> Seen {
        Seen { free: SECOND, busy: Duration::from_millis(busy_ms), faults: Some(Faults { fixed, fast }) }
    }

    fn told(seen: &[Seen], reported: u64) -> Vec<f64> {
        rates(seen, reported).unwrap()
    }

    #[test]
    fn one_that_dirties_bears_it_all_and_equals_bear_the_same() {
        assert_eq!(shares(&[1000.0, 0.0], 50), [50, 0]);
        assert_eq!(shares(&[1000.0, 9.0], 99), [99, 0]);
        assert_eq!(shares(&[500.0, 500.0, 500.0], 80), [80, 80, 80]);
        assert_eq!(shares(&[500.0, 500.0], 0), [0, 0]);
        assert_eq!(shares(&[0.0, 0.0], 99), [0, 0]);
        assert_eq!(shares(&[1000.0], 200), [99]);
        assert_eq!(shares(&[], 50), [0; 0]);
    }

    /// 994 of 1400 shall remain, 594 of them for the first: the others dirty no more than that.
    #[test]
    fn the_heaviest_is_held_first() {
        assert_eq!(shares(&[1000.0, 300.0, 100.0], 29), [41, 0, 0]);
        // 280 of 1400: 93.3 for each.
        assert_eq!(shares(&[1000.0, 300.0, 100.0], 80), [91, 69, 7]);
    }

    /// For many rates: what is left is what was wanted, as far as whole percents, their limit and the light ones allow, and no
    /// vCPU is held below one that dirties less.
    #[test]
    fn what_is_left_is_what_was_wanted() {
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..2000 {
            let rates: Vec<f64> = (0..1 + random(8)).map(|_| random(100_000) as f64).collect();
            let percent = random(100) as u8;
            let shares = shares(&rates, percent);
            let left = |rate: f64, share: u8| rate * f64::from(100 - share) / 100.0;
            let all: f64 = rates.iter().sum();
            let remains: f64 = rates.iter().zip(&shares).map(|(&rate, &share)| left(rate, share)).sum();
            let over = remains - left(all, percent);
            let rounding = all * 0.005 + 1.0;
            assert!(-rounding <= over && over <= all * 0.05 + rounding, "{rates:?} {percent}: {shares:?}");
            for (&a, &share_a) in rates.iter().zip(&shares) {
                for (&b, &share_b) in rates.iter().zip(&shares) {
                    assert!(a <= b || share_a >= share_b, "{rates:?} {percent}: {shares:?}");
                }
            }
        }
    }

    #[test]
    fn write_faults_tell_who_dirties_and_not_how_busy_it_is() {
        assert_eq!(told(&[seen(900, 5000, 4900), seen(1000, 400, 3)], 4900), [4900.0, 3.0]);
        // A host that emulates page tables resolves all of them the slow way.
        assert_eq!(told(&[seen(900, 5000, 0), seen(1000, 4, 0)], 5000), [5000.0, 4.0]);
        // One that stood half the time would have dirtied twice as much.
        let stood = Seen { free: SECOND / 2, ..seen(400, 2500, 2500) };
        assert_eq!(told(&[stood, seen(1000, 3, 3)], 2500), [5000.0, 3.0]);
    }

    #[test]
    fn without_write_faults_all_that_are_busy_are_suspected() {
        let busy = |ms| Seen { faults: None, ..seen(ms, 0, 0) };
        assert_eq!(told(&[busy(900), busy(1000), busy(20)], 4000), [0.9, 1.0, 0.0]);
        // The processor has logged 4000 pages, so the few faults were others.
        assert_eq!(told(&[seen(900, 30, 0), seen(1000, 200, 1), seen(20, 9, 0)], 4000), [0.9, 1.0, 0.0]);
        assert_eq!(told(&[seen(500, 0, 0)], 1), [0.5]);
        assert_eq!(rates(&[seen(500, 9, 9)], 0), None);
    }
}
