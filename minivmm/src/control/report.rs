//! Prints the published state with QMP's names and units.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use vmstate::migrate::{
    Downtime, PARAMETERS, PageWaits, ParameterUnit, ParameterValue, Parameters, Progress, Round, SectionReport,
    Slowdown, Takeover,
};
use vmstate::ram::{HeatMap, XbzrleCount};

use crate::config::Tls;
use crate::control::jobs;
use crate::memory::PAGE_SIZE;
use crate::migration::disk::DiskFigures;
use crate::vm::{Event, MigrationInfo, MigrationStatus, RunState};

/// Version of QEMU that clients look for, and the version of minivmm.
pub(super) fn version() -> Value {
    json!({
        "qemu": {"micro": 0, "minor": 0, "major": 10},
        "package": concat!("minivmm ", env!("CARGO_PKG_VERSION")),
    })
}

/// Body of `query-status`.
pub(super) fn status(state: RunState) -> Value {
    json!({"status": state.as_str(), "running": state == RunState::Running})
}

/// Body of `query-migrate`: times in milliseconds, sizes in bytes, `mbps` in 10⁶ bits a second.
///
/// As QEMU, it shows figures only from the first round on, and only while they mean something.
pub(super) fn migration(info: &MigrationInfo) -> Value {
    use MigrationStatus::{
        Active, Cancelled, Cancelling, Completed, Device, Failed, None, PostcopyActive, PostcopyPaused,
        PostcopyRecover, PreSwitchover, Setup, Unacknowledged, Undecided,
    };
    let mut body = json!({});
    let (status, figures) = (info.status(), &info.figures);
    if status != None {
        body["status"] = status.as_str().into();
    }
    match status {
        None | Setup | Failed | Cancelled | Unacknowledged | Undecided => {}
        Active | PreSwitchover | Device | PostcopyActive | PostcopyPaused | PostcopyRecover | Cancelling
        | Completed => {
            body["total-time"] = milliseconds(figures.elapsed);
            body["setup-time"] = milliseconds(figures.setup);
            if let Some(downtime) = figures.downtime {
                body["downtime"] = milliseconds(downtime.total());
                body["downtime-parts"] = shown(parts(downtime));
            }
            if let Some(takeover) = figures.takeover {
                body["takeover-parts"] = shown(takeover_parts(takeover));
            }
            if let Some(downtime) = figures.expected_downtime {
                body["expected-downtime"] = milliseconds(downtime);
            }
            // QEMU has no such prediction.
            if let Some(total) = figures.expected_total {
                body["expected-total-time"] = milliseconds(total);
            }
            if figures.throttle_percent > 0 {
                body["cpu-throttle-percentage"] = figures.throttle_percent.into();
            }
            if figures.slowdown != Slowdown::default() {
                body["guest-slowdown"] = slowdown(figures);
            }
            body["ram"] = ram(figures);
            if let Some(figures) = info.disk {
                body["disk"] = disk(figures);
            }
            if figures.page_waits.count > 0 {
                body["page-waits"] = page_waits(figures.page_waits);
            }
            if let Some(time) = &info.block_time {
                body["postcopy-blocktime"] = milliseconds(time.all);
                body["postcopy-vcpu-blocktime"] = time.each.iter().copied().map(milliseconds).collect();
            }
            if let Some(count) = figures.xbzrle {
                body["xbzrle-cache"] = xbzrle(count);
            }
        }
    }
    if let Some(error) = &info.error {
        body["error-desc"] = error.as_str().into();
    }
    body
}

/// What a guest in post-copy has waited for pages, at its destination. QEMU has such figures from 10.1 on, by other names.
fn page_waits(PageWaits { count, median, p99, longest, .. }: PageWaits) -> Value {
    json!({"count": count, "median-us": microseconds(median), "p99-us": microseconds(p99), "longest-us": microseconds(longest)})
}

/// Most rounds in the answer: the last ones.
const ROUNDS_MAX: usize = 4096;

/// Body of `query-migrate-rounds`, which QEMU lacks: the rounds that are over, in bytes, pages and microseconds.
pub(super) fn rounds(rounds: &[Round]) -> Value {
    let last = &rounds[rounds.len().saturating_sub(ROUNDS_MAX)..];
    last.iter()
        .map(|round| {
            json!({
                "duration-us": microseconds(round.duration),
                "bytes": round.bytes,
                "normal": round.pages.normal,
                "zero": round.pages.zero,
                "dirtied-bytes": round.dirtied.saturating_mul(PAGE_SIZE),
            })
        })
        .collect()
}

/// Body of `query-migrate-sections`, which QEMU lacks: sections sent whole in the pause, in bytes and nanoseconds.
pub(super) fn sections(sections: &[SectionReport]) -> Value {
    let shown = sections.iter().map(|section| {
        let mut shown = json!({"section": section.idstr, "instance": section.instance, "bytes": section.bytes});
        for (name, time) in [("save-ns", section.saved), ("load-ns", section.loaded)] {
            if let Some(time) = time {
                shown[name] = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).into();
            }
        }
        shown
    });
    shown.collect()
}

/// Body of `query-migrate-heat`, which QEMU lacks: pages sent of each part of guest memory.
pub(super) fn heat(heat: &HeatMap) -> Value {
    json!({"cell-bytes": heat.cell_bytes, "pages": heat.pages})
}

