//! Output of a plan as a table and as JSON.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};
use vmstate::migrate::plan::{MOST_ROUNDS, Pattern, PlannedRound, Scenario};

use super::Shown;
use crate::cli::units::{bits, rate, size, time};

/// Rounds shown at the beginning and at the end of a long table.
const FIRST: usize = 12;
const LAST: usize = 6;

/// Prints the table, the verdict, and what would help.
pub(super) fn text(shown: &Shown<'_>) -> String {
    let rounds = &shown.plan.rounds;
    let mut text = format!("guest    {}\nwire     {}\n", guest(shown.scenario), wire(shown.scenario));
    let (setup, after_round) = (shown.scenario.setup, shown.scenario.after_round);
    if setup + after_round > Duration::ZERO {
        text += &format!("besides  {} before the first page, {} after each round\n", time(setup), time(after_round));
    }
    text.push('\n');
    text += "round     begins      takes        sent        left    dirtied/s  throttle  pause if now\n";
    let mut begins = shown.plan.report.setup;
    for (index, round) in rounds.iter().enumerate() {
        if index < FIRST || index + LAST >= rounds.len() || rounds.len() <= FIRST + LAST + 1 {
            text += &row(index, begins, round);
        } else if index == FIRST {
            text += &format!("  …   {} rounds\n", rounds.len() - FIRST - LAST);
        }
        begins = round.over;
    }
    let (verdict, remedies) = verdict(shown);
    text += &format!("\nverdict  {verdict}\n");
    for (index, remedy) in remedies.iter().enumerate() {
        text += &format!("{:<8} {remedy}\n", if index == 0 { "enough" } else { "or" });
    }
    text.truncate(text.trim_end().len());
    text
}

fn row(index: usize, begins: Duration, round: &PlannedRound) -> String {
    let mut row = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        row,
        "{:>5} {:>10} {:>10} {:>11} {:>11} {:>12} {:>8} % {:>12}",
        index + 1,
        time(begins),
        time(round.round.duration),
        size(round.round.bytes),
        size(round.remaining_bytes),
        rate(round.dirty_bytes_per_second),
        round.throttle_percent,
        time(round.expected_downtime)
    );
    row
}

/// Describes the guest in a line.
pub(super) fn guest(scenario: &Scenario) -> String {
    let Scenario { memory, zero, vcpus, writes, .. } = *scenario;
    let mut line = format!("{} of memory", size(memory));
    if zero > 0 {
        line += &format!(", {} of it zero", size(zero));
    }
    line += if vcpus == 1 { ", 1 vCPU" } else { "" };
    if vcpus != 1 {
        line += &format!(", {vcpus} vCPUs");
    }
    if writes.bytes_per_second == 0 {
        return line + ", writes nothing";
    }
    let pattern = match writes.pattern {
        Pattern::Bursty => "in bursts",
        Pattern::Phased => "in phases",
        Pattern::HotSpot => "most of it in a hot spot",
        _ => "steadily",
    };
    line + &format!(
        ", writes {} to {}, {pattern}",
        rate(writes.bytes_per_second),
        size(writes.working_set.min(memory - zero))
    )
}

/// Describes the wire in a line.
pub(super) fn wire(scenario: &Scenario) -> String {
    let connection = scenario.connection;
    let mut line = format!("{}, round trip {}", bits(connection.bytes_per_second), time(connection.round_trip));
    if !connection.jitter.is_zero() {
        line += &format!(" and up to {} more", time(connection.jitter));
    }
    if connection.loss > 0.0 {
        line += &format!(", {} % lost", connection.loss * 100.0);
    }
    if let Some(limit) = scenario.parameters.max_bandwidth {
        line += &format!(", limited to {}", rate(limit.get()));
    }
    line
}

