//! How the guest of a demo gets from one monitor to the next.

use clap::ValueEnum;
use vmstate_lab::error::Result;
use vmstate_lab::vmm::{Started, Vmm};

/// The kind of each migration on the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// The guest's memory is copied to another process while it runs
    Precopy,
    /// A new process takes over the guest's memory without a copy, as in an update of minivmm on one host
    Update,
}

impl Mode {
    /// As the flag has it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Precopy => "precopy",
            Self::Update => "update",
        }
    }

    /// What each minivmm is started with for it.
    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Precopy => &[],
            Self::Update => &["--share-memory", "on"],
        }
    }
}

/// The monitor that the guest goes to, when the source may be told to migrate.
#[derive(Debug)]
pub(crate) enum Destination {
    /// Its machine is there.
    Ready(Box<Vmm>),
    /// Its control socket is there once the guest's memory has come.
    Awaiting(Started),
}

impl Destination {
    /// Once the source migrates.
    pub(crate) fn connect(self) -> Result<Vmm> {
        match self {
            Self::Ready(vmm) => Ok(*vmm),
            Self::Awaiting(started) => started.connect(),
        }
    }
}
