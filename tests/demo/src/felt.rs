//! The downtime as the guest feels it, on the host's clock, and its parts: the gap of the guest's tick from the last one at the
//! source to the first one at the destination.
//!
//! A guest's clock may stand still on the way (QEMU's does), so the ends of the gap are told in the host's time. The monitors say
//! when the guest stopped and went on, by the events STOP and RESUME, which QEMU has, too. The tiny guest prints its ticks, and
//! the host's time when they are read is theirs.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use vmstate_lab::error::Result;
use vmstate_lab::vmm::Vmm;

pub(crate) const ANSWER: Duration = Duration::from_secs(60);

/// For so long nobody asks a guest that has just arrived, nor its monitors: on a host with one processor it would feel that.
pub(crate) const QUIET: Duration = Duration::from_millis(500);
/// Each reading narrows down where the clocks are.
const READINGS: u32 = 8;

/// How far the host's time since the epoch is ahead of the guest's monotonic clock, in ns: at least, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ahead([i64; 2]);

impl Ahead {
    /// Asks a guest that runs in `vmm`.
    pub(crate) fn measure(vmm: &mut Vmm) -> Result<Self> {
        let mut ahead = Self([i64::MIN, i64::MAX]);
        for _ in 0..READINGS {
            let asked = SystemTime::now();
            let (answered, clock) = vmm.ask_timed("clock", Instant::now() + ANSWER)?;
            ahead.narrow(nanoseconds(asked), clock["monotonic_ns"].as_i64().unwrap_or(0), nanoseconds(answered));
        }
        Ok(ahead)
    }

    /// The guest's clock was `guest` at some time between the other two.
    fn narrow(&mut self, asked: i64, guest: i64, answered: i64) {
        self.0 = [self.0[0].max(asked - guest), self.0[1].min(answered - guest)];
    }

    /// The host's time when the guest's clock was `guest`.
    fn host(self, guest: i64) -> i64 {
        guest + (self.0[0] + (self.0[1] - self.0[0]) / 2)
    }

    /// What that may be wrong by.
    fn doubt(self) -> i64 {
        (self.0[1] - self.0[0]) / 2
    }
}

/// When the monitors stopped the guest and let it go on, since the epoch.
pub(crate) fn stopped(source: &Vmm, destination: &Vmm) -> Option<[Duration; 2]> {
    Some([source.qmp.event_time("STOP")?, destination.qmp.event_time("RESUME")?])
}

/// How long ago the monitor let its guest go on.
pub(crate) fn since_resume(vmm: &Vmm) -> Duration {
    let resume = vmm.qmp.event_time("RESUME").map(|moment| UNIX_EPOCH + moment);
    resume.and_then(|moment| SystemTime::now().duration_since(moment).ok()).unwrap_or_default()
}

/// The gap that a migration is for the guest, in ms of the host's time. The guest's largest gap may be another one: on a busy host it
/// waits for its processor at other times, too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Felt {
    /// From the guest's last tick until it stood.
    pub(crate) before: f64,
    /// From there until the destination let it go on.
    pub(crate) stopped: f64,
    /// From there to the guest's first tick.
    pub(crate) after: f64,
    /// What the ends may be wrong by, together.
    pub(crate) doubt: f64,
}

impl Felt {
    /// Of that gap in the guest's answer `mark` in which the migration lies. `clocks`: at the source, at the destination.
    pub(crate) fn new(mark: &Value, clocks: [Ahead; 2], stopped: Option<[Duration; 2]>) -> Option<Self> {
        let [stop, resume] = stopped?.map(|moment| moment.as_nanos() as i64);
        let ms = |from: i64, to: i64| (to - from) as f64 / 1e6;
        let doubt = ms(0, clocks[0].doubt() + clocks[1].doubt());
        let mut all = mark["tick"]["gaps_ns"].as_array()?.iter().filter_map(|gap| {
            let (begin, end) = (clocks[0].host(gap[0].as_i64()?), clocks[1].host(gap[1].as_i64()?));
            Some(Self { before: ms(begin, stop), stopped: ms(stop, resume), after: ms(resume, end), doubt })
        });
        all.find(|felt| felt.before > -doubt && felt.after > -doubt)
    }

