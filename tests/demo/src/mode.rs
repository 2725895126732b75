//! How the guest of a demo gets from one monitor to the next.

use clap::{Args, ValueEnum};
use serde_json::json;
use vmstate_lab::error::Result;
use vmstate_lab::vmm::{Started, Vmm};

/// What each migration on the route is like.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Means {
    /// How the guest gets from each monitor to the next
    #[arg(long, value_enum, default_value_t = Mode::Precopy)]
    pub(crate) mode: Mode,
    /// Send the content of the guest's disk along, into an image of each destination's own
    #[arg(long)]
    pub(crate) copy_disk: bool,
}

/// The kind of each migration on the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// The guest's memory is copied to another process while it runs
    Precopy,
    /// The guest runs in another process before its memory is there
    Postcopy,
    /// A new process takes over the guest's memory without a copy, as in an update of minivmm on one host
    Update,
    /// The guest is saved to a file, and goes on from there in a process that is started then
    Snapshot,
}

impl Mode {
    /// As the flag has it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Precopy => "precopy",
            Self::Postcopy => "postcopy",
            Self::Update => "update",
            Self::Snapshot => "snapshot",
        }
    }

    /// What each minivmm is started with for it.
    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Precopy | Self::Postcopy | Self::Snapshot => &[],
            Self::Update => &["--share-memory", "on"],
        }
    }

    /// Tells `source` to migrate to `uri`.
    pub(crate) fn start(self, source: &mut Vmm, uri: &str) -> Result<()> {
        match self {
            Self::Precopy | Self::Update | Self::Snapshot => source.start_migration(uri),
            Self::Postcopy => source.start_postcopy(uri),
        }
    }

    /// Makes a destination ready for it.
    pub(crate) fn ready(self, mut destination: Vmm) -> Result<Destination> {
        if self == Self::Postcopy {
            destination.allow_postcopy()?;
        }
        Ok(Destination::Ready(destination.into()))
    }
}

/// The monitor that the guest goes to, when the source may be told to migrate.
#[derive(Debug)]
pub(crate) enum Destination {
    /// Its machine is there.
    Ready(Box<Vmm>),
    /// Its control socket is there once the guest's memory has come.
    Awaiting(Started),
    /// It is started once the guest is in its file.
    Later,
}

/// Has a monitor that was started with `--incoming defer` go on with the guest that is in a file.
///
/// # Errors
/// The monitor's refusal.
pub(crate) fn restore(mut vmm: Vmm, uri: &str) -> Result<Vmm> {
    vmm.qmp.execute("migrate-incoming", json!({ "uri": uri }))?;
    Ok(vmm)
}

impl Destination {
    /// Once the source migrates; `None`: it is not started yet.
    pub(crate) fn connect(self) -> Result<Option<Vmm>> {
        match self {
            Self::Ready(vmm) => Ok(Some(*vmm)),
            Self::Awaiting(started) => started.connect().map(Some),
            Self::Later => Ok(None),
        }
    }
}
