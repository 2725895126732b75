//! A guest for the matrix, which prints its progress on its console, and verifies its work.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Result;
use super::cell::Phase;
use super::marks::Mark;
use crate::tiny;
use crate::vmm::{Config, Program, Vmm};

/// The properties of a guest that the matrix needs.
#[derive(Clone, Copy, Debug)]
pub struct TestGuest {
    /// The line that the guest prints once, when it has booted.
    pub banner: &'static str,
    /// The numbers of the passes in the whole lines of a console. The guest makes and counts passes without end.
    pub passes: fn(&str) -> Vec<u64>,
    /// The guest does not run if there is no pass in this time.
    pub silence: Duration,
    /// A complaint that is visible on the console.
    pub complaint: fn(&str) -> Option<String>,
    /// Lets the running guest verify memory and disk.
    pub verify: fn(&mut Vmm) -> Result<()>,
    /// Input that powers the guest off.
    pub power_off: &'static str,
    /// Input that reboots the guest.
    pub reboot: &'static str,
    /// The last pass on the guest's disk, if the guest writes it there: the only progress visible without a console.
    pub pass_on_disk: Option<fn(&Path) -> Result<u64>>,
}

/// The tiny guest, whose pass takes a few milliseconds. It prints `E` and halts when its memory or disk is wrong.
pub const TINY: TestGuest = TestGuest {
    banner: tiny::BANNER,
    passes: tiny::passes,
    silence: Duration::from_millis(300),
    complaint: |console| console.contains('E').then(|| "the guest found its memory or its disk wrong".into()),
    verify: |_| Ok(()),
    power_off: "q",
    reboot: "r",
    pass_on_disk: None,
};

/// How the guest's memory is sent to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Memory {
    /// On the main channel.
    Main,
    /// On this many page channels, with a minivmm as the source.
    PageChannels(u8),
    /// In post-copy, once the guest runs at the destination.
    Postcopy,
    /// Not sent: source and destination are minivmms on one host, which have both mapped it.
    InPlace,
    /// As [`InPlace`](Self::InPlace), by QEMU's mode `cpr-transfer`: the descriptors are passed on a channel of their own.
    Transfer,
}

impl Memory {
    /// Whether it is not sent, since both processes have mapped it.
    pub fn stays(self) -> bool {
        matches!(self, Self::InPlace | Self::Transfer)
    }
}

/// The configuration shared by the monitors of one guest.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The guest.
    pub test_guest: TestGuest,
    /// Starts the monitors; as in [`Process::spawn`](crate::process::Process::spawn).
    pub launcher: Option<PathBuf>,
    /// The program that boots the guest.
    pub program: Program,
    /// The program that waits for the guest.
    pub peer: Program,
    /// How the guest's memory is sent.
    pub memory: Memory,
    /// The image that the destination makes for the content of the disk; `None`: both sides share the image.
    pub copied_to: Option<PathBuf>,
    /// The machine, with a disk. Each monitor has a control socket of its own.
    pub config: Config,
}

impl Setup {
    /// The mark that the relay holds back until a fault of this phase has occurred.
    pub fn mark(&self, phase: Phase) -> Mark {
        match (&self.program, phase) {
            (Program::Qemu(..), Phase::Rounds) => Mark::Pages,
            (_, Phase::Rounds) if self.copied_to.is_some() => Mark::Disk,
            _ => phase.mark(),
        }
    }
}
