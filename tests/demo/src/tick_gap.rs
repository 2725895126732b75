//! The downtime as the guest observes it, on the host's clock, and its parts: the gap of the guest's tick, from the
//! last tick at the source to the first one at the destination.
//!
//! A guest's clock may stop during a migration (in QEMU it does), so the ends of the gap are converted to the host's
//! clock. The monitors report when the guest stopped and resumed by the events STOP and RESUME, which QEMU has, too.
//! The tiny guest prints its ticks, and each counts with the host's time at which it was read.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use vmstate_lab::error::Result;
use vmstate_lab::vmm::Vmm;

pub(crate) const ANSWER: Duration = Duration::from_secs(60);

/// Time after an arrival in which neither the guest nor its monitors are queried: on a host with one processor a query
/// would delay the guest.
pub(crate) const QUIET: Duration = Duration::from_millis(500);
/// Number of readings; each narrows the offset between the clocks.
const READINGS: u32 = 8;

/// Lower and upper bound of the offset from the guest's monotonic clock to the host's time since the epoch, in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockOffset([i64; 2]);

impl ClockOffset {
    /// Measures the offset for a guest that runs in `vmm`.
    pub(crate) fn measure(vmm: &mut Vmm) -> Result<Self> {
        let mut offset = Self([i64::MIN, i64::MAX]);
        for _ in 0..READINGS {
            let asked = SystemTime::now();
            let (answered, clock) = vmm.ask_timed("clock", Instant::now() + ANSWER)?;
            offset.narrow(nanoseconds(asked), clock["monotonic_ns"].as_i64().unwrap_or(0), nanoseconds(answered));
        }
        Ok(offset)
    }

    /// Narrows the bounds by one reading: the guest's clock was `guest` at some time between `asked` and `answered`.
    fn narrow(&mut self, asked: i64, guest: i64, answered: i64) {
        self.0 = [self.0[0].max(asked - guest), self.0[1].min(answered - guest)];
    }

    /// The host's time at which the guest's clock was `guest`.
    fn host(self, guest: i64) -> i64 {
        guest + (self.0[0] + (self.0[1] - self.0[0]) / 2)
    }

    /// Largest error of [`host`](Self::host).
    fn doubt(self) -> i64 {
        (self.0[1] - self.0[0]) / 2
    }
}

/// The times at which the source stopped the guest and the destination resumed it, since the epoch.
pub(crate) fn stopped(source: &Vmm, destination: &Vmm) -> Option<[Duration; 2]> {
    Some([source.qmp.event_time("STOP")?, destination.qmp.event_time("RESUME")?])
}

/// Time since the monitor resumed its guest.
pub(crate) fn since_resume(vmm: &Vmm) -> Duration {
    let resume = vmm.qmp.event_time("RESUME").map(|moment| UNIX_EPOCH + moment);
    resume.and_then(|moment| SystemTime::now().duration_since(moment).ok()).unwrap_or_default()
}

/// The gap of the guest's ticks that a migration causes, in ms of the host's time. The guest's largest gap may be a
/// different one: on a busy host the guest waits for its processor at other times, too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TickGap {
    /// From the guest's last tick to the stop at the source.
    pub(crate) before: f64,
    /// From the stop at the source to the resume at the destination.
    pub(crate) stopped: f64,
    /// From the resume at the destination to the guest's first tick.
    pub(crate) after: f64,
    /// Largest error of both ends of the gap together.
    pub(crate) doubt: f64,
}

impl TickGap {
    /// The gap, among those in the guest's answer `mark`, that contains the migration. `clocks` are those of source and
    /// destination.
    pub(crate) fn new(mark: &Value, clocks: [ClockOffset; 2], stopped: Option<[Duration; 2]>) -> Option<Self> {
        let [stop, resume] = stopped?.map(|moment| moment.as_nanos() as i64);
        let ms = |from: i64, to: i64| (to - from) as f64 / 1e6;
        let doubt = ms(0, clocks[0].doubt() + clocks[1].doubt());
        let mut all = mark["tick"]["gaps_ns"].as_array()?.iter().filter_map(|gap| {
            let (begin, end) = (clocks[0].host(gap[0].as_i64()?), clocks[1].host(gap[1].as_i64()?));
            Some(Self { before: ms(begin, stop), stopped: ms(stop, resume), after: ms(resume, end), doubt })
        });
        all.find(|felt| felt.before > -doubt && felt.after > -doubt)
    }

