//! What the driver can be asked to do, in kinds that are never mixed up: a user's, the migration engine's, and what the guest
//! did, which nobody waits for. Which comes first is told in `queue.rs`, when each is carried out in `decision.rs`.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use vmstate::migrate::{ParameterValue, Parameters};

use crate::config::{Address, Tls};
use crate::devices::virtio::net::Announcing;
use crate::vm::dirty_rate::Sampling;
use crate::vm::migration::Ended;

/// What a user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Stop the vCPUs and drain the devices. At a waiting destination: the guest arrives stopped.
    Stop,
    /// Run. At a waiting destination: the guest arrives as it was. After a migration: take the guest back, if it is
    /// proved that nobody else runs it or has run it.
    Cont,
    /// As [`Cont`](Self::Cont), and after a migration also where nothing can prove that nobody else runs the guest: the
    /// user has looked.
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
        /// Where.
        at: Address,
        /// One that fails ends the process. Otherwise the machine is as it was started, and can wait again.
        exit_on_error: bool,
    },
    /// Write the schema of this machine to a new file.
    DumpSchema(PathBuf),
    /// Let the outgoing migration go on that waits before its switch-over.
    MigrateContinue,
    /// Let the outgoing migration go on in post-copy.
    MigrateStartPostcopy,
    /// Connect to this address, where a guest in post-copy waits for the rest of its memory; answered before it is connected.
    MigrateResume(Address),
    /// Cancel the outgoing migration; answered once it has ended.
    MigrateCancel,
    /// Have the network cards tell the network where the guest is.
    Announce(Announcing),
    /// Measure how fast the guest dirties its memory; answered as soon as that has begun.
    MeasureDirtyRate(Sampling),
    /// Change parameters, also of a running migration.
    MigrateSetParameters(ParameterChange),
}

/// What a migration begins with, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// To a minivmm of the older release whose schema is in this file.
    pub release: Option<PathBuf>,
    /// The guest goes on here once all of it is in the file.
    pub keeps_running: bool,
    /// The file is for a QEMU.
    pub to_qemu: bool,
    /// The content of the writable disks goes along.
    pub copies_disks: bool,
    /// Parameters of this migration and of later ones. They change only if it begins.
    pub parameters: ParameterChange,
}

/// Which [parameters](vmstate::migrate::PARAMETERS) of migrations change, and which of [TLS](Tls::PARAMETERS), by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParameterChange(Vec<(&'static str, ParameterValue)>);

impl ParameterChange {
    /// And this one.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<ParameterValue>) -> Self {
        self.0.push((name, value.into()));
        self
    }

    pub(super) fn of(&self, parameters: Parameters) -> Result<Parameters, Refusal> {
        let engines = self.0.iter().filter(|(name, _)| Tls::named(name).is_none());
        parameters.changed(engines.cloned()).map_err(|error| Refusal(error.message().to_owned()))
    }

    /// The parameters of TLS, with what changes of them.
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

/// What the guest did to its machine as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest powered off.
    PoweredOff,
    /// The guest resets.
    Reset,
    /// A vCPU cannot go on: why.
    Failed(String),
}

/// What the migration engine asks for, from its thread.
#[derive(Debug)]
pub enum EngineRequest {
    /// Source: stop the guest and read its state, and let the guest run on soon.
    Rehearse(Rehearsing),
    /// Source: stop the guest, and say that the switch-over waits.
    Hold,
    /// Source: stop the guest within this time, if it does not stand already, and read its state.
    Pause(Duration),
    /// Destination: the guest fits this machine; show it the processor that it knows.
    Introduced,
    /// Destination: more pages have come; fill the second-level page tables. Dropped, the token says that this is done.
    Arriving(Arc<()>),
    /// Destination: all sections are loaded; give the kernel its state.
    Loaded {
        /// Nobody hands the guest over and hears that it goes on here: it may go on elsewhere, too.
        may_be_copy: bool,
    },
    /// The guest goes on on this side.
    Resume,
    /// The migration thread has ended.
    Ended(Ended),
}

/// How the migration thread and the driver rehearse a pause together.
#[derive(Debug)]
pub struct Rehearsing {
    /// To the migration thread: the guest stands, and so long that took. Dropped unused: it runs.
    pub stands: Sender<Duration>,
    /// From the migration thread, which drops its end once the guest may run.
    pub over: Receiver<()>,
}

/// A request of either kind that is answered.
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

/// Why a request was not carried out: one sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// A request on its way, with the place for its answer.
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
