//! The report of the demo, printed as it grows: the guest, then for each migration its figures and a verdict on each
//! check.

use std::fmt::{self, Write as _};
use std::time::Duration;

use serde_json::{Value, json};

use crate::tick_gap::TickGap;
use crate::waits::Waits;

/// What a run of the demo found.
#[derive(Debug)]
pub(crate) struct DemoReport {
    /// The guest and its machine.
    pub(crate) guest: String,
    /// The monitor in which the guest booted.
    pub(crate) first: String,
    /// Duration of the boot.
    pub(crate) boot: Duration,
    pub(crate) hops: Vec<Hop>,
    /// Whether the last monitor ended well when the guest powered off.
    pub(crate) off: Option<Check>,
}

/// One migration.
#[derive(Debug)]
pub(crate) struct Hop {
    /// Name and version of the source's program.
    pub(crate) from: String,
    /// Name and version of the destination's program.
    pub(crate) to: String,
    /// Why the source gave up a first attempt, after which its downtime limit was raised.
    pub(crate) gave_up: Option<String>,
    pub(crate) times: Times,
    /// `query-migrate` of the source, at the end.
    pub(crate) migration: Value,
    /// The figures for the HTML page on the migration, without the downtime that the guest observed.
    pub(crate) record: Value,
    /// The largest gap of the guest's own tick, in ms: across the migration, and before it.
    pub(crate) gaps: Option<[f64; 2]>,
    /// The gap that the migration caused, on the host's clock.
    pub(crate) felt: Option<TickGap>,
    /// The gap of a guest that does not move, in an emulated host ([`crate::in_place`]).
    pub(crate) in_place: Option<TickGap>,
    /// The waits of the guest's writes for their pages: across the migration, and before it.
    pub(crate) waits: Option<[Waits; 2]>,
    /// The checks.
    pub(crate) checks: Vec<Check>,
    /// The answers of the guest and of the network's peer, for programs that read the report.
    pub(crate) said: Value,
}

/// Times of the migration, since the guest was ready.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    /// The migration was started at the source.
    pub(crate) begun: Duration,
    /// The destination ran the guest.
    pub(crate) arrived: Duration,
    /// The guest's verification was complete.
    pub(crate) verified: Duration,
}

/// One requirement, and whether it holds.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) what: &'static str,
    pub(crate) verdict: Verdict,
    detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Holds,
    /// The check fails as it does in a migration between two QEMUs.
    Known,
    Fails,
    Skipped,
}

impl Check {
    /// A check with its verdict, and the figures that the verdict is based on.
    pub(crate) fn new(what: &'static str, holds: bool, detail: impl Into<String>) -> Self {
        Self { what, verdict: if holds { Verdict::Holds } else { Verdict::Fails }, detail: detail.into() }
    }

    /// A check that fails because of what QEMU does to a guest in each migration to it.
    pub(crate) fn known(what: &'static str, detail: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Known, detail: detail.into() }
    }

    /// A check that was not made, because of `reason`.
    pub(crate) fn skipped(what: &'static str, reason: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Skipped, detail: reason.into() }
    }

    /// Whether the monitor in which the guest powered off ended well.
    pub(crate) fn off(well: bool) -> Self {
        Self::new("power-off", well, if well { "the last monitor ended well" } else { "the last monitor failed" })
    }

    fn json(&self) -> Value {
        json!({ "check": self.what, "verdict": self.verdict.as_str(), "detail": self.detail })
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<8} {}: {}", self.verdict.as_str(), self.what, self.detail)
    }
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Holds => "ok",
            Self::Known => "known",
            Self::Fails => "FAILED",
            Self::Skipped => "skipped",
        }
    }
}

impl Hop {
    pub(crate) fn holds(&self) -> bool {
        self.checks.iter().all(|check| check.verdict != Verdict::Fails)
    }

