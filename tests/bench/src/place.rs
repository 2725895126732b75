//! The machine on which the figures are measured.

use std::fs;
use std::thread;

use crate::qemu;

/// Processors, kernel and QEMU, as a sentence.
pub(crate) fn describe() -> String {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).and_then(|line| line.split_once(": "));
    let model = model.map_or("an unnamed processor", |(_, name)| name);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let linux: String = kernel.split('.').take(2).collect::<Vec<_>>().join(".");
    let qemu = qemu::version().map_or("no QEMU".into(), |version| format!("QEMU {version}"));
    let noun = if cores == 1 { "processor" } else { "processors" };
    format!("{cores} {noun}, {model}, Linux {}, {qemu}.", linux.trim())
}
