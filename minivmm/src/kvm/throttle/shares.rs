//! Share of time for which each vCPU is stopped: a pure function of its measured activity.

use std::time::Duration;

use crate::kvm::faults::Faults;

/// Largest share in percent: QEMU's `max-cpu-throttle`.
pub const MOST: u8 = 99;

/// Least part of the time for which a vCPU that dirties much is busy.
const BUSY: f64 = 0.05;

/// vCPUs that together dirty no more than this part of all are not stopped: a tick of the guest's clock dirties a page, too.
const LIGHT: f64 = 0.05;

/// Activity of a vCPU in a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Time for which the throttle did not stop the vCPU.
    pub free: Duration,
    /// Processor time of the vCPU's thread.
    pub busy: Duration,
    /// Page faults, if the host counts them.
    pub faults: Option<Faults>,
}

/// Rates at which each vCPU would dirty memory without the throttle, in relative units. `reported` is the number of pages in
/// the dirty log in that time; without any, nothing can be measured.
///
/// A host that counts write faults per vCPU measures the rates themselves. A host whose processor logs writes has far fewer
/// faults than dirty pages: there only the busy time distinguishes vCPUs.
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
            // If there are fast faults, the others are faults of the guest's reads.
            let count = |of: &Faults| if fast >= fixed / 2 { of.fast } else { of.fixed };
            return Some(seen.iter().zip(&faults).map(|(seen, of)| a_second(count(of) as f64, seen)).collect());
        }
    }
    let busy = |seen: &Seen| a_second(seen.busy.as_secs_f64(), seen);
    Some(seen.iter().map(busy).map(|busy| if busy < BUSY { 0.0 } else { busy.min(1.0) }).collect())
}

/// Computes the percent of the time for which each vCPU is stopped so that `percent` less is dirtied than at `rates`: vCPUs
/// above a bound are reduced to it, the others are not stopped.
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

/// Returns the bound: if each of the ascending rates is cut off there, `part` of their sum is left.
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

    fn estimated(seen: &[Seen], reported: u64) -> Vec<f64> {
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

    /// 994 of 1400 are to remain, of which the first vCPU may have 594: the others dirty no more than that.
    #[test]
    fn the_heaviest_is_held_first() {
        assert_eq!(shares(&[1000.0, 300.0, 100.0], 29), [41, 0, 0]);
        // 280 of 1400 are to remain: 93.3 for each.
        assert_eq!(shares(&[1000.0, 300.0, 100.0], 80), [91, 69, 7]);
    }

    /// For many rates: the remaining rate is the wanted one, as far as whole percents, the largest share and light vCPUs allow,
    /// and no vCPU is reduced below one that dirties less.
    #[test]
    fn the_remaining_rate_is_the_requested_one() {
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
    fn rates_follow_write_faults_and_not_processor_time() {
        assert_eq!(estimated(&[seen(900, 5000, 4900), seen(1000, 400, 3)], 4900), [4900.0, 3.0]);
        // A host that emulates page tables has no fast faults.
        assert_eq!(estimated(&[seen(900, 5000, 0), seen(1000, 4, 0)], 5000), [5000.0, 4.0]);
        // A vCPU that was stopped for half the time would have dirtied twice as much.
        let stopped = Seen { free: SECOND / 2, ..seen(400, 2500, 2500) };
        assert_eq!(estimated(&[stopped, seen(1000, 3, 3)], 2500), [5000.0, 3.0]);
    }

    #[test]
    fn without_write_faults_all_that_are_busy_are_suspected() {
        let busy = |ms| Seen { faults: None, ..seen(ms, 0, 0) };
        assert_eq!(estimated(&[busy(900), busy(1000), busy(20)], 4000), [0.9, 1.0, 0.0]);
        // The processor has logged 4000 pages, so the few faults had other causes.
        assert_eq!(estimated(&[seen(900, 30, 0), seen(1000, 200, 1), seen(20, 9, 0)], 4000), [0.9, 1.0, 0.0]);
        assert_eq!(estimated(&[seen(500, 0, 0)], 1), [0.5]);
        assert_eq!(rates(&[seen(500, 9, 9)], 0), None);
    }
}