    /// Number of rounds, from `query-migrate`.
    pub(crate) fn rounds(&self) -> u64 {
        self.migration["ram"]["dirty-sync-count"].as_u64().unwrap_or(0)
    }

    pub(crate) fn sent_mib(&self) -> f64 {
        self.migration["ram"]["transferred"].as_f64().unwrap_or(f64::NAN) / f64::from(1 << 20)
    }

    pub(crate) fn total(&self) -> Duration {
        Duration::from_millis(self.migration["total-time"].as_u64().unwrap_or(0))
    }

    pub(crate) fn downtime(&self) -> Duration {
        Duration::from_millis(self.migration["downtime"].as_u64().unwrap_or(0))
    }

    /// The figures for the HTML page on the migration.
    pub(crate) fn record(&self) -> Value {
        let mut record = self.record.clone();
        if let Some([felt, usual]) = self.gaps {
            // The guest's own clock may stop during the migration, so the host's is preferred.
            let felt = self.felt.map_or(felt, |felt| felt.total());
            record["guest"] = json!({ "gap-ms": felt, "usual-gap-ms": usual });
        }
        if let Some(TickGap { before, stopped, after, .. }) = self.felt {
            for (part, time) in [("before-ms", before), ("stopped-ms", stopped), ("after-ms", after)] {
                record["guest"][part] = time.into();
            }
        }
        record
    }

    fn json(&self) -> Value {
        json!({
            "from": self.from,
            "to": self.to,
            "gave_up": self.gave_up,
            "begun_ms": self.times.begun.as_millis() as u64,
            "arrived_ms": self.times.arrived.as_millis() as u64,
            "verified_ms": self.times.verified.as_millis() as u64,
            "rounds": self.migration["ram"]["dirty-sync-count"],
            "bytes": self.migration["ram"]["transferred"],
            "total_ms": self.migration["total-time"],
            "downtime_ms": self.migration["downtime"],
            "downtime_felt_ms": self.gaps.map(|[felt, _]| felt),
            // The share of the total time before the pause for which a vCPU was held up on average; QEMU has no such
            // figure.
            "slowdown_percent": self.migration["guest-slowdown"]["percent"],
            "usual_gap_ms": self.gaps.map(|[_, usual]| usual),
            "felt": self.felt.map(|felt| felt.json()),
            "in_place": self.in_place.map(|felt| felt.json()),
            "waits": self.waits.map(|[across, usual]| json!({ "across": across.json(), "usual": usual.json() })),
            "holds": self.holds(),
            "checks": self.checks.iter().map(Check::json).collect::<Vec<_>>(),
            "migration": self.migration,
            "said": self.said,
        })
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut figure = |name: &str, value: String| writeln!(f, "{name:<20} {value}");
        if let Some(reason) = &self.gave_up {
            figure("first try", reason.clone())?;
        }
        figure("rounds", self.rounds().to_string())?;
        figure("sent", format!("{:.1} MiB", self.sent_mib()))?;
        figure("total time", format!("{} ms", self.total().as_millis()))?;
        figure("downtime, measured", format!("{} ms", self.downtime().as_millis()))?;
        if let Some([felt, usual]) = self.gaps {
            let note = "largest gap of a 1 ms tick";
            figure("downtime, as felt", format!("{felt:.1} ms ({note}; {usual:.1} ms without migration)"))?;
        }
        if let Some(felt) = &self.felt {
            let TickGap { before, stopped, after, .. } = felt;
            let parts = format!("{before:.1} to the stop, {stopped:.1} stopped, {after:.1} to the first tick");
            figure("the migration's gap", format!("{:.1} ms: {parts}", felt.total()))?;
        }
        if let Some(TickGap { after, .. }) = &self.in_place {
            let why = "stopped and resumed without a migration, its memory rewritten";
            figure("in place", format!("{after:.1} ms to the first tick ({why})"))?;
        }
        if let Some([across, usual]) = &self.waits {
            figure("waits for pages", format!("{across}; without migration {usual}"))?;
        }
        self.checks.iter().try_for_each(|check| write!(f, "{check}"))
    }
}