    /// The gap between the last of `ticks` at the source and the first one at the destination. A tick that is read
    /// after the stop was printed before.
    pub(crate) fn between(ticks: [&[SystemTime]; 2], stopped: Option<[Duration; 2]>) -> Option<Self> {
        let [stop, resume] = stopped?.map(|moment| moment.as_nanos() as i64);
        let [last, first] = [ticks[0].last()?, ticks[1].first()?].map(|&tick| nanoseconds(tick));
        let last = last.min(stop);
        let ms = |from: i64, to: i64| (to - from) as f64 / 1e6;
        Some(Self { before: ms(last, stop), stopped: ms(stop, resume), after: ms(resume, first), doubt: 0.0 })
    }

    /// The whole gap.
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

    fn offset(readings: &[[i64; 3]]) -> ClockOffset {
        let mut offset = ClockOffset([i64::MIN, i64::MAX]);
        readings.iter().for_each(|&[asked, guest, answered]| offset.narrow(asked * MS, guest * MS, answered * MS));
        offset
    }

    #[test]
    fn each_reading_narrows_the_offset_of_the_clocks() {
        // The clocks are 1000 ms apart; the first question was delayed, and the second one's answer.
        let offset = offset(&[[5000, 4020, 5022], [6000, 5001, 6040]]);
        assert_eq!(offset, ClockOffset([999 * MS, 1002 * MS]));
        assert_eq!((offset.host(0), offset.doubt()), (1000 * MS + MS / 2, MS * 3 / 2));
    }

    /// The guest's clock stops for 80 ms: the guest counts 120 ms while 200 ms pass.
    #[test]
    fn a_stopped_clock_does_not_shorten_the_gap() {
        let clocks = [offset(&[[1000, 0, 1000]]), offset(&[[1080, 0, 1080]])];
        let mark = json!({ "tick": { "gaps_ns": [[100 * MS, 480 * MS], [500 * MS, 620 * MS]] } });
        let stopped = Some([Duration::from_millis(1510), Duration::from_millis(1640)]);
        let felt = TickGap::new(&mark, clocks, stopped).unwrap();
        assert_eq!(felt, TickGap { before: 10.0, stopped: 130.0, after: 60.0, doubt: 0.0 });
        assert_eq!(felt.total(), 200.0);
        // A gap outside of the migration, and a monitor without STOP and RESUME.
        let elsewhere = json!({ "tick": { "gaps_ns": [[300 * MS, 400 * MS]] } });
        assert_eq!(TickGap::new(&elsewhere, clocks, stopped), None);
        assert_eq!(TickGap::new(&mark, clocks, None), None);
    }
    #[test]
    fn ticks_that_were_read_are_the_ends_of_the_gap() {
        let at = |ms: &[u64]| ms.iter().map(|&ms| UNIX_EPOCH + Duration::from_millis(ms)).collect::<Vec<_>>();
        let (source, destination) = (at(&[1000, 1004, 1005]), at(&[1017, 1018]));
        let stopped = Some([Duration::from_millis(1007), Duration::from_millis(1010)]);
        let felt = TickGap::between([&source, &destination], stopped).unwrap();
        assert_eq!(felt, TickGap { before: 2.0, stopped: 3.0, after: 7.0, doubt: 0.0 });
        assert_eq!((largest_gap(&source), largest_gap(&[])), (4.0, 0.0));
        assert_eq!(TickGap::between([&source, &[]], stopped), None);
        let late = [Duration::from_millis(1003), Duration::from_millis(1010)];
        assert_eq!(
            TickGap::between([&source, &destination], Some(late)).map(|felt| (felt.before, felt.total())),
            Some((0.0, 14.0))
        );
    }
}
