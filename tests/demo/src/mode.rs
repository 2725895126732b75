//! The modes in which the demo's guest gets from one monitor to the next.

use clap::{Args, ValueEnum};
use serde_json::json;
use vmstate_lab::error::Result;
use vmstate_lab::vmm::{Started, Vmm};

/// Options of each migration on the route.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Means {
    /// How the guest gets from each monitor to the next
    #[arg(long, value_enum, default_value_t = Mode::Precopy)]
    pub(crate) mode: Mode,
    /// Send the content of the guest's disk along, into an image of each destination's own
    #[arg(long)]
    pub(crate) copy_disk: bool,
    /// In post-copy, send requested pages on a second connection
    #[arg(long)]
    pub(crate) preempt: bool,
    /// In post-copy, send at most so many bytes a second, without a delay of requested pages
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_postcopy_bandwidth: Option<u64>,
}

impl Means {
    /// Starts the migration of `source` to `uri`.
    pub(crate) fn start(self, source: &mut Vmm, uri: &str) -> Result<()> {
        self.allow(source)?;
        if let Some(limit) = self.max_postcopy_bandwidth {
            source.qmp.execute("migrate-set-parameters", json!({ "max-postcopy-bandwidth": limit }))?;
        }
        match self.mode {
            Mode::Precopy if self.copy_disk => {
                source.qmp.execute("migrate", json!({ "uri": uri, "copy-disk": true })).map(drop)
            }
            Mode::Precopy | Mode::Update | Mode::Snapshot => source.start_migration(uri),
            Mode::Postcopy => source.start_postcopy(uri),
        }
    }

    /// Enables the capabilities that these migrations need, at either end.
    pub(crate) fn allow(self, vmm: &mut Vmm) -> Result<()> {
        if self.mode == Mode::Postcopy {
            vmm.allow_postcopy()?;
        }
        if self.preempt {
            vmm.allow_preempt()?;
        }
        Ok(())
    }
}

/// The kind of each migration on the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// The guest's memory is copied to another process while it runs
    Precopy,
    /// The guest runs in another process before its memory is there
    Postcopy,
    /// A new process takes over the guest's memory without a copy, as when minivmm is updated on one host
    Update,
    /// The guest is saved to a file, and resumed from there in a process that is started afterwards
    Snapshot,
}

impl Mode {
    /// The value's name on the command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Precopy => "precopy",
            Self::Postcopy => "postcopy",
            Self::Update => "update",
            Self::Snapshot => "snapshot",
        }
    }

    /// Arguments that each minivmm needs for this mode.
    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Precopy | Self::Postcopy | Self::Snapshot => &[],
            Self::Update => &["--share-memory", "on"],
        }
    }
}

/// The destination, as far as it is started when the source begins to migrate.
#[derive(Debug)]
pub(crate) enum Destination {
    /// A monitor that waits for the migration.
    Ready(Box<Vmm>),
    /// A monitor whose control socket appears once the guest's memory has come.
    Awaiting(Started),
    /// A monitor that is started once the guest is in its file.
    Later,
}

/// Lets a monitor that was started with `--incoming defer` load the guest from this address.
///
/// # Errors
/// The monitor's refusal.
pub(crate) fn load(mut vmm: Vmm, uri: &str) -> Result<Vmm> {
    vmm.qmp.execute("migrate-incoming", json!({ "uri": uri }))?;
    Ok(vmm)
}

impl Destination {
    /// Connects to the destination once the source migrates; `None` when it is not started yet.
    pub(crate) fn connect(self) -> Result<Option<Vmm>> {
        match self {
            Self::Ready(vmm) => Ok(Some(*vmm)),
            Self::Awaiting(started) => started.connect().map(Some),
            Self::Later => Ok(None),
        }
    }
}