impl DemoReport {
    /// Prints the lines about the guest.
    pub(crate) fn begin(guest: String, first: String, boot: Duration) -> Self {
        println!("{:<20} {guest}\n{:<20} {:.1} s, in {first}", "guest", "boot", boot.as_secs_f64());
        Self { guest, first, boot, hops: Vec::new(), off: None }
    }

    /// Prints the lines about a migration.
    pub(crate) fn add(&mut self, hop: Hop) {
        println!("\nhop {}: {} → {}\n{hop}", self.hops.len() + 1, hop.from, hop.to);
        self.hops.push(hop);
    }

    /// Prints the last line.
    pub(crate) fn end(&mut self, off: Check) {
        print!("{off}");
        self.off = Some(off);
        print!("{}", self.table());
        println!("{}", self.verdict());
    }

    /// A table of the medians of hops between the same two programs, in ms, if a route has several such hops; and the
    /// ratio of minivmm's to QEMU's, if there are both.
    fn table(&self) -> String {
        let mut ways: Vec<(&str, &str)> = self.hops.iter().map(|hop| (&*hop.from, &*hop.to)).collect();
        ways.sort_unstable();
        ways.dedup();
        let medians = ways.iter().map(|&way| Medians::new(way, &self.hops));
        let medians: Vec<_> = medians.filter(|medians| medians.hops > 1).collect();
        let mut table: String = medians.iter().map(ToString::to_string).collect();
        let between = |name: &str| {
            medians.iter().find(|medians| medians.way.0.starts_with(name) && medians.way.1.starts_with(name))
        };
        if let (Some(own), Some(qemu)) = (between("minivmm "), between("QEMU ")) {
            // Writing to a string does not fail.
            let _ = write!(table, "felt, as a ratio to QEMU's: {:.2}", own.felt / qemu.felt);
            if let (Some(share), Some(qemus)) = (own.in_place, qemu.in_place) {
                let _ = write!(table, "; less the time in place {:.2}", (own.felt - share) / (qemu.felt - qemus));
            }
            if let (Some(own), Some(qemu)) = (own.waits, qemu.waits) {
                let [median, p99, sum] = own.to(qemu);
                let _ = write!(table, "; waits for pages: median {median:.2}, 99 % {p99:.2}, together {sum:.2}");
            }
            table.push('\n');
        }
        table
    }

    /// Whether no check failed.
    pub(crate) fn holds(&self) -> bool {
        let off = self.off.as_ref().is_some_and(|off| off.verdict == Verdict::Holds);
        off && !self.hops.is_empty() && self.hops.iter().all(Hop::holds)
    }

    /// The report in one sentence.
    pub(crate) fn verdict(&self) -> &'static str {
        if self.holds() { "The guest did not notice." } else { "The migration is NOT sound." }
    }

    /// The figures, and the checks with their verdicts, as JSON.
    pub(crate) fn json(&self) -> Value {
        json!({
            "holds": self.holds(),
            "guest": self.guest,
            "first": self.first,
            "boot_ms": self.boot.as_millis() as u64,
            "hops": self.hops.iter().map(Hop::json).collect::<Vec<_>>(),
            "off": self.off.as_ref().map(Check::json),
        })
    }
}

/// The medians of the hops between two programs, in ms.
struct Medians<'a> {
    way: (&'a str, &'a str),
    hops: usize,
    measured: f64,
    felt: f64,
    /// The medians of the gap's parts.
    parts: [f64; 3],
    /// Time from the resume to the first tick of a guest that was stopped without a migration.
    in_place: Option<f64>,
    /// The medians of the figures of the guest's waits for pages.
    waits: Option<Waits>,
}