/// Says how the migration ends, and what would let it complete.
pub(super) fn verdict(shown: &Shown<'_>) -> (String, Vec<String>) {
    let (plan, limit) = (shown.plan, shown.scenario.parameters.downtime_limit);
    let rounds = if plan.rounds.len() == 1 { "1 round".into() } else { format!("{} rounds", plan.rounds.len()) };
    let slowdown = plan.report.slowdown.highest_throttle_percent;
    let throttled = if slowdown > 0 { format!(", throttled by up to {slowdown} %") } else { String::new() };
    if let Some(downtime) = plan.report.downtime {
        let verdict = format!(
            "completes: {rounds}, {} in all, {} sent, downtime {} of {} allowed{throttled}",
            time(plan.report.total),
            size(plan.report.bytes),
            time(downtime.total()),
            time(limit)
        );
        return (verdict, Vec::new());
    }
    let set = shown.scenario.parameters;
    let reason = plan.reason.as_deref().unwrap_or("it fails");
    let verdict = match plan.rounds.last() {
        Some(last)
            if set.max_rounds.is_none() && set.deadline.is_none() && rounds == format!("{MOST_ROUNDS} rounds") =>
        {
            format!(
                "does not converge: after {rounds} and {} the guest would still be paused for {} of {} allowed{throttled}",
                time(plan.report.total),
                time(last.expected_downtime),
                time(limit)
            )
        }
        _ => format!("after {rounds} and {}, {reason}{throttled}", time(plan.report.total)),
    };
    let remedies = shown.remedies.unwrap_or_default();
    let mut enough = Vec::new();
    if let Some(speed) = remedies.bytes_per_second {
        enough.push(match set.max_bandwidth {
            Some(_) => format!("--bandwidth {0} --max-bandwidth {1}", flag_bits(speed), flag_size(speed)),
            None => format!("--bandwidth {}", flag_bits(speed)),
        });
    }
    if let Some(limit) = remedies.downtime_limit {
        enough.push(format!("--downtime-limit {}ms", limit.as_millis() + 1));
    }
    if let Some(percent) = remedies.auto_converge {
        enough.push(format!("--auto-converge, which throttles by up to {percent} %"));
    }
    if enough.is_empty() {
        enough.push("no single change: neither a faster wire, nor a longer pause, nor --auto-converge".into());
    }
    (verdict, enough)
}

/// Prints the plan as JSON: times in ms and sizes in bytes, as in QMP.
pub(super) fn json(shown: &Shown<'_>) -> Value {
    let Shown { scenario, plan, remedies } = shown;
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let rounds = plan.rounds.iter().map(|round| {
        json!({
            "over": milliseconds(round.over),
            "duration": milliseconds(round.round.duration),
            "transferred": round.round.bytes,
            "normal": round.round.pages.normal,
            "duplicate": round.round.pages.zero,
            "dirtied": round.round.dirtied,
            "remaining": round.remaining_bytes,
            "bytes-per-second": round.bytes_per_second,
            "dirty-bytes-per-second": round.dirty_bytes_per_second,
            "cpu-throttle-percentage": round.throttle_percent,
            "expected-downtime": milliseconds(round.expected_downtime),
        })
    });
    json!({
        "guest": guest(scenario),
        "wire": wire(scenario),
        "completes": plan.is_completed(),
        "verdict": verdict(shown).0,
        "total-time": milliseconds(plan.report.total),
        "downtime": plan.report.downtime.map(|downtime| milliseconds(downtime.total())),
        "downtime-limit": milliseconds(scenario.parameters.downtime_limit),
        "transferred": plan.report.bytes,
        "throttled": milliseconds(plan.report.slowdown.throttled),
        "highest-throttle": plan.report.slowdown.highest_throttle_percent,
        "rounds": rounds.collect::<Vec<_>>(),
        "enough": remedies.map(|remedies| json!({
            "bandwidth": remedies.bytes_per_second,
            "downtime-limit": remedies.downtime_limit.map(milliseconds),
            "auto-converge": remedies.auto_converge,
        })),
    })
}

/// Formats a rate for `--bandwidth` in whole megabits, rounded up.
fn flag_bits(bytes_per_second: u64) -> String {
    format!("{}M", bytes_per_second.saturating_mul(8).div_ceil(1_000_000))
}

/// Formats a size for `--max-bandwidth`, rounded up.
fn flag_size(bytes: u64) -> String {
    format!("{}K", bytes.div_ceil(1024))
}
