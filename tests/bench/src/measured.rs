//! The results of the turns, and the figures computed from them.

use std::time::Duration;

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use crate::case::{Data, Transport, Variant};
use crate::memory::{MIB, Memory};

/// The results of one turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TurnResult {
    pub(crate) time: Duration,
    /// Processor time of both ends.
    pub(crate) cpu: Duration,
    /// Bytes sent to the other end.
    pub(crate) bytes: u64,
}

/// Variants that take turns, with their results.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) data: Data,
    pub(crate) transport: Transport,
    pub(crate) mib: u64,
    pub(crate) results: Vec<(Variant, Vec<TurnResult>)>,
}

impl Group {
    pub(crate) fn new(memory: &Memory, transport: Transport, variants: Vec<Variant>) -> Self {
        let results = variants.into_iter().map(|variant| (variant, Vec::new())).collect();
        Self { data: memory.data, transport, mib: memory.len / MIB, results }
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.results.iter().map(|(variant, turns)| {
            let peer = variant.peer().and_then(|peer| self.results.iter().find(|(other, _)| *other == peer));
            Row::new(self.mib, *variant, turns, peer.map(|(_, turns)| turns.as_slice()))
        })
    }
}

/// The figures of a variant's turns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) variant: Variant,
    /// Speed in MB (10⁶ bytes of guest memory) a second.
    pub(crate) best: f64,
    pub(crate) median: f64,
    /// Processor time in seconds for each GiB, the median.
    pub(crate) cpu: f64,
    /// Ratio of the bytes sent to the size of the memory.
    pub(crate) sent: f64,
    pub(crate) to_qemu: Option<Ratios>,
}

/// Ratios of medians, ours to QEMU's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ratios {
    pub(crate) speed: f64,
    pub(crate) cpu: f64,
    pub(crate) sent: f64,
}

impl Row {
    fn new(mib: u64, variant: Variant, turns: &[TurnResult], peer: Option<&[TurnResult]>) -> Self {
        let time = |turns| median(turns, |turn| turn.time.as_secs_f64());
        let cpu = |turns| median(turns, |turn| turn.cpu.as_secs_f64());
        let sent = |turns| median(turns, |turn| turn.bytes as f64);
        let rate = |seconds: f64| (mib * MIB) as f64 / seconds / 1e6;
        let best = turns.iter().map(|turn| turn.time.as_secs_f64()).fold(f64::INFINITY, f64::min);
        let to_qemu = peer.map(|theirs| Ratios {
            speed: time(theirs) / time(turns),
            cpu: cpu(turns) / cpu(theirs),
            sent: sent(turns) / sent(theirs),
        });
        let (median, cpu) = (rate(time(turns)), cpu(turns) * 1024.0 / mib as f64);
        Self { variant, best: rate(best), median, cpu, sent: sent(turns) / (mib * MIB) as f64, to_qemu }
    }
}

/// The median.
fn median(turns: &[TurnResult], value: fn(&TurnResult) -> f64) -> f64 {
    let mut values: Vec<f64> = turns.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The processor time that a process has used.
pub(crate) fn processor_time(pid: u32) -> Duration {
    let pid = Pid::from_raw(pid.try_into().expect("a process"));
    let clock = clock_getcpuclockid(pid).expect("a process");
    clock_gettime(clock).expect("the process's clock").into()
}
