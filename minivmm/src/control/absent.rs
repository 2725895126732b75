//! All capabilities of QEMU 10.0's migrations, in its order, with the reason where minivmm lacks one or cannot switch it off;
//! and the reason for each parameter that minivmm lacks.

use vmstate::migrate::{Parameter, ParameterUnit, Parameters};

use crate::control::report;
use serde_json::{Value, json};

/// Whether a capability can be switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Support {
    /// Can be switched: a parameter of vmstate that is a flag.
    Switched,
    /// Can be switched: [`PAUSE`], [`BLOCK_TIME`] and [`BITMAPS`], which only the machine has.
    Own,
    /// Always on, for this reason.
    Always(&'static str),
    /// Always off, for this reason.
    Never(&'static str),
}

use Support::{Always, Never, Own, Switched};

/// Capability with which a migration waits before its switch-over.
pub(super) const PAUSE: &str = "pause-before-switchover";

/// Capability with which a destination measures how long its vCPUs wait for pages in post-copy.
pub(super) const BLOCK_TIME: &str = "postcopy-blocktime";

/// Capability with which a migration sends the dirty bitmaps of disks.
pub(super) const BITMAPS: &str = "dirty-bitmaps";

const CAPABILITIES: &[(&str, Support)] = &[
    ("xbzrle", Switched),
    ("rdma-pin-all", Never("minivmm has no RDMA transport")),
    ("auto-converge", Switched),
    ("zero-blocks", Never("the content of a disk that is sent (copy-disk) always keeps its holes")),
    ("events", Always("every client is sent the events MIGRATION and MIGRATION_PASS")),
    ("postcopy-ram", Switched),
    ("x-colo", Never("a guest runs in one machine at a time")),
    (
        "release-ram",
        Never(
            "the source keeps the guest's memory until the destination runs the guest, so that a failure loses nothing",
        ),
    ),
    ("return-path", Always("the destination's answer decides who runs the guest")),
    (PAUSE, Own),
    ("multifd", Switched),
    (BITMAPS, Own),
    (BLOCK_TIME, Own),
    ("late-block-activate", Never("disks are handed over by their locks, at the commit")),
    (
        "x-ignore-shared",
        Never("shared memory needs no capability: migrate local:PATH hands it over, and so does the mode cpr-transfer"),
    ),
    (
        "validate-uuid",
        Never("a machine has no UUID; the two sides compare memory, processors, disks and cards instead"),
    ),
    ("background-snapshot", Never("a snapshot is a migration to a file with keep-running")),
    ("zero-copy-send", Never("pages are copied into the socket")),
    ("postcopy-preempt", Switched),
    (
        "switchover-ack",
        Never("no device has to agree to the switch-over; the destination always confirms the whole machine"),
    ),
    (
        "dirty-limit",
        Never(
            "it needs KVM's dirty ring, and minivmm uses the dirty bitmap, which does not tell the rate of each vCPU; set auto-converge, which slows only vCPUs that dirty memory",
        ),
    ),
    (
        "mapped-ram",
        Always(
            "each page has its place in a file that minivmm makes; a pipe or a socket gets the stream without places",
        ),
    ),
];

/// Parameters of QEMU 10.0 that minivmm lacks, each with the reason.
pub(super) const PARAMETERS_ABSENT: &[(&str, &str)] = &[
    ("cpu-throttle-tailslow", "the throttle follows the rate at which each vCPU dirties memory, also near its end"),
    ("x-checkpoint-delay", "there are no checkpoints: a guest runs in one machine at a time"),
    ("multifd-zlib-level", "page channels compress with zstd; set multifd-zstd-level"),
    ("multifd-qatzip-level", "page channels compress with zstd; set multifd-zstd-level"),
    ("x-vcpu-dirty-limit-period", "it belongs to vcpu-dirty-limit"),
    (
        "vcpu-dirty-limit",
        "it needs KVM's dirty ring, and minivmm uses the dirty bitmap, which does not tell the rate of each vCPU; set auto-converge",
    ),
    (
        "zero-page-detection",
        "the thread that reads a page finds out whether it is zero; with page channels this is the channel's thread",
    ),
];

/// The names of all capabilities.
pub(super) fn capability_names() -> impl Iterator<Item = &'static str> {
    CAPABILITIES.iter().map(|(name, _)| *name)
}

/// Lists each capability that cannot be switched: its name, on or off, and the reason.
pub(super) fn reasons() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    CAPABILITIES.iter().filter_map(|(name, support)| match support {
        Switched | Own => None,
        Always(why) => Some((*name, "on", *why)),
        Never(why) => Some((*name, "off", *why)),
    })
}

/// Body of `query-migrate-capabilities`; `own` says whether one of the machine's own is on.
pub(super) fn capabilities(parameters: &Parameters, own: impl Fn(&str) -> bool) -> Value {
    let state = |name, support| match support {
        Switched => flag(name).map_or(Value::Bool(false), |flag| report::value(&flag.of(parameters))),
        Own => own(name).into(),
        Always(_) => true.into(),
        Never(_) => false.into(),
    };
    CAPABILITIES.iter().map(|&(name, support)| json!({"capability": name, "state": state(name, support)})).collect()
}

/// Returns the parameter that switching the capability `name` sets, or `None` where there is nothing to set.
///
/// # Errors
/// The reason for which the capability cannot be switched on.
pub(super) fn switch(name: &str, on: bool) -> Result<Option<&'static Parameter>, String> {
    let support = CAPABILITIES.iter().find(|(known, _)| *known == name).map(|(_, support)| *support);
    match support {
        Some(Switched) => Ok(flag(name)),
        Some(Always(why)) if !on => Err(format!("Capability '{name}' cannot be switched off: {why}")),
        Some(Never(why)) if on => Err(format!("Capability '{name}' is not supported: {why}")),
        Some(Own | Always(_) | Never(_)) => Ok(None),
        None => Err(format!("Parameter 'capability' does not accept value '{name}'")),
    }
}

fn flag(name: &str) -> Option<&'static Parameter> {
    Parameter::named(name).filter(|parameter| parameter.unit == ParameterUnit::Flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmstate::migrate::PARAMETERS;

    #[test]
    fn each_flag_of_the_engine_is_a_capability() {
        let flags = PARAMETERS.iter().filter(|parameter| parameter.unit == ParameterUnit::Flag);
        for flag in flags {
            assert_eq!(switch(flag.name, true).unwrap().map(|parameter| parameter.name), Some(flag.name));
        }
        let switched = CAPABILITIES.iter().filter(|(_, support)| *support == Switched);
        assert!(switched.into_iter().all(|(name, _)| flag(name).is_some()));
    }
}
