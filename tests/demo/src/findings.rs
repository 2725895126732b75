//! What the demo of a Linux guest found, and what follows from it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::linux::Mark;
use crate::report::{Check, DemoReport, migration_figures};

/// Clocks may differ by this much more than what the measurement leaves open.
const DRIFT: Duration = Duration::from_millis(20);

/// Everything that was measured.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) boot: Duration,
    /// The guest's clocks and ticks up to the migration.
    pub(crate) before: Mark,
    /// Those from there on.
    pub(crate) after: Mark,
    /// The guest's verification of what it did.
    pub(crate) verified: Value,
    /// `query-migrate` of the source, at the end.
    pub(crate) migration: Value,
    /// Run state of the source, at the end.
    pub(crate) left_behind: String,
    /// What the network's peer received, or why there is no network.
    pub(crate) packets: Result<Value, String>,
    /// Whether the destination ended well when the guest powered off.
    pub(crate) off: bool,
}

impl Findings {
    pub(crate) fn report(&self) -> DemoReport {
        let tick = |mark: &Mark| mark.content["tick"]["max_gap_us"].as_f64().unwrap_or(f64::NAN) / 1000.0;
        let (felt, usual) = (tick(&self.after), tick(&self.before));
        let mut figures = migration_figures(self.boot, &self.migration);
        let note = "largest gap of a 1 ms tick";
        figures.push(("downtime, as felt", format!("{felt:.1} ms ({note}; {usual:.1} ms without migration)")));
        let checks = vec![
            self.memory(),
            self.disk(),
            self.network(),
            self.works_on(),
            self.pace(),
            self.jumps(),
            self.log(),
            self.one(),
            self.end(),
        ];
        let ram = &self.migration["ram"];
        let numbers = json!({
            "boot_ms": self.boot.as_millis() as u64,
            "rounds": ram["dirty-sync-count"],
            "bytes": ram["transferred"],
            "total_ms": self.migration["total-time"],
            "downtime_ms": self.migration["downtime"],
            "downtime_felt_ms": felt,
            "usual_gap_ms": usual,
            "packets_received": self.packets.as_ref().ok(),
            "migration": self.migration,
            "guest": self.verified,
        });
        DemoReport { figures, checks, numbers }
    }

    fn memory(&self) -> Check {
        let memory = &self.verified["memory"];
        let detail = format!("{} pages, {} writes, {} wrong", memory["pages"], memory["writes"], memory["mismatches"]);
        Check::new("memory verified", memory["mismatches"] == 0 && memory["writes"].as_u64() > Some(0), detail)
    }

    fn disk(&self) -> Check {
        let disk = &self.verified["disk"];
        let detail = format!("{} files, {} writes, {} wrong", disk["files"], disk["writes"], disk["bad"]);
        let good = disk["bad"] == 0 && disk["files"].as_u64() > Some(0) && disk["errors"] == json!([]);
        Check::new("disk verified", good, detail)
    }

    fn network(&self) -> Check {
        const WHAT: &str = "packets";
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
        // What the peer sends while the guest stands still goes to the source's tap: counted, and no fault.
        let unanswered = came.saturating_sub(back);
        let good = sent > 0 && lost == 0 && doubled == 0 && corrupt == 0 && net["errors"] == json!([]);
        let detail =
            format!("{sent} sent, {lost} lost, {unanswered} echoes lost, {doubled} doubled, {corrupt} damaged");
        Check::new(WHAT, good, detail)
    }

    /// Between two readings the guest's clock must advance as the host's does. It may stand still during the downtime.
    fn pace(&self) -> Check {
        let nanoseconds = |mark: &Mark| mark.content["clock"]["monotonic_ns"].as_u64().unwrap_or(0);
        let guest = Duration::from_nanos(nanoseconds(&self.after).saturating_sub(nanoseconds(&self.before)));
        let downtime = Duration::from_millis(self.migration["downtime"].as_u64().unwrap_or(0));
        let least = (self.after.asked - self.before.answered).saturating_sub(downtime + DRIFT);
        let most = self.after.answered - self.before.asked + DRIFT;
        let detail = format!("guest {guest:.3?}, host between {least:.3?} and {most:.3?}");
        Check::new("clock keeps time", (least..=most).contains(&guest), detail)
    }

