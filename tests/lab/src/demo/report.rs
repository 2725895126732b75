//! What the demo found: the numbers, and a verdict on each thing that must hold.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::direct::Timed;

/// Clocks may differ by this much more than what the measurement leaves open.
const DRIFT: Duration = Duration::from_millis(20);

/// Everything the demo measured.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) boot: Duration,
    /// The guest's clocks and ticks up to the migration.
    pub(super) before: Timed,
    /// Those from there on.
    pub(super) after: Timed,
    /// The guest's verification of what it did.
    pub(super) verified: Value,
    /// `query-migrate` of the source, at the end.
    pub(super) migration: Value,
    /// Run state of the source, at the end.
    pub(super) left_behind: String,
    /// What the network's peer received.
    pub(super) packets: Option<Value>,
    /// Why there is no network.
    pub(super) no_network: Option<String>,
    /// Whether the destination ended well when the guest powered off.
    pub(super) off: bool,
}

/// One thing that must hold.
#[derive(Debug)]
struct Check {
    what: &'static str,
    verdict: Verdict,
    detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Holds,
    Fails,
    Skipped,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Holds => "ok",
            Self::Fails => "FAILED",
            Self::Skipped => "skipped",
        }
    }
}

impl Report {
    /// Whether no check failed.
    pub(super) fn holds(&self) -> bool {
        self.checks().iter().all(|check| check.verdict != Verdict::Fails)
    }

    /// The numbers, and the checks with their verdicts.
    pub(super) fn json(&self) -> Value {
        let checks = self.checks().into_iter();
        let checks = checks.map(|c| json!({ "check": c.what, "verdict": c.verdict.as_str(), "detail": c.detail }));
        let (ram, after) = (&self.migration["ram"], &self.after.content);
        json!({
            "holds": self.holds(),
            "boot_ms": self.boot.as_millis() as u64,
            "rounds": ram["dirty-sync-count"],
            "bytes": ram["transferred"],
            "total_ms": self.migration["total-time"],
            "downtime_ms": self.migration["downtime"],
            "downtime_felt_us": after["tick"]["max_gap_us"],
            "usual_gap_us": self.before.content["tick"]["max_gap_us"],
            "packets_received": self.packets,
            "checks": checks.collect::<Vec<_>>(),
            "migration": self.migration,
            "guest": self.verified,
        })
    }

    fn checks(&self) -> Vec<Check> {
        let (memory, disk, tick) = (&self.verified["memory"], &self.verified["disk"], &self.after.content["tick"]);
        let lines = |timed: &Timed| timed.content["log"].as_array().cloned().unwrap_or_default();
        let earlier = lines(&self.before);
        let log = lines(&self.after).into_iter().filter(|line| !earlier.contains(line));
        let log: Vec<_> = log.map(|line| line.as_str().unwrap_or_default().to_owned()).collect();
        vec![
            check(
                "memory verified",
                memory["mismatches"] == 0,
                format!("{} pages, {} writes, {} wrong", memory["pages"], memory["writes"], memory["mismatches"]),
            ),
            check(
                "disk verified",
                disk["bad"] == 0 && disk["files"].as_u64() > Some(0) && disk["errors"] == json!([]),
                format!("{} files, {} writes, {} wrong", disk["files"], disk["writes"], disk["bad"]),
            ),
            self.network(),
            self.clocks(),
            check(
                "clocks never jump",
                tick["backward"] == 0 && tick["max_apart_us"].as_u64() < Some(1000),
                format!("{} steps back, {} µs apart at most", tick["backward"], tick["max_apart_us"]),
            ),
            check(
                "kernel log clean",
                log.is_empty(),
                if log.is_empty() { "no complaint".into() } else { log.join("; ") },
            ),
            check("one guest", self.left_behind == "postmigrate", format!("the source is {}", self.left_behind)),
            check("power-off at the destination", self.off, "its process ended".into()),
        ]
    }

    fn network(&self) -> Check {
        const WHAT: &str = "packets";
        let Some(received) = &self.packets else {
            let detail = self.no_network.clone().unwrap_or_default();
            return Check { what: WHAT, verdict: Verdict::Skipped, detail };
        };
        let net = &self.verified["net"];
        let count = |value: &Value| value.as_u64().unwrap_or(0);
        let (sent, came, back) = (count(&net["sent"]), count(&received["unique"]), count(&net["echoes"]["unique"]));
        let doubled = count(&received["duplicates"]) + count(&net["echoes"]["duplicates"]);
        let corrupt = count(&received["corrupt"]) + count(&net["echoes"]["corrupt"]);
        let lost = sent.saturating_sub(came);
        // What the peer sends while the guest stands still may find a full ring: counted, and no fault.
        let unanswered = came.saturating_sub(back);
        let good = sent > 0 && lost == 0 && doubled == 0 && corrupt == 0 && net["errors"] == json!([]);
        let detail =
            format!("{sent} sent, {lost} lost, {unanswered} echoes lost, {doubled} doubled, {corrupt} damaged");
        check(WHAT, good, detail)
    }

    /// Between two readings the guest's clock must advance as the host's does. It may stand still during the downtime.
    fn clocks(&self) -> Check {
        let nanoseconds = |timed: &Timed| timed.content["clock"]["monotonic_ns"].as_u64().unwrap_or(0);
        let guest = Duration::from_nanos(nanoseconds(&self.after).saturating_sub(nanoseconds(&self.before)));
        let downtime = Duration::from_millis(self.migration["downtime"].as_u64().unwrap_or(0));
        let least = (self.after.asked - self.before.answered).saturating_sub(downtime + DRIFT);
        let most = self.after.answered - self.before.asked + DRIFT;
        let detail = format!("guest {guest:.3?}, host between {least:.3?} and {most:.3?}");
        check("clock keeps time", (least..=most).contains(&guest), detail)
    }
}

fn check(what: &'static str, holds: bool, detail: String) -> Check {
    Check { what, verdict: if holds { Verdict::Holds } else { Verdict::Fails }, detail }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ram, after) = (&self.migration["ram"], &self.after.content);
        let milliseconds = |value: &Value| value.as_f64().unwrap_or(f64::NAN) / 1000.0;
        let mib = ram["transferred"].as_f64().unwrap_or(f64::NAN) / f64::from(1 << 20);
        writeln!(f, "boot                {:.1} s", self.boot.as_secs_f64())?;
        writeln!(f, "rounds              {}", ram["dirty-sync-count"])?;
        writeln!(f, "sent                {mib:.1} MiB")?;
        writeln!(f, "total time          {} ms", self.migration["total-time"])?;
        writeln!(f, "downtime, measured  {} ms", self.migration["downtime"])?;
        let usual = milliseconds(&self.before.content["tick"]["max_gap_us"]);
        let felt = milliseconds(&after["tick"]["max_gap_us"]);
        writeln!(f, "downtime, as felt   {felt:.1} ms (largest gap of a 1 ms tick; {usual:.1} ms without migration)")?;
        for check in self.checks() {
            writeln!(f, "{:<8} {}: {}", check.verdict.as_str(), check.what, check.detail)?;
        }
        let verdict = if self.holds() { "The guest did not notice." } else { "The migration is NOT sound." };
        writeln!(f, "{verdict}")
    }
}
