//! Commands that measure how fast the guest dirties its memory.

use std::time::Duration;

use serde_json::{Value, json};

use crate::control::commands::{Arguments, Failure, ask};
use crate::control::descriptors::Caller;
use crate::control::kind::{Kind, Member, needed, optional};
use crate::control::table::Command;
use crate::vm::{DirtyRate, Request, Sampling};

/// Range of the measuring time, and of the pages sampled in each GiB (QEMU's `migration/dirtyrate.h`).
const TIME: std::ops::RangeInclusive<i64> = 50..=60_000;
const PAGES: std::ops::RangeInclusive<i64> = 128..=16_384;
const PAGES_DEFAULT: i64 = 512;

const MODES: [&str; 3] = ["page-sampling", "dirty-ring", "dirty-bitmap"];
const NO_LIMIT: &str = "dirty page limit feature requires KVM with accelerator property 'dirty-ring-size' set, and minivmm uses the dirty \
                        bitmap, which does not tell the rate of each vCPU; for a migration set auto-converge, which slows only vCPUs that \
                        dirty memory";

/// Rows of the command table.
pub(super) fn commands() -> Vec<Command> {
    let cpu = || optional("cpu-index", Kind::Integer);
    let limit = ["cpu-index", "limit-rate", "current-rate"].map(|figure| needed(figure, Kind::Integer));
    vec![
        Command::new(
            "calc-dirty-rate",
            "begins to measure how fast the guest dirties its memory, for `calc-time` from 50 ms to 60 s; `mode` is `page-sampling`: \
             `sample-pages` of each GiB are compared with themselves at the end. The other modes are refused: the dirty bitmap is for migrations, \
             whose `query-migrate` has the rate",
            calculate,
        )
        .takes([
            needed("calc-time", Kind::Integer),
            unit(),
            optional("sample-pages", Kind::Integer),
            optional("mode", Kind::word(MODES)),
        ]),
        Command::new("query-dirty-rate", "how far the measurement of `calc-dirty-rate` is, and `dirty-rate` in MiB a second once it is over", |handle, arguments| {
            Ok(report(handle.dirty_rate(), arguments.text("calc-time-unit") == Some("millisecond")))
        })
        .takes([unit()])
        .gives(Kind::object([
            optional("dirty-rate", Kind::Integer),
            needed("status", Kind::word(["unstarted", "measuring", "measured"])),
            needed("start-time", Kind::Integer),
            needed("calc-time", Kind::Integer),
            Member { needed: true, ..unit() },
            needed("sample-pages", Kind::Integer),
            needed("mode", Kind::word(MODES)),
        ])),
        Command::new("set-vcpu-dirty-limit", "always refused, as by a QEMU without KVM's dirty ring: minivmm cannot measure how many pages each vCPU dirties a second. The write faults by which \
             `auto-converge` tells vCPUs apart are counted once for each time that a page is protected: in a migration when it is sent, at other \
             times never; and a processor that logs writes by itself makes none ([why](decisions/0045-no-dirty-limit.md))", |_, _| {
            Err(Failure::generic(NO_LIMIT))
        })
        .takes([cpu(), needed("dirty-rate", Kind::Integer)]),
        Command::new("cancel-vcpu-dirty-limit", "nothing: there is no limit", |_, _| Ok(json!({}))).takes([cpu()]),
        Command::new("query-vcpu-dirty-limit", "an empty list", |_, _| Ok(json!([])))
            .gives(Kind::list(Kind::object(limit))),
    ]
}

fn unit() -> Member {
    optional("calc-time-unit", Kind::word(["second", "millisecond"]))
}

fn calculate(caller: &Caller, arguments: Arguments) -> Result<Value, Failure> {
    let time = arguments.integer("calc-time").unwrap_or_default();
    let in_milliseconds = arguments.text("calc-time-unit") == Some("millisecond");
    let time = if in_milliseconds { time } else { time.saturating_mul(1000) };
    if !TIME.contains(&time) {
        return Err(Failure::generic("Calculation time is out of range [50ms, 60000ms]."));
    }
    if let Some(mode) = arguments.text("mode").filter(|mode| *mode != MODES[0]) {
        return Err(Failure::generic(format!("mode {mode} is not enabled, use other method instead.")));
    }
    let pages = arguments.integer("sample-pages").unwrap_or(PAGES_DEFAULT);
    if !PAGES.contains(&pages) {
        return Err(Failure::generic("sample-pages is out of range[128, 16384]."));
    }
    let time = Duration::from_millis(time.unsigned_abs());
    ask(caller, Request::MeasureDirtyRate(Sampling::now(time, pages.unsigned_abs())))
}

fn report(rate: DirtyRate, in_milliseconds: bool) -> Value {
    let (status, sampling, rate) = match rate {
        DirtyRate::Unstarted => ("unstarted", None, None),
        DirtyRate::Measuring(sampling) => ("measuring", Some(sampling), None),
        DirtyRate::Measured(sampling, rate) => ("measured", Some(sampling), Some(rate >> 20)),
    };
    let time = sampling.map_or(Duration::ZERO, |sampling| sampling.time);
    let time = if in_milliseconds { time.as_millis() } else { time.as_secs().into() };
    let mut body = json!({
        "status": status,
        "start-time": sampling.map_or(0, |sampling| sampling.begun.as_secs()),
        "calc-time": u64::try_from(time).unwrap_or(u64::MAX),
        "calc-time-unit": if in_milliseconds { "millisecond" } else { "second" },
        "sample-pages": sampling.map_or(0, |sampling| sampling.pages_per_gib),
        "mode": MODES[0],
    });
    if let Some(rate) = rate {
        body["dirty-rate"] = rate.into();
    }
    body
}