impl<'a> Medians<'a> {
    fn new(way: (&'a str, &'a str), hops: &[Hop]) -> Self {
        let hops: Vec<_> = hops.iter().filter(|hop| (&*hop.from, &*hop.to) == way).collect();
        let felt: Vec<_> = hops.iter().filter_map(|hop| hop.felt).collect();
        let part = |part: fn(&TickGap) -> f64| median(felt.iter().map(part));
        let in_place: Vec<_> = hops.iter().filter_map(|hop| hop.in_place).map(|felt| felt.after).collect();
        Self {
            way,
            hops: hops.len(),
            measured: median(hops.iter().map(|hop| hop.downtime().as_secs_f64() * 1e3)),
            felt: part(TickGap::total),
            parts: [part(|felt| felt.before), part(|felt| felt.stopped), part(|felt| felt.after)],
            waits: Waits::median(hops.iter().filter_map(|hop| hop.waits).map(|[across, _]| across).collect()),
            in_place: (!in_place.is_empty()).then(|| median(in_place.into_iter())),
        }
    }
}

impl fmt::Display for Medians<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { way: (from, to), hops, measured, felt, parts: [before, stopped, after], in_place, waits } = self;
        write!(
            f,
            "{from} → {to}, median of {hops}: measured {measured:.1} ms, felt {felt:.1} ms ({before:.1} to the stop, "
        )?;
        write!(f, "{stopped:.1} stopped, {after:.1} to the first tick)")?;
        in_place.iter().try_for_each(|share| write!(f, "; in place {share:.1} ms to the first tick"))?;
        waits.iter().try_for_each(|waits| write!(f, "; waits for pages {waits}"))?;
        f.write_str("\n")
    }
}

