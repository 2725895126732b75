//! `info` of `human-monitor-command`: prints answers of QMP in the format of QEMU's monitor.

use std::fmt::Write;

use serde_json::{Map, Value};
use vmstate::migrate::{Parameter, ParameterUnit};

use crate::control::bitmap_mapping;
use crate::control::commands::{Band, Failure, answer};
use crate::control::descriptors::Caller;

/// A topic of `info`: its name, its help, the query whose answer it prints, and how.
type Info = (&'static str, &'static str, &'static str, fn(&Value) -> String);

const INFO: &[Info] = &[
    ("block", "show info of all block devices", "query-block", |disks| {
        each(disks, |disk| {
            let inserted = &disk["inserted"];
            let read_only = if inserted["ro"] == true { ", read-only" } else { "" };
            format!(
                "{}: {} (raw{read_only})\r\n    Cache mode:       writeback\r\n",
                text(&disk["device"]),
                text(&inserted["file"])
            )
        })
    }),
    ("chardev", "show the character devices", "query-chardev", |devices| {
        each(devices, |one| format!("{}: filename={}\r\n", text(&one["label"]), text(&one["filename"])))
    }),
    ("cpus", "show infos for each CPU", "query-cpus-fast", |cpus| {
        each(cpus, |cpu| {
            let mark = if cpu["cpu-index"] == 0 { '*' } else { ' ' };
            format!("{mark} CPU #{}: thread_id={}\r\n", cpu["cpu-index"], cpu["thread-id"])
        })
    }),
    ("migrate", "show migration status", "query-migrate", migration),
    ("migrate_capabilities", "show current migration capabilities", "query-migrate-capabilities", |all| {
        each(all, |one| {
            format!("{}: {}\r\n", text(&one["capability"]), if one["state"] == true { "on" } else { "off" })
        })
    }),
    ("migrate_parameters", "show current migration parameters", "query-migrate-parameters", |all| {
        let all = all.as_object().into_iter().flatten();
        all.map(|(name, value)| match value {
            mapping if name == bitmap_mapping::NAME => bitmap_mapping::printed(mapping),
            Value::Bool(on) => format!("{name}: {}\r\n", if *on { "on" } else { "off" }),
            _ => format!("{name}: {}{}\r\n", text(value), unit(name)),
        })
        .collect()
    }),
    ("name", "show the current VM name", "query-name", |_| String::new()),
    ("status", "show the current VM status (running|paused)", "query-status", |status| {
        let why = text(&status["status"]);
        match status["running"] == true {
            true => "VM status: running\r\n".into(),
            false if why == "paused" => "VM status: paused\r\n".into(),
            false => format!("VM status: paused ({why})\r\n"),
        }
    }),
    ("uuid", "show the current VM UUID", "query-uuid", |uuid| format!("{}\r\n", text(&uuid["UUID"]))),
    ("version", "show the version of QEMU", "query-version", |version| {
        let number = &version["qemu"];
        format!("{}.{}.{}{}\r\n", number["major"], number["minor"], number["micro"], text(&version["package"]))
    }),
];

/// Returns what `info NAME` prints, or `None` if there is no such topic.
pub(super) fn show(caller: &Caller, name: &str) -> Result<Option<String>, Failure> {
    let Some((_, _, command, print)) = INFO.iter().find(|(known, ..)| *known == name) else { return Ok(None) };
    Ok(Some(print(&answer(caller, Band::In, command, Map::new())?)))
}

/// Returns what `info` alone prints.
pub(super) fn help() -> String {
    INFO.iter().map(|(name, about, ..)| format!("info {name}  -- {about}\r\n")).collect()
}

fn each(list: &Value, print: impl Fn(&Value) -> String) -> String {
    list.as_array().into_iter().flatten().map(print).collect()
}

/// Prints a string without its quotes, and anything else as JSON.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn unit(parameter: &str) -> &'static str {
    match Parameter::named(parameter).map(|parameter| parameter.unit) {
        Some(ParameterUnit::Milliseconds(_)) => " ms",
        Some(ParameterUnit::BytesPerSecond) => " bytes/second",
        Some(ParameterUnit::CacheBytes) => " bytes",
        _ => "",
    }
}

/// A figure: its path in the answer, its label, its divisor and its unit.
type Figure = (&'static str, &'static str, u64, &'static str);

const FIGURES: &[Figure] = &[
    ("/total-time", "total time", 1, " ms"),
    ("/expected-downtime", "expected downtime", 1, " ms"),
    ("/downtime", "downtime", 1, " ms"),
    ("/setup-time", "setup", 1, " ms"),
    ("/ram/transferred", "transferred ram", 1024, " kbytes"),
    ("/ram/remaining", "remaining ram", 1024, " kbytes"),
    ("/ram/total", "total ram", 1024, " kbytes"),
    ("/ram/duplicate", "duplicate", 1, " pages"),
    ("/ram/normal", "normal", 1, " pages"),
    ("/ram/normal-bytes", "normal bytes", 1024, " kbytes"),
    ("/ram/dirty-sync-count", "dirty sync count", 1, ""),
    ("/ram/page-size", "page size", 1024, " kbytes"),
    ("/ram/pages-per-second", "pages-per-second", 1, ""),
    ("/ram/dirty-pages-rate", "dirty pages rate", 1, " pages"),
    ("/disk/transferred", "transferred disk", 1024, " kbytes"),
    ("/disk/remaining", "remaining disk", 1024, " kbytes"),
    ("/disk/total", "total disk", 1024, " kbytes"),
    ("/xbzrle-cache/cache-size", "cache size", 1, " bytes"),
    ("/xbzrle-cache/bytes", "xbzrle transferred", 1024, " kbytes"),
    ("/xbzrle-cache/pages", "xbzrle pages", 1, " pages"),
    ("/xbzrle-cache/cache-miss", "xbzrle cache miss", 1, " pages"),
    ("/xbzrle-cache/overflow", "xbzrle overflow", 1, ""),
    ("/cpu-throttle-percentage", "cpu throttle percentage", 1, ""),
];

fn migration(answer: &Value) -> String {
    let mut shown = String::new();
    let Some(status) = answer["status"].as_str() else { return shown };
    let why = answer["error-desc"].as_str().map(|why| format!(" ({why})")).unwrap_or_default();
    // Writing to a string cannot fail.
    let _ = write!(shown, "Migration status: {status}{why}\r\n");
    for (place, name, divisor, unit) in FIGURES {
        if let Some(figure) = answer.pointer(place).and_then(Value::as_u64) {
            let _ = write!(shown, "{name}: {}{unit}\r\n", figure / divisor);
        }
    }
    if let Some(speed) = answer.pointer("/ram/mbps").and_then(Value::as_f64) {
        let _ = write!(shown, "throughput: {speed:.2} mbps\r\n");
    }
    shown
}
