//! Requests to the driver, in three kinds: a user's, the migration engine's, and actions of the guest, which have no answer.
//! `queue.rs` has their order, `decision.rs` the conditions of each.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use vmstate::migrate::{ParameterValue, Parameters};

use crate::config::{Address, Tls};
use crate::devices::virtio::net::Announcing;
use crate::vm::backup::BackupTerms;
use crate::vm::dirty_rate::Sampling;
use crate::vm::migration::Ended;

/// Request of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Stop the vCPUs and drain the devices. At a waiting destination: the guest stays stopped when it arrives.
    Stop,
    /// Run the guest. At a waiting destination: the guest arrives in its state at the source. After a migration: take the guest
    /// back, if it is proved that no other process runs it or has run it.
    Cont,
    /// Like [`Cont`](Self::Cont), but after a migration also if nothing proves that no other process runs the guest: the user
    /// has checked.
    ContUnproved,
    /// End the process.
    Quit,
    /// Press the power button.
    PowerDown,
    /// Reset the machine.
    Reset,
    /// Begin an outgoing migration on these terms; answered as soon as it has begun.
    Migrate(Address, Terms),
    /// Wait for a migration at this address, in a machine that was started to wait for one and has none.
    MigrateIncoming {
        /// Address to wait at.
        at: Address,
        /// Whether a failed migration ends the process. Otherwise the machine is reset to its start, and can wait again.
        exit_on_error: bool,
    },
    /// Write the schema of this machine to a new file.
    DumpSchema(PathBuf),
    /// Continue an outgoing migration that waits before its switch-over.
    MigrateContinue,
    /// Switch the outgoing migration to post-copy.
    MigrateStartPostcopy,
    /// Reconnect to this address, where a guest in post-copy waits for the rest of its memory; answered before the connection
    /// is made.
    MigrateResume(Address),
    /// Cancel the outgoing migration; answered once it has ended.
    MigrateCancel,
    /// Have the network cards announce the guest to the network.
    Announce(Announcing),
    /// Measure how fast the guest dirties its memory; answered as soon as the measurement has begun.
    MeasureDirtyRate(Sampling),
    /// Open the target of a backup, and make a job, which waits to be started.
    Backup(BackupTerms),
    /// Change parameters, also of a running migration.
    MigrateSetParameters(ParameterChange),
}

/// Arguments of a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// File with the schema of the older release of minivmm at the destination.
    pub release: Option<PathBuf>,
    /// Unix socket over which the destination, on this host, gets the guest's memory and other descriptors, as in QEMU's mode
    /// `cpr-transfer`.
    pub cpr: Option<PathBuf>,
    /// Whether the guest runs on here once all of it is in the file.
    pub keeps_running: bool,
    /// Whether the file is for a QEMU.
    pub to_qemu: bool,
    /// Disks whose content is sent.
    pub copies: DiskCopies,
    /// Parameters of this migration and of later ones, set only if the migration begins.
    pub parameters: ParameterChange,
}

/// Selection of the writable disks whose content a migration sends; the other disks are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DiskCopies {
    /// No disk.
    #[default]
    None,
    /// All writable disks.
    All,
    /// The disks of these names.
    Named(Vec<String>),
}

/// Changes of migration [parameters](vmstate::migrate::PARAMETERS) and of the parameters of [TLS](Tls::PARAMETERS), by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParameterChange(Vec<(&'static str, ParameterValue)>);

impl ParameterChange {
    /// Adds a change.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<ParameterValue>) -> Self {
        self.0.push((name, value.into()));
        self
    }

    pub(super) fn of(&self, parameters: Parameters) -> Result<Parameters, Refusal> {
        let engines = self.0.iter().filter(|(name, _)| Tls::named(name).is_none());
        parameters.changed(engines.cloned()).map_err(|error| Refusal(error.message().to_owned()))
    }

    /// Applies the changes to the parameters of TLS.
    pub(super) fn of_tls(&self, mut tls: Tls) -> Result<Tls, Refusal> {
        for (name, value) in self.0.iter().filter(|(name, _)| Tls::named(name).is_some()) {
            match value {
                ParameterValue::Word(text) => tls.set(name, text).map_err(Refusal)?,
                _ => return Err(Refusal(format!("Parameter '{name}' expects a string"))),
            }
        }
        Ok(tls)
    }
}

/// Action of the guest on its whole machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest powered off.
    PoweredOff,
    /// The guest reset the machine.
    Reset,
    /// A vCPU cannot continue, for this reason.
    Failed(String),
}

/// Request of the migration engine, from its thread.
#[derive(Debug)]
pub enum EngineRequest {
    /// Source: stop the guest and read its state, and resume the guest soon.
    Rehearse(Rehearsing),
    /// Source: stop the guest, and publish that the switch-over waits.
    Hold,
    /// Source: stop the guest within this time, if it is not stopped already, and read its state.
    Pause(Duration),
    /// Destination: the guest fits this machine; give its vCPUs the processor that the guest knows.
    AdoptProcessor,
    /// Destination: more pages have arrived; populate the second-level page tables. The token is dropped when this is done.
    Arriving(Arc<()>),
    /// Destination: all sections are loaded; write KVM's state.
    Loaded {
        /// Whether the guest may also run elsewhere, as one from a file, whose source does not hear of this machine.
        may_be_copy: bool,
    },
    /// The guest resumes on this side.
    Resume,
    /// The migration thread has ended.
    Ended(Ended),
}

/// Channels with which the migration thread and the driver rehearse a pause.
#[derive(Debug)]
pub struct Rehearsing {
    /// To the migration thread: the guest is stopped, after this time. Dropped without a value: the guest runs.
    pub stopped: Sender<Duration>,
    /// From the migration thread, which drops its end once the guest may resume.
    pub over: Receiver<()>,
}

/// Request of a user or of the engine.
#[derive(Debug)]
pub enum AnyRequest {
    /// A user's.
    User(Request),
    /// The engine's.
    Engine(EngineRequest),
}

impl From<Request> for AnyRequest {
    fn from(request: Request) -> Self {
        Self::User(request)
    }
}

impl From<EngineRequest> for AnyRequest {
    fn from(request: EngineRequest) -> Self {
        Self::Engine(request)
    }
}

/// Why a request was not carried out, as one sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// A request and the channel for its answer.
pub type Envelope = (AnyRequest, Sender<Result<(), Refusal>>);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_change_that_is_refused_names_the_parameter_and_the_range() {
        let of = |change: ParameterChange| change.of(Parameters::default());
        let change = ParameterChange::default().with("downtime-limit", Duration::from_millis(20));
        assert_eq!(of(change.clone()).unwrap().downtime_limit, Duration::from_millis(20));
        let refusal = of(change.with("cpu-throttle-increment", 100)).unwrap_err();
        assert_eq!(refusal.0, "Parameter 'cpu-throttle-increment' expects an integer in the range of 1 to 99");
        let refusal = of(ParameterChange::default().with("max-cpu-throttle", 19)).unwrap_err();
        assert!(refusal.0.contains("'cpu-throttle-initial'"), "{refusal}");
    }
}
