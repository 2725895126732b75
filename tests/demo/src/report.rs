//! A report of the demo: figures, and a verdict on each thing that must hold.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

/// What a run of the demo found.
#[derive(Debug)]
pub(crate) struct DemoReport {
    /// Names and values for the reader.
    pub(crate) figures: Vec<(&'static str, String)>,
    /// What must hold.
    pub(crate) checks: Vec<Check>,
    /// The same numbers and more, for programs.
    pub(crate) numbers: Value,
}

/// One thing that must hold.
#[derive(Debug)]
pub(crate) struct Check {
    what: &'static str,
    verdict: GuestVerdict,
    detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GuestVerdict {
    Holds,
    Fails,
    Skipped,
}

impl Check {
    /// A verdict, with what it rests on.
    pub(crate) fn new(what: &'static str, holds: bool, detail: impl Into<String>) -> Self {
        Self { what, verdict: if holds { GuestVerdict::Holds } else { GuestVerdict::Fails }, detail: detail.into() }
    }

    /// None, because of `reason`.
    pub(crate) fn skipped(what: &'static str, reason: impl Into<String>) -> Self {
        Self { what, verdict: GuestVerdict::Skipped, detail: reason.into() }
    }
}

impl GuestVerdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Holds => "ok",
            Self::Fails => "FAILED",
            Self::Skipped => "skipped",
        }
    }
}

impl DemoReport {
    /// Whether no check failed.
    pub(crate) fn holds(&self) -> bool {
        self.checks.iter().all(|check| check.verdict != GuestVerdict::Fails)
    }

    /// The numbers, and the checks with their verdicts.
    pub(crate) fn json(&self) -> Value {
        let checks = self.checks.iter();
        let checks = checks.map(|c| json!({ "check": c.what, "verdict": c.verdict.as_str(), "detail": c.detail }));
        json!({ "holds": self.holds(), "checks": checks.collect::<Vec<_>>(), "numbers": self.numbers })
    }
}

impl fmt::Display for DemoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.figures {
            writeln!(f, "{name:<20} {value}")?;
        }
        for check in &self.checks {
            writeln!(f, "{:<8} {}: {}", check.verdict.as_str(), check.what, check.detail)?;
        }
        let verdict = if self.holds() { "The guest did not notice." } else { "The migration is NOT sound." };
        writeln!(f, "{verdict}")
    }
}

/// The figures of `query-migrate` that every guest has.
pub(crate) fn migration_figures(boot: Duration, migration: &Value) -> Vec<(&'static str, String)> {
    let ram = &migration["ram"];
    let mib = ram["transferred"].as_f64().unwrap_or(f64::NAN) / f64::from(1 << 20);
    vec![
        ("boot", format!("{:.1} s", boot.as_secs_f64())),
        ("rounds", ram["dirty-sync-count"].to_string()),
        ("sent", format!("{mib:.1} MiB")),
        ("total time", format!("{} ms", migration["total-time"])),
        ("downtime, measured", format!("{} ms", migration["downtime"])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_check_fails_the_report_and_a_skipped_one_does_not() {
        let skipped = || Check::skipped("packets", "no right to make a tap");
        let mut report = DemoReport {
            figures: vec![("rounds", "3".into())],
            checks: vec![Check::new("memory", true, "all"), skipped()],
            numbers: json!({}),
        };
        assert!(report.holds());
        assert!(report.to_string().contains("skipped  packets: no right to make a tap"));
        report.checks.push(Check::new("disk", false, "1 wrong"));
        assert!(!report.holds());
        assert_eq!(report.json()["checks"][2]["verdict"], "FAILED");
    }
}