/// Parts of the downtime.
pub(super) fn parts(downtime: Downtime) -> [(&'static str, Duration); 6] {
    [
        ("pause", downtime.pause),
        ("sync", downtime.sync),
        ("pages", downtime.pages),
        ("devices", downtime.devices),
        ("confirm", downtime.confirm),
        ("commit", downtime.commit),
    ]
}

/// Parts of the downtime that the destination has measured.
pub(super) fn takeover_parts(takeover: Takeover) -> [(&'static str, Duration); 2] {
    [("machine", takeover.machine), ("resume", takeover.resume)]
}

/// Prints parts of the downtime in microseconds. QEMU has no such objects.
fn shown<const COUNT: usize>(parts: [(&'static str, Duration); COUNT]) -> Value {
    Value::Object(parts.map(|(part, time)| (part.into(), microseconds(time))).into_iter().collect())
}

/// Time for which vCPUs were stopped before the pause, on average, in microseconds, and its share of the elapsed time in
/// percent. QEMU has no such object.
fn slowdown(figures: &Progress) -> Value {
    let slowdown = figures.slowdown;
    json!({
        "throttled": microseconds(slowdown.throttled),
        "rehearsed": microseconds(slowdown.rehearsed),
        "percent": slowdown.share(figures.elapsed) * 100.0,
        "highest-throttle": slowdown.highest_throttle_percent,
    })
}

fn xbzrle(count: XbzrleCount) -> Value {
    json!({
        "cache-size": count.cache_bytes,
        "bytes": count.bytes,
        "pages": count.pages,
        "cache-miss": count.cache_miss,
        "cache-miss-rate": count.cache_miss_rate,
        "encoding-rate": count.encoding_rate,
        "overflow": count.overflow,
    })
}

fn ram(figures: &Progress) -> Value {
    // QEMU does not count pages that were sent as changes among the normal ones.
    let normal = figures.normal_pages.saturating_sub(figures.xbzrle.map_or(0, |count| count.encoded));
    json!({
        "transferred": figures.bytes,
        "remaining": figures.remaining_bytes,
        "total": figures.ram_bytes,
        "duplicate": figures.zero_pages,
        "normal": normal,
        "normal-bytes": normal.saturating_mul(PAGE_SIZE),
        "dirty-pages-rate": figures.dirty_pages_per_second,
        "mbps": figures.bytes_per_second as f64 * 8.0 / 1e6,
        "dirty-sync-count": figures.rounds,
        "pages-per-second": figures.bytes_per_second / PAGE_SIZE,
        "page-size": PAGE_SIZE,
    })
}

/// Figures of copied disks, as QEMU gave them up to 9.0, without those of its `MigrationStats` that only memory has.
fn disk(DiskFigures { total, transferred, remaining }: DiskFigures) -> Value {
    json!({"transferred": transferred, "remaining": remaining, "total": total})
}

/// Body of `query-migrate-parameters`.
pub(super) fn parameters(parameters: &Parameters, tls: &Tls) -> Value {
    let shown = PARAMETERS.iter().filter(|parameter| parameter.unit != ParameterUnit::Flag);
    let shown = shown.map(|parameter| (parameter.name.into(), value(&parameter.of(parameters))));
    let of_tls = Tls::PARAMETERS.iter().map(|(name, _)| ((*name).into(), tls.text(name).into()));
    Value::Object(shown.chain(of_tls).collect())
}

/// Prints a parameter's value for commands and answers.
pub(super) fn value(value: &ParameterValue) -> Value {
    match value {
        ParameterValue::Time(time) => milliseconds(*time),
        ParameterValue::Number(number) => (*number).into(),
        ParameterValue::Word(word) => word.as_ref().into(),
        ParameterValue::Flag(on) => (*on).into(),
    }
}

/// Returns the message for `event`, or `None` if QMP has no such event.
pub(super) fn event(event: Event, at: SystemTime) -> Option<Value> {
    let (name, data) = match event {
        Event::RunState { new: RunState::Running, .. } => ("RESUME", None),
        Event::RunState { new: RunState::Shutdown, .. } => {
            ("SHUTDOWN", Some(json!({"guest": true, "reason": "guest-shutdown"})))
        }
        Event::RunState { old: RunState::Running, .. } => ("STOP", None),
        Event::RunState { .. } => return None,
        Event::Reset { by_guest: true } => ("RESET", Some(json!({"guest": true, "reason": "guest-reset"}))),
        Event::Reset { by_guest: false } => ("RESET", Some(json!({"guest": false, "reason": "host-qmp-system-reset"}))),
        Event::PowerDown => ("POWERDOWN", None),
        Event::MigrationPass(pass) => ("MIGRATION_PASS", Some(json!({"pass": pass}))),
        Event::Migration(status) => ("MIGRATION", Some(json!({"status": status.as_str()}))),
        Event::JobError { id, reads } => {
            let operation = if reads { "read" } else { "write" };
            ("BLOCK_JOB_ERROR", Some(json!({"device": id, "operation": operation, "action": "report"})))
        }
        Event::Job(end) => {
            let (name, data) = jobs::ended(&end);
            (name, Some(data))
        }
        Event::Quit => ("SHUTDOWN", Some(json!({"guest": false, "reason": "host-qmp-quit"}))),
    };
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut message = json!({
        "timestamp": {"seconds": since.as_secs(), "microseconds": since.subsec_micros()},
        "event": name,
    });
    if let Some(data) = data {
        message["data"] = data;
    }
    Some(message)
}

fn microseconds(duration: Duration) -> Value {
    Value::from(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

fn milliseconds(duration: Duration) -> Value {
    Value::from(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
