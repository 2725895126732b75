//! Commands and events about the machine: its run state, its parts, its power.

use serde_json::{Value, json};

use crate::control::commands::{Arguments, Failure, ask};
use crate::control::descriptors::Caller;
use crate::control::kind::{Kind, needed, optional};
use crate::control::table::{Command, Event};
use crate::control::{bitmaps, report};
use crate::vm::{DiskFacts, Request, RunState};

/// Rows of the command table.
pub(super) fn commands() -> Vec<Command> {
    let run_state = RunState::ALL.map(RunState::as_str);
    vec![
        Command::new("query-name", "nothing: a machine of minivmm has no name", |_, _| Ok(json!({})))
            .gives(Kind::object([optional("name", Kind::Text)])),
        Command::new("query-uuid", "zeros, as with QEMU where none was given", |_, _| {
            Ok(json!({"UUID": "00000000-0000-0000-0000-000000000000"}))
        })
        .gives(Kind::object([needed("UUID", Kind::Text)])),
        Command::new("query-status", "the run state", |handle, _| Ok(report::status(handle.run_state())))
            .gives(Kind::object([needed("running", Kind::Switch), needed("status", Kind::word(run_state))])),
        Command::new("query-cpus-fast", "the vCPUs, and the host's threads that run them", |handle, _| {
            Ok(vcpus(&handle.inventory().vcpu_threads))
        })
        .gives(Kind::list(vcpu_kind())),
        Command::new("query-block", "the disks, in the order of the command line", |handle, _| {
            Ok(handle.inventory().disks.iter().map(block).collect())
        })
        .gives(Kind::list(block_kind())),
        Command::new("query-chardev", "the control socket and the host's side of the serial port", |handle, _| {
            let devices = handle.inventory().chardevs;
            let one = |(label, filename)| json!({"label": label, "filename": filename, "frontend-open": true});
            Ok(devices.into_iter().map(one).collect())
        })
        .gives(Kind::list(Kind::object([
            needed("label", Kind::Text),
            needed("filename", Kind::Text),
            needed("frontend-open", Kind::Switch),
        ]))),
        Command::new(
            "stop",
            "answered when the guest is stopped. At a waiting destination the guest will arrive stopped",
            |handle, _| ask(handle, Request::Stop),
        ),
        Command::new(
            "cont",
            "answered when the guest runs. At a waiting destination it cancels a `stop`; after a migration, \
             [see below](#cont-after-a-migration)",
            cont,
        )
        .takes([optional("force", Kind::Switch)]),
        Command::new("system_powerdown", "presses the power button", |handle, _| ask(handle, Request::PowerDown)),
        Command::new("system_reset", "answered when the machine has been reset", |handle, _| {
            ask(handle, Request::Reset)
        }),
        Command::new("quit", "ends the process, whatever the guest does; answered before that", |handle, _| {
            handle.announce_quit();
            ask(handle, Request::Quit)
        }),
    ]
}

/// Rows of the event table.
pub(super) fn events() -> Vec<Event> {
    vec![
        Event::new("STOP", "the guest was stopped", []),
        Event::new("RESUME", "the guest runs", []),
        Event::with_reason(
            "SHUTDOWN",
            "the guest powered off, or somebody asked for the end of the process",
            &["guest-shutdown", "host-qmp-quit"],
        ),
        Event::with_reason(
            "RESET",
            "the machine was reset, by the guest or by `system_reset`",
            &["guest-reset", "host-qmp-system-reset"],
        ),
        Event::new("POWERDOWN", "the power button was pressed", []),
    ]
}

fn cont(caller: &Caller, arguments: Arguments) -> Result<Value, Failure> {
    match arguments.switch("force") {
        Some(true) => ask(caller, Request::ContUnproved),
        _ => ask(caller, Request::Cont),
    }
}

fn vcpu_kind() -> Kind {
    let props = ["core-id", "thread-id", "socket-id"].map(|level| needed(level, Kind::Integer));
    Kind::object([
        needed("cpu-index", Kind::Integer),
        needed("qom-path", Kind::Text),
        needed("thread-id", Kind::Integer),
        needed("props", Kind::object(props)),
        needed("target", Kind::word(["x86_64"])),
    ])
}

fn vcpus(threads: &[u32]) -> Value {
    let one = |(index, thread)| {
        json!({
            "cpu-index": index,
            "qom-path": format!("/machine/unattached/cpu[{index}]"),
            "thread-id": thread,
            "props": {"core-id": index, "thread-id": 0, "socket-id": 0},
            "target": "x86_64",
        })
    };
    (0..).zip(threads).map(|(index, thread): (u32, &u32)| one((index, thread))).collect()
}

fn block_kind() -> Kind {
    let rates = ["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"].map(|rate| needed(rate, Kind::Integer));
    let image = [
        needed("filename", Kind::Text),
        needed("format", Kind::Text),
        needed("virtual-size", Kind::Integer),
        needed("dirty-flag", Kind::Switch),
    ];
    let cache = ["writeback", "direct", "no-flush"].map(|mode| needed(mode, Kind::Switch));
    let inserted = [
        needed("file", Kind::Text),
        needed("ro", Kind::Switch),
        needed("drv", Kind::Text),
        needed("backing_file_depth", Kind::Integer),
        needed("active", Kind::Switch),
        needed("encrypted", Kind::Switch),
        needed("detect_zeroes", Kind::word(["off"])),
        needed("image", Kind::object(image)),
        needed("cache", Kind::object(cache)),
        needed("write_threshold", Kind::Integer),
        optional("dirty-bitmaps", Kind::list(bitmaps::kind())),
    ];
    Kind::object([
        needed("device", Kind::Text),
        needed("type", Kind::Text),
        needed("removable", Kind::Switch),
        needed("locked", Kind::Switch),
        needed("inserted", Kind::object(inserted.into_iter().chain(rates))),
    ])
}

/// Reports a raw image on virtio-blk as QEMU does when it made up the image's name itself. A rate limit counts both directions together.
fn block(disk: &DiskFacts) -> Value {
    let mut shown = json!({
        "device": disk.name,
        "type": "unknown",
        "removable": false,
        "locked": false,
        "inserted": {
            "file": disk.path,
            "ro": disk.read_only,
            "drv": "raw",
            "backing_file_depth": 0,
            "active": true,
            "encrypted": false,
            "detect_zeroes": "off",
            "bps": disk.bytes_per_second, "bps_rd": 0, "bps_wr": 0,
            "iops": disk.operations_per_second, "iops_rd": 0, "iops_wr": 0,
            "image": {
                "filename": disk.path, "format": "raw", "virtual-size": disk.bytes, "dirty-flag": false,
            },
            "cache": {"writeback": true, "direct": false, "no-flush": false},
            "write_threshold": 0,
        },
    });
    // As in QEMU, no list if it would be empty.
    if let Some(bitmaps) = bitmaps::list(disk) {
        shown["inserted"]["dirty-bitmaps"] = bitmaps;
    }
    shown
}
