//! Block time of vCPUs: how long each of them, and how long all of them at once, waited for pages at the destination of a post-copy
//! migration. The figures are QEMU's (`mark_postcopy_blocktime_begin`, migration/postcopy-ram.c).

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::sync::lock;

/// Time for which vCPUs waited for pages that have arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockTime {
    /// Time for which all vCPUs waited at once.
    pub all: Duration,
    /// Time of each vCPU, by APIC id.
    pub each: Vec<Duration>,
}

/// Measurement of the block time of one migration. Clones share it.
#[derive(Clone, Debug)]
pub struct BlockClock {
    begun: Instant,
    waits: Arc<Mutex<Waits>>,
}

impl BlockClock {
    /// Measures the vCPUs that run on these threads of the host.
    pub fn new(threads: Vec<u32>) -> Self {
        Self { begun: Instant::now(), waits: Arc::new(Mutex::new(Waits::new(threads))) }
    }

    /// Block time so far.
    pub fn time(&self) -> BlockTime {
        lock(&self.waits).time.clone()
    }

    /// Records that a thread, maybe of no vCPU, waits for the page at `offset`.
    pub(super) fn begin(&self, thread: u32, offset: u64) {
        lock(&self.waits).begin(thread, offset, self.begun.elapsed());
    }

    /// Records that the page at `offset` has arrived; `None`: all pages have.
    pub(super) fn end(&self, offset: Option<u64>) {
        lock(&self.waits).end(offset, self.begun.elapsed());
    }
}

/// Current waits, and the block time of the waits that have ended. All times are of one clock.
#[derive(Debug)]
struct Waits {
    threads: Vec<u32>,
    /// Page that each vCPU waits for, and when the wait began.
    waiting: Vec<Option<(u64, Duration)>>,
    /// Time since which all vCPUs wait.
    all_since: Option<Duration>,
    time: BlockTime,
}

impl Waits {
    fn new(threads: Vec<u32>) -> Self {
        let each = vec![Duration::ZERO; threads.len()];
        let waiting = vec![None; threads.len()];
        Self { threads, waiting, all_since: None, time: BlockTime { all: Duration::ZERO, each } }
    }

    fn begin(&mut self, thread: u32, page: u64, now: Duration) {
        let Some(vcpu) = self.threads.iter().position(|known| *known == thread) else { return };
        // The kernel may report a wait more than once.
        if self.waiting[vcpu].is_some_and(|(known, _)| known == page) {
            return;
        }
        // A thread that waits for another page no longer waits for the previous one.
        self.wake(vcpu, now);
        self.waiting[vcpu] = Some((page, now));
        if self.waiting.iter().all(Option::is_some) {
            self.all_since = Some(now);
        }
    }

    fn end(&mut self, page: Option<u64>, now: Duration) {
        for vcpu in 0..self.waiting.len() {
            if self.waiting[vcpu].is_some_and(|(awaited, _)| page.is_none_or(|page| page == awaited)) {
                self.wake(vcpu, now);
            }
        }
    }

    fn wake(&mut self, vcpu: usize, now: Duration) {
        let Some((_, since)) = self.waiting[vcpu].take() else { return };
        self.time.each[vcpu] += now.saturating_sub(since);
        if let Some(since) = self.all_since.take() {
            self.time.all += now.saturating_sub(since);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST_THREAD: u32 = 100;

    /// The event of one millisecond.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Begins { thread: u32, page: u64 },
        Arrives(u64),
        AllArrive,
        Nothing,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..4_u32, 0..4_u64).prop_map(|(vcpu, page)| Step::Begins { thread: FIRST_THREAD + vcpu, page }),
            4 => (0..4_u64).prop_map(Step::Arrives),
            1 => Just(Step::AllArrive),
            2 => Just(Step::Nothing),
        ];
        prop::collection::vec(step, 0..60)
    }

    /// Model: counts in each millisecond the waiting vCPUs, and whether all of them wait.
    fn counted(vcpus: usize, steps: &[Step]) -> BlockTime {
        let mut waits_for = vec![None; vcpus];
        // Waits that are not over do not count.
        let (mut open, mut ended) = (vec![Vec::new(); vcpus], vec![Vec::new(); vcpus]);
        for (now, step) in steps.iter().enumerate() {
            for vcpu in 0..vcpus {
                let before = waits_for[vcpu];
                match *step {
                    Step::Begins { thread, page } if thread == FIRST_THREAD + vcpu as u32 => {
                        waits_for[vcpu] = Some(page);
                    }
                    Step::Arrives(page) if before == Some(page) => waits_for[vcpu] = None,
                    Step::AllArrive => waits_for[vcpu] = None,
                    _ => {}
                }
                if waits_for[vcpu] != before {
                    ended[vcpu].append(&mut open[vcpu]);
                }
                if waits_for[vcpu].is_some() {
                    open[vcpu].push(now);
                }
            }
        }
        let milliseconds = |count: usize| Duration::from_millis(count as u64);
        // The time for which all vCPUs waited counts once the first of them is woken.
        let whole: Vec<Vec<usize>> = ended.iter().zip(&open).map(|(ended, open)| [&ended[..], open].concat()).collect();
        let all_still_wait = |now: usize| open.iter().all(|open| open.contains(&now));
        let all = (0..steps.len()).filter(|now| whole.iter().all(|times| times.contains(now)) && !all_still_wait(*now));
        BlockTime {
            all: milliseconds(all.count()),
            each: ended.iter().map(|ended| milliseconds(ended.len())).collect(),
        }
    }

    proptest! {
        #[test]
        fn overlapping_waits_add_up_as_counted_millisecond_by_millisecond(vcpus in 1..4_usize, steps in steps()) {
            let threads = (0..vcpus as u32).map(|vcpu| FIRST_THREAD + vcpu).collect();
            let mut waits = Waits::new(threads);
            for (now, step) in steps.iter().enumerate() {
                let now = Duration::from_millis(now as u64);
                match *step {
                    Step::Begins { thread, page } => waits.begin(thread, page, now),
                    Step::Arrives(page) => waits.end(Some(page), now),
                    Step::AllArrive => waits.end(None, now),
                    Step::Nothing => {}
                }
            }
            prop_assert_eq!(&waits.time, &counted(vcpus, &steps));
        }
    }

    /// Calculated by hand for two vCPUs: vCPU 0 waits from 10 to 40 ms, vCPU 1 from 20 to 30 ms and from 35 to 60 ms.
    #[test]
    fn all_vcpus_are_blocked_only_while_each_of_them_waits() {
        let mut waits = Waits::new(vec![7, 9]);
        let at = Duration::from_millis;
        waits.begin(7, 1, at(10));
        waits.begin(9, 2, at(20));
        waits.begin(8, 3, at(25));
        waits.end(Some(2), at(30));
        waits.begin(9, 3, at(35));
        waits.begin(7, 1, at(36));
        waits.end(Some(1), at(40));
        assert_eq!(waits.time, BlockTime { all: at(15), each: vec![at(30), at(10)] });
        waits.end(None, at(60));
        assert_eq!(waits.time, BlockTime { all: at(15), each: vec![at(30), at(35)] });
    }
}