    /// Between the last of `ticks` at the source and the first one at the destination. One that is read when the guest stands
    /// already was printed before.
    pub(crate) fn between(ticks: [&[SystemTime]; 2], stopped: Option<[Duration; 2]>) -> Option<Self> {
        let [stop, resume] = stopped?.map(|moment| moment.as_nanos() as i64);
        let [last, first] = [ticks[0].last()?, ticks[1].first()?].map(|&tick| nanoseconds(tick));
        let last = last.min(stop);
        let ms = |from: i64, to: i64| (to - from) as f64 / 1e6;
        Some(Self { before: ms(last, stop), stopped: ms(stop, resume), after: ms(resume, first), doubt: 0.0 })
    }

    /// All of it.
    pub(crate) fn total(&self) -> f64 {
        self.before + self.stopped + self.after
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "total_ms": self.total(),
            "before_ms": self.before,
            "stopped_ms": self.stopped,
            "after_ms": self.after,
            "doubt_ms": self.doubt,
        })
    }
}

/// The largest gap between two of `ticks`, in ms.
pub(crate) fn largest_gap(ticks: &[SystemTime]) -> f64 {
    let gaps = ticks.windows(2).map(|two| (nanoseconds(two[1]) - nanoseconds(two[0])) as f64 / 1e6);
    gaps.fold(0.0, f64::max)
}

fn nanoseconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn ahead(readings: &[[i64; 3]]) -> Ahead {
        let mut ahead = Ahead([i64::MIN, i64::MAX]);
        readings.iter().for_each(|&[asked, guest, answered]| ahead.narrow(asked * MS, guest * MS, answered * MS));
        ahead
    }

    #[test]
    fn each_reading_narrows_down_where_the_clocks_are() {
        // 1000 ms apart; the first question was long on its way, the second one's answer.
        let ahead = ahead(&[[5000, 4020, 5022], [6000, 5001, 6040]]);
        assert_eq!(ahead, Ahead([999 * MS, 1002 * MS]));
        assert_eq!((ahead.host(0), ahead.doubt()), (1000 * MS + MS / 2, MS * 3 / 2));
    }

    /// The guest's clock stands still for 80 ms on the way: the guest counts 120 ms, and 200 have gone by.
    #[test]
    fn a_clock_that_stands_still_hides_nothing() {
        let clocks = [ahead(&[[1000, 0, 1000]]), ahead(&[[1080, 0, 1080]])];
        let mark = json!({ "tick": { "gaps_ns": [[100 * MS, 480 * MS], [500 * MS, 620 * MS]] } });
        let stopped = Some([Duration::from_millis(1510), Duration::from_millis(1640)]);
        let felt = Felt::new(&mark, clocks, stopped).unwrap();
        assert_eq!(felt, Felt { before: 10.0, stopped: 130.0, after: 60.0, doubt: 0.0 });
        assert_eq!(felt.total(), 200.0);
        // A gap somewhere else, and a monitor that did not say when.
        let elsewhere = json!({ "tick": { "gaps_ns": [[300 * MS, 400 * MS]] } });
        assert_eq!(Felt::new(&elsewhere, clocks, stopped), None);
        assert_eq!(Felt::new(&mark, clocks, None), None);
    }
    #[test]
    fn ticks_that_were_read_are_the_ends_of_the_gap() {
        let at = |ms: &[u64]| ms.iter().map(|&ms| UNIX_EPOCH + Duration::from_millis(ms)).collect::<Vec<_>>();
        let (source, destination) = (at(&[1000, 1004, 1005]), at(&[1017, 1018]));
        let stopped = Some([Duration::from_millis(1007), Duration::from_millis(1010)]);
        let felt = Felt::between([&source, &destination], stopped).unwrap();
        assert_eq!(felt, Felt { before: 2.0, stopped: 3.0, after: 7.0, doubt: 0.0 });
        assert_eq!((largest_gap(&source), largest_gap(&[])), (4.0, 0.0));
        assert_eq!(Felt::between([&source, &[]], stopped), None);
        let late = [Duration::from_millis(1003), Duration::from_millis(1010)];
        assert_eq!(
            Felt::between([&source, &destination], Some(late)).map(|felt| (felt.before, felt.total())),
            Some((0.0, 14.0))
        );
    }
}