/// The median, of two values in the middle the larger one; not a number when there are no values.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A migration with these checks.
    pub(crate) fn hop(checks: Vec<Check>) -> Hop {
        let ram = json!({ "dirty-sync-count": 3, "transferred": 3 << 20 });
        let second = Duration::from_secs(1);
        Hop {
            from: "QEMU 10.0.2".into(),
            to: "minivmm 0.1.0".into(),
            gave_up: None,
            times: Times { begun: second * 3, arrived: second * 5, verified: second * 9 },
            migration: json!({ "status": "completed", "total-time": 1900, "downtime": 80, "ram": ram }),
            record: json!({ "to": "minivmm 0.1.0" }),
            gaps: Some([120.25, 9.0]),
            felt: Some(TickGap { before: 9.5, stopped: 80.0, after: 30.75, doubt: 0.5 }),
            in_place: None,
            waits: None,
            checks,
            said: Value::Null,
        }
    }

    fn report(checks: Vec<Check>, off: bool) -> DemoReport {
        let mut report = DemoReport::begin("Linux".into(), "QEMU 10.0.2".into(), Duration::from_secs(4));
        report.add(hop(checks));
        report.end(Check::off(off));
        report
    }

    #[test]
    fn a_failed_check_fails_the_report_and_a_skipped_or_known_one_does_not() {
        let sound = || {
            let skipped = Check::skipped("datagrams", "no right to make a tap");
            vec![Check::new("memory", true, "all"), skipped, Check::known("kernel log", "QEMU's")]
        };
        assert!(report(sound(), true).holds());
        assert!(!report(sound(), false).holds());
        let mut checks = sound();
        checks.push(Check::new("files", false, "1 wrong"));
        let unsound = report(checks, true);
        assert!(!unsound.holds());
        assert_eq!(unsound.json()["hops"][0]["checks"][3]["verdict"], "FAILED");
        assert_eq!(unsound.verdict(), "The migration is NOT sound.");
    }

    #[test]
    fn a_report_without_migration_or_end_does_not_hold() {
        let mut report = DemoReport::begin("Linux".into(), "minivmm".into(), Duration::ZERO);
        report.end(Check::off(true));
        assert!(!report.holds());
        report.add(hop(Vec::new()));
        assert!(report.holds());
        report.off = None;
        assert!(!report.holds());
    }

    #[test]
    fn hops_of_one_kind_are_summarised_by_their_median() {
        let mut report = report(Vec::new(), true);
        assert_eq!(report.table(), "");
        for stopped in [70.0, 300.0] {
            let mut hop = hop(Vec::new());
            hop.felt = hop.felt.map(|felt| TickGap { stopped, ..felt });
            report.hops.push(hop);
        }
        let line = "QEMU 10.0.2 → minivmm 0.1.0, median of 3: measured 80.0 ms, felt 120.2 ms (9.5 to the stop, 80.0 stopped, \
                    30.8 to the first tick)\n";
        assert_eq!(report.table(), line);
    }

    /// By hand: the median of two is the larger one, 80 + 40.25 and 160 + 40.25; less 20.25 these are 100 and 180.
    #[test]
    fn the_felt_downtime_is_compared_with_qemus() {
        let mut report = DemoReport::begin("Linux".into(), "minivmm 0.1.0".into(), Duration::ZERO);
        for (name, stopped) in
            [("minivmm 0.1.0", 70.0), ("minivmm 0.1.0", 80.0), ("QEMU 10.0.2", 9.0), ("QEMU 10.0.2", 160.0)]
        {
            let mut hop = Hop { from: name.into(), to: name.into(), ..hop(Vec::new()) };
            hop.felt = hop.felt.map(|felt| TickGap { stopped, ..felt });
            report.hops.push(hop);
        }
        assert!(report.table().ends_with("\nfelt, as a ratio to QEMU's: 0.60\n"), "{}", report.table());
        for hop in &mut report.hops {
            hop.in_place = Some(TickGap { before: 1.0, stopped: 2.0, after: 20.25, doubt: 0.0 });
        }
        let table = report.table();
        assert!(table.contains(" to the first tick); in place 20.2 ms to the first tick\n"), "{table}");
        assert!(table.ends_with("\nfelt, as a ratio to QEMU's: 0.60; less the time in place 0.56\n"), "{table}");
    }

    /// By hand: 9.5 + 80.0 + 30.75; and the guest's own gap where the parts are unknown.
    #[test]
    fn the_page_shows_the_felt_downtime() {
        let mut hop = hop(Vec::new());
        let parts =
            json!({ "before-ms": 9.5, "stopped-ms": 80.0, "after-ms": 30.75, "gap-ms": 120.25, "usual-gap-ms": 9.0 });
        assert_eq!(hop.record(), json!({ "to": "minivmm 0.1.0", "guest": parts }));
        (hop.felt, hop.gaps) = (None, Some([33.0, 9.0]));
        assert_eq!(hop.record()["guest"], json!({ "gap-ms": 33.0, "usual-gap-ms": 9.0 }));
    }

    #[test]
    fn figures_and_verdicts_have_a_line_each() {
        let mut hop = hop(vec![Check::skipped("datagrams", "no right to make a tap")]);
        hop.gave_up = Some("gave up: a higher downtime limit would help".into());
        hop.in_place = Some(TickGap { before: 1.0, stopped: 900.0, after: 20.25, doubt: 0.5 });
        assert_eq!(hop.json()["slowdown_percent"], Value::Null, "QEMU has no such figure");
        hop.migration["guest-slowdown"] = json!({ "throttled": 0, "rehearsed": 23_750, "percent": 1.25 });
        assert_eq!(hop.json()["slowdown_percent"], 1.25);
        let text = hop.to_string();
        let lines = [
            "first try            gave up: a higher downtime limit would help",
            "rounds               3",
            "sent                 3.0 MiB",
            "total time           1900 ms",
            "downtime, measured   80 ms",
            "downtime, as felt    120.2 ms (largest gap of a 1 ms tick; 9.0 ms without migration)",
            "the migration's gap  120.2 ms: 9.5 to the stop, 80.0 stopped, 30.8 to the first tick",
            "in place             20.2 ms to the first tick (stopped and resumed without a migration, its memory rewritten)",
            "skipped  datagrams: no right to make a tap",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    }
}
