//! The measurements of one migration of the Linux guest, and the checks on them.

use std::time::Duration;

use serde_json::{Value, json};
use vmstate_lab::network::Way;

use crate::linux::Mark;
use crate::report::{Check, Hop, Times};
use crate::route::Monitor;
use crate::tick_gap::TickGap;
use crate::waits::Waits;

/// Difference of the clocks that is allowed beyond the uncertainty of the measurement.
const DRIFT: Duration = Duration::from_millis(20);
/// Start of the line with which Linux gives up a clock (`__clocksource_unstable`, kernel/time/clocksource.c).
const MARKING: &str = "Marking clocksource";

/// Everything that was measured of one migration.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) from: String,
    pub(crate) to: String,
    /// The kind of the destination.
    pub(crate) at: Monitor,
    /// Why the source gave up a first attempt.
    pub(crate) gave_up: Option<String>,
    pub(crate) times: Times,
    /// The guest's clocks and ticks up to the migration.
    pub(crate) before: Mark,
    /// The same from there to the arrival.
    pub(crate) arrival: Mark,
    /// The gap of the guest's ticks that the migration caused.
    pub(crate) felt: Option<TickGap>,
    /// Longest time for which the guest's clocks may have been stopped.
    pub(crate) stopped_time: Duration,
    /// The gap of a guest that was stopped at the source and had its memory rewritten, in an emulated host.
    pub(crate) in_place: Option<TickGap>,
    /// The guest's waits for pages across the migration and before it, in post-copy.
    pub(crate) waits: Option<[Waits; 2]>,
    /// The guest's clocks and ticks since the arrival, at the destination.
    pub(crate) after: Mark,
    /// The guest's verification of its work before it left the source, or nothing before the first migration.
    pub(crate) earlier: Value,
    /// The guest's verification of its work until now.
    pub(crate) verified: Value,
    /// `query-migrate` of the source, at the end.
    pub(crate) migration: Value,
    /// The figures for the HTML page on the migration.
    pub(crate) record: Value,
    /// Run state of the source, at the end.
    pub(crate) left_behind: String,
    /// What the network's peer received, or why there is no network.
    pub(crate) packets: Result<Value, String>,
    /// How the guest's card is connected to the network.
    pub(crate) way: Way,
}

impl Findings {
    pub(crate) fn hop(self) -> Hop {
        let gap = |mark: &Mark| mark.tick("max_gap_us").unwrap_or_default() as f64 / 1000.0;
        let felt = gap(&self.arrival).max(gap(&self.after));
        let checks = vec![
            self.memory(),
            self.files(),
            self.datagrams(),
            self.timers(),
            self.pace(),
            self.steps(),
            self.log(),
            self.one(),
        ];
        Hop {
            gaps: Some([felt, gap(&self.before)]),
            felt: self.felt,
            in_place: self.in_place,
            waits: self.waits,
            from: self.from,
            to: self.to,
            gave_up: self.gave_up,
            times: self.times,
            migration: self.migration,
            record: self.record,
            checks,
            said: json!({ "guest": self.verified, "mark": self.after.content, "peer": self.packets.ok() }),
        }
    }

    /// Whether the guest's count for this load grew since the migration began.
    fn more(&self, load: &str, count: &str) -> bool {
        self.verified[load][count].as_u64().unwrap_or(0) > self.earlier[load][count].as_u64().unwrap_or(0)
    }

    fn memory(&self) -> Check {
        let memory = &self.verified["memory"];
        let detail = format!("{} pages, {} writes, {} wrong", memory["pages"], memory["writes"], memory["mismatches"]);
        Check::new("memory", memory["mismatches"] == 0 && self.more("memory", "writes"), detail)
    }

    fn files(&self) -> Check {
        let disk = &self.verified["disk"];
        let detail = format!("{} files, {} writes, {} wrong", disk["files"], disk["writes"], disk["bad"]);
        let good = disk["bad"] == 0 && self.more("disk", "writes") && disk["errors"] == json!([]);
        Check::new("files", good, detail)
    }

