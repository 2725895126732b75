//! What the turns took, and what follows from that.

use std::time::Duration;

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use crate::case::{Data, Transport, Variant};
use crate::memory::{MIB, Memory};

/// What one turn took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) time: Duration,
    /// Time of processors, of both ends.
    pub(crate) cpu: Duration,
}

/// Variants that took turns.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) data: Data,
    pub(crate) transport: Transport,
    pub(crate) mib: u64,
    pub(crate) taken: Vec<(Variant, Vec<Taken>)>,
}

impl Group {
    pub(crate) fn new(memory: &Memory, transport: Transport, variants: Vec<Variant>) -> Self {
        let taken = variants.into_iter().map(|variant| (variant, Vec::new())).collect();
        Self { data: memory.data, transport, mib: memory.mib(), taken }
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.taken.iter().map(|(variant, turns)| {
            let peer = variant.peer().and_then(|peer| self.taken.iter().find(|(other, _)| *other == peer));
            Row::new(self.mib, *variant, turns, peer.map(|(_, turns)| turns.as_slice()))
        })
    }
}

/// What a variant's turns say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) variant: Variant,
    /// MB (10⁶ bytes of guest memory) a second.
    pub(crate) best: f64,
    pub(crate) median: f64,
    /// Seconds of processors for each GiB, the median.
    pub(crate) cpu: f64,
    pub(crate) to_qemu: Option<Ratios>,
}

/// Medians, ours over QEMU's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ratios {
    pub(crate) speed: f64,
    pub(crate) cpu: f64,
}

impl Row {
    fn new(mib: u64, variant: Variant, turns: &[Taken], peer: Option<&[Taken]>) -> Self {
        let rate = |time: Duration| (mib * MIB) as f64 / time.as_secs_f64() / 1e6;
        let time = |turns| median(turns, |taken| taken.time);
        let cpu = |turns| median(turns, |taken| taken.cpu).as_secs_f64();
        let best = turns.iter().map(|taken| taken.time).min().unwrap_or_default();
        let to_qemu = peer.map(|theirs| Ratios {
            speed: time(theirs).as_secs_f64() / time(turns).as_secs_f64(),
            cpu: cpu(turns) / cpu(theirs),
        });
        Self { variant, best: rate(best), median: rate(time(turns)), cpu: cpu(turns) * 1024.0 / mib as f64, to_qemu }
    }
}

/// The middle one.
fn median(turns: &[Taken], value: fn(&Taken) -> Duration) -> Duration {
    let mut values: Vec<Duration> = turns.iter().map(value).collect();
    values.sort();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Time of processors that a process has used.
pub(crate) fn processor_time(pid: u32) -> Duration {
    let pid = Pid::from_raw(pid.try_into().expect("a process"));
    let clock = clock_getcpuclockid(pid).expect("a process");
    clock_gettime(clock).expect("its clock").into()
}
