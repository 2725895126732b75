//! A guest for the matrix: it says on its console how far it is, and checks what it did.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Result;
use super::cell::Phase;
use super::marks::Mark;
use crate::tiny;
use crate::vmm::{Config, Program, Vmm};

/// What the matrix has to know of a guest.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// It prints this once, when it has started.
    pub banner: &'static str,
    /// Numbers of its passes in the whole lines of a console. It makes and counts them without end.
    pub passes: fn(&str) -> Vec<u64>,
    /// Nobody runs it if nobody has made a pass in this time.
    pub silence: Duration,
    /// What is wrong by its console alone.
    pub complaint: fn(&str) -> Option<String>,
    /// Has the guest that runs there check memory and disk.
    pub verify: fn(&mut Vmm) -> Result<()>,
    /// Typed in, this powers it off.
    pub power_off: &'static str,
    /// Typed in, this reboots it.
    pub reboot: &'static str,
    /// The pass that its disk tells of, if it does: the only thing to know it by where the console is lost.
    pub pass_on_disk: Option<fn(&Path) -> Result<u64>>,
}

/// The tiny guest: a pass takes a few milliseconds. One that finds its memory or disk wrong says `E` and stops.
pub const TINY: Subject = Subject {
    banner: tiny::BANNER,
    passes: tiny::passes,
    silence: Duration::from_millis(300),
    complaint: |console| console.contains('E').then(|| "the guest found its memory or its disk wrong".into()),
    verify: |_| Ok(()),
    power_off: "q",
    reboot: "r",
    pass_on_disk: None,
};

/// How a guest's memory goes to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Memory {
    /// With the stream.
    Main,
    /// On so many page channels that a minivmm as the source has.
    Beside(u8),
    /// In post-copy: once the guest runs at the destination.
    Late,
    /// Not at all: source and destination are minivmms on one host, and have it mapped.
    InPlace,
}

/// What the monitors of one guest share.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The guest.
    pub subject: Subject,
    /// Starts the monitors; as in [`Process::spawn`](crate::process::Process::spawn).
    pub launcher: Option<PathBuf>,
    /// What the guest is booted with.
    pub program: Program,
    /// What waits for it.
    pub peer: Program,
    /// How the guest's memory goes.
    pub memory: Memory,
    /// The machine, with a disk. Each monitor has a control socket of its own.
    pub config: Config,
}

impl Ground {
    /// What the wire holds back until a fault of this phase has come.
    pub fn mark(&self, phase: Phase) -> Mark {
        match (&self.program, phase) {
            (Program::Qemu(..), Phase::Rounds) => Mark::Pages,
            _ => phase.mark(),
        }
    }
}