    fn datagrams(&self) -> Check {
        const WHAT: &str = "datagrams";
        let received = match &self.packets {
            Ok(received) => received,
            Err(reason) => return Check::skipped(WHAT, reason),
        };
        let net = &self.verified["net"];
        let count = |value: &Value| value.as_u64().unwrap_or(0);
        let (sent, came, back) = (count(&net["sent"]), count(&received["unique"]), count(&net["echoes"]["unique"]));
        let doubled = count(&received["duplicates"]) + count(&net["echoes"]["duplicates"]);
        let corrupt = count(&received["corrupt"]) + count(&net["echoes"]["corrupt"]);
        let lost = sent.saturating_sub(came);
        // An echo that the peer sends while the guest is stopped goes to the source's tap: counted, but no fault.
        let unanswered = came.saturating_sub(back);
        let good = self.more("net", "sent") && lost == 0 && doubled == 0 && corrupt == 0 && net["errors"] == json!([]);
        let way = match self.way {
            Way::Tap => "a tap",
            Way::Vhost => "a tap with vhost",
            Way::Passt => "passt",
        };
        let detail = format!(
            "{sent} sent by {way}, {lost} lost, {unanswered} echoes lost, {doubled} doubled, {corrupt} damaged"
        );
        Check::new(WHAT, good, detail)
    }

    /// Between two readings the guest's clock must advance as the host's does, except for the time that it may have
    /// been stopped.
    fn pace(&self) -> Check {
        let nanoseconds = |mark: &Mark| mark.content["clock"]["monotonic_ns"].as_u64().unwrap_or(0);
        let guest = Duration::from_nanos(nanoseconds(&self.after).saturating_sub(nanoseconds(&self.before)));
        let least = (self.after.asked - self.before.answered).saturating_sub(self.stopped_time + DRIFT);
        let most = self.after.answered - self.before.asked + DRIFT;
        let detail = format!("guest {guest:.3?}, host between {least:.3?} and {most:.3?}");
        Check::new("clock rate", (least..=most).contains(&guest), detail)
    }

    /// The guest's timers must fire at the destination: one that was not restored never does. On a busy host a tick
    /// that is due each millisecond may come only each 500 ms.
    fn timers(&self) -> Check {
        let ticks = self.after.tick("ticks").unwrap_or(0);
        let least = (self.after.asked - self.arrival.answered).as_millis() as u64 / 500;
        let detail = format!("{ticks} ticks since the arrival, at least {least} expected");
        Check::new("timers", ticks >= least, detail)
    }

    fn steps(&self) -> Check {
        let marks = [&self.arrival, &self.after];
        let back = marks.map(|mark| mark.tick("backward"));
        let apart = marks.map(|mark| mark.tick("max_apart_us"));
        let good = back == [Some(0); 2] && apart.iter().all(|apart| apart.is_some_and(|us| us < 1000));
        let (back, apart) = (back.iter().flatten().sum::<u64>(), apart.into_iter().flatten().max().unwrap_or(0));
        Check::new("clock steps", good, format!("{back} back, {apart} µs apart"))
    }

    /// Only complaints since the migration count: some kernels complain at boot. QEMU restores TSC and clock of a guest
    /// at two different moments, which Linux may notice after any migration to a QEMU, also from a QEMU.
    fn log(&self) -> Check {
        const WHAT: &str = "kernel log";
        let lines = |mark: &Mark| mark.content["log"].as_array().cloned().unwrap_or_default();
        let earlier = lines(&self.before);
        let new: Vec<_> = lines(&self.after).into_iter().filter(|line| !earlier.contains(line)).collect();
        let new: Vec<_> = new.iter().filter_map(Value::as_str).collect();
        if new.is_empty() {
            let unwatched = earlier.iter().filter_map(Value::as_str).any(|line| line.contains(MARKING));
            let note = if unwatched { ", but the TSC was given up earlier" } else { "" };
            return Check::new(WHAT, true, format!("no complaint{note}"));
        }
        if self.at == Monitor::Qemu && new.iter().all(|line| is_about_tsc(line)) {
            return Check::known(WHAT, "the TSC is marked unstable, as QEMU's own migrations do to a guest");
        }
        Check::new(WHAT, false, new.join("; "))
    }

    fn one(&self) -> Check {
        Check::new("one guest", self.left_behind == "postmigrate", format!("the source is {}", self.left_behind))
    }
}