    /// Its timers fire at the destination: a tick in 50 ms at the least, where one a millisecond is asked for.
    fn works_on(&self) -> Check {
        let ticks = self.after.content["tick"]["ticks"].as_u64().unwrap_or(0);
        let least = (self.after.asked - self.before.answered).as_millis() as u64 / 50;
        Check::new(
            "works on",
            ticks >= least,
            format!("{ticks} ticks since the migration began, at least {least} expected"),
        )
    }

    fn jumps(&self) -> Check {
        let tick = &self.after.content["tick"];
        let good = tick["backward"] == 0 && tick["max_apart_us"].as_u64().is_some_and(|apart| apart < 1000);
        Check::new(
            "clocks never jump",
            good,
            format!("{} steps back, {} µs apart", tick["backward"], tick["max_apart_us"]),
        )
    }

    /// Only what came with the migration counts: some kernels complain at boot.
    fn log(&self) -> Check {
        let lines = |mark: &Mark| mark.content["log"].as_array().cloned().unwrap_or_default();
        let earlier = lines(&self.before);
        let new = lines(&self.after).into_iter().filter(|line| !earlier.contains(line));
        let new: Vec<_> = new.map(|line| line.as_str().unwrap_or_default().to_owned()).collect();
        Check::new(
            "kernel log clean",
            new.is_empty(),
            if new.is_empty() { "no complaint".into() } else { new.join("; ") },
        )
    }

    fn one(&self) -> Check {
        Check::new("one guest", self.left_behind == "postmigrate", format!("the source is {}", self.left_behind))
    }

    fn end(&self) -> Check {
        Check::new(
            "power-off",
            self.off,
            if self.off { "the destination ended well" } else { "the destination failed" },
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn good() -> Findings {
        let begun = Instant::now();
        let mark = |second: u64| Mark {
            asked: begun + Duration::from_secs(second),
            answered: begun + Duration::from_millis(second * 1000 + 10),
            content: json!({
                "clock": { "monotonic_ns": 5_000_000_000 + second * 1_000_000_000 },
                "tick": { "ticks": 6000, "max_gap_us": 90_000, "backward": 0, "max_apart_us": 3 },
                "log": ["complained at boot"],
            }),
        };
        Findings {
            boot: Duration::from_secs(1),
            before: mark(0),
            after: mark(7),
            verified: json!({
                "memory": { "pages": 1, "mismatches": 0, "writes": 9 },
                "disk": { "files": 3, "bad": 0, "writes": 9, "errors": [] },
                "net": { "sent": 10, "errors": [], "echoes": { "unique": 8, "duplicates": 0, "corrupt": 0 } },
            }),
            migration: json!({ "downtime": 80, "total-time": 900, "ram": {} }),
            left_behind: "postmigrate".into(),
            packets: Ok(json!({ "unique": 10, "duplicates": 0, "corrupt": 0 })),
            off: true,
        }
    }

    #[test]
    fn a_sound_migration_holds_and_each_single_fault_is_noticed() {
        assert!(good().report().holds(), "{}", good().report());
        let faults: [fn(&mut Findings); 12] = [
            |f| f.verified["memory"]["mismatches"] = json!(1),
            |f| f.verified["memory"]["writes"] = json!(0),
            |f| f.verified["disk"]["bad"] = json!(1),
            |f| f.verified["disk"]["errors"] = json!(["I/O error"]),
            |f| f.verified["net"]["sent"] = json!(11),
            |f| f.verified["net"]["echoes"]["duplicates"] = json!(1),
            |f| f.after.content["clock"]["monotonic_ns"] = json!(11_800_000_000u64),
            |f| f.after.content["clock"]["monotonic_ns"] = json!(12_100_000_000u64),
            |f| f.after.content["tick"]["backward"] = json!(1),
            |f| f.after.content["tick"]["ticks"] = json!(20),
            |f| f.after.content["log"] = json!(["complained at boot", "soft lockup"]),
            |f| f.left_behind = "running".into(),
        ];
        for (number, fault) in faults.iter().enumerate() {
            let mut findings = good();
            fault(&mut findings);
            assert!(!findings.report().holds(), "fault {number} was not noticed");
        }
    }
}