/// Whether the line is the kernel watchdog's finding that the TSC differs from another clock, or the figures of that
/// finding.
fn is_about_tsc(line: &str) -> bool {
    line.starts_with("clocksource:") && (!line.contains(MARKING) || line.contains("'tsc'"))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::report::Verdict;

    const TSC: &str = "clocksource: timekeeping watchdog on CPU0: \
        Marking clocksource 'tsc' as unstable because the skew is too large:";

    fn good() -> Findings {
        let begun = Instant::now();
        let mark = |second: u64| Mark {
            asked: begun + Duration::from_secs(second),
            answered: begun + Duration::from_millis(second * 1000 + 10),
            content: json!({
                "clock": { "monotonic_ns": 5_000_000_000 + second * 1_000_000_000 },
                "tick": { "ticks": 3000, "max_gap_us": 90_000, "backward": 0, "max_apart_us": 3 },
                "log": ["complained at boot"],
            }),
        };
        Findings {
            from: "QEMU".into(),
            to: "minivmm".into(),
            at: Monitor::Minivmm,
            gave_up: None,
            times: Times::default(),
            before: mark(0),
            arrival: mark(4),
            felt: None,
            stopped_time: Duration::from_millis(80),
            in_place: None,
            waits: None,
            after: mark(7),
            earlier: json!({
                "memory": { "writes": 8 },
                "disk": { "writes": 8 },
                "net": { "sent": 9 },
            }),
            verified: json!({
                "memory": { "pages": 1, "mismatches": 0, "writes": 9 },
                "disk": { "files": 3, "bad": 0, "writes": 9, "errors": [] },
                "net": { "sent": 10, "errors": [], "echoes": { "unique": 8, "duplicates": 0, "corrupt": 0 } },
            }),
            migration: json!({ "downtime": 80, "total-time": 900, "ram": {} }),
            record: Value::Null,
            left_behind: "postmigrate".into(),
            packets: Ok(json!({ "unique": 10, "duplicates": 0, "corrupt": 0 })),
            way: Way::Tap,
        }
    }

    #[test]
    fn a_sound_migration_holds_and_each_single_fault_is_detected() {
        assert!(good().hop().holds(), "{}", good().hop());
        let faults: [fn(&mut Findings); 18] = [
            |f| f.verified["memory"]["mismatches"] = json!(1),
            |f| f.verified["memory"]["writes"] = json!(8),
            |f| f.verified["disk"]["writes"] = json!(8),
            |f| f.earlier["net"]["sent"] = json!(10),
            |f| f.verified["disk"]["bad"] = json!(1),
            |f| f.verified["disk"]["errors"] = json!(["I/O error"]),
            |f| f.verified["net"]["sent"] = json!(11),
            |f| f.verified["net"]["echoes"]["duplicates"] = json!(1),
            |f| f.after.content["clock"]["monotonic_ns"] = json!(11_800_000_000u64),
            |f| f.after.content["clock"]["monotonic_ns"] = json!(12_100_000_000u64),
            |f| f.arrival.content["tick"]["backward"] = json!(1),
            |f| f.after.content["tick"]["backward"] = json!(1),
            |f| f.arrival.content["tick"]["max_apart_us"] = json!(1000),
            |f| f.after.content["tick"]["ticks"] = json!(4),
            |f| f.after.content["tick"] = json!(null),
            |f| f.after.content["log"] = json!(["complained at boot", "soft lockup"]),
            |f| f.after.content["log"] = json!(["complained at boot", TSC]),
            |f| f.left_behind = "running".into(),
        ];
        for (number, fault) in faults.iter().enumerate() {
            let mut findings = good();
            fault(&mut findings);
            assert!(!findings.hop().holds(), "fault {number} was not detected");
        }
    }

    #[test]
    fn the_tsc_given_up_at_a_qemu_is_the_only_known_complaint() {
        let log = |at: Monitor, lines: &[&str]| {
            let mut findings = good();
            findings.at = at;
            findings.after.content["log"] = json!(lines);
            findings.log()
        };
        let figures = "clocksource:                       'tsc' cs_nsec: 858842689 cs_now: 28545b9aac";
        assert_eq!(log(Monitor::Qemu, &[TSC, figures]).verdict, Verdict::Known);
        assert_eq!(log(Monitor::Minivmm, &[TSC, figures]).verdict, Verdict::Fails);
        assert_eq!(log(Monitor::Qemu, &[TSC, "soft lockup"]).verdict, Verdict::Fails);
        assert_eq!(log(Monitor::Qemu, &[&TSC.replace("'tsc'", "'kvm-clock'")]).verdict, Verdict::Fails);
        assert_eq!(log(Monitor::Qemu, &["complained at boot"]).verdict, Verdict::Holds);
    }
}
