//! The driver's side of an incoming migration: the address of its source, and the state of the migration thread.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use vmstate::migrate::{Control, DestinationPhase, Phase};

use super::copied::CopiedDisks;
use super::engine_machine::EngineMachine;
use super::incoming::{self, IncomingTask, Origin};
use super::reconnect_listeners::ReconnectListeners;
use super::status::MigrationStatus;
use super::under_way::Incoming;
use super::{LOOK_UP, ended};
use crate::config::Address;
use crate::error::RateLimitedLog;
use crate::migration::ram::MachineRam;
use crate::migration::sections::Parts;
use crate::sync::lock;
use crate::vm::assembly::{End, Outcome, Vm};
use crate::vm::request::Refusal;

impl Vm {
    /// Destination that was started without an address: waits for a source at `address`, or reads the file.
    pub(in crate::vm) fn migrate_incoming(&mut self, address: &Address, exit_on_error: bool) -> Result<(), Outcome> {
        let look_up = |name: &str| self.look_up.addresses(name, Instant::now() + LOOK_UP, &|| true);
        let parameters = self.shared.parameters();
        let direct = parameters.multifd && parameters.direct_io;
        let origin =
            incoming::server(&self.shared.tls()).and_then(|server| incoming::origin(address, server, look_up, direct));
        self.receive(origin.map_err(Refusal)?, Some(address.clone()), exit_on_error)
    }

    /// Destination: waits for the source, at `address` if it is known, or reads the file.
    pub(in crate::vm) fn receive(
        &mut self,
        origin: Origin,
        address: Option<Address>,
        exit_on_error: bool,
    ) -> Result<(), Outcome> {
        let shares_memory = matches!(origin, Origin::HandedOver(_));
        let ram = MachineRam::arriving(self.ram.clone(), self.firmware.clone()).restored(self.config.restore);
        let from_file = matches!(origin, Origin::File(_));
        if !from_file {
            // A failed warm-up does not matter: an arriving guest is loaded anyway.
            let _ = self.warm_up();
        }
        let control = Control::default();
        let setup = Phase::Destination(DestinationPhase::Setup);
        self.shared.begin_migration(setup, &control);
        let copied = CopiedDisks::writable(&self.backends.images);
        let parts = Parts { disks: copied.sections(), ..self.parts() };
        let machine =
            EngineMachine::new(self.handle.clone(), control.clone(), &self.backends, &parts.tickets).copying(&copied);
        let mut task = IncomingTask {
            again: None,
            machine: machine.comparing(self.comparison(from_file)),
            parts,
            ram: match (shares_memory, &self.transferred) {
                (true, Some(_)) => ram.transferred(),
                (true, None) => ram.shared(),
                (false, _) => ram,
            },
            firmware: self.firmware.clone(),
            control: control.clone(),
            shared: Arc::clone(&self.shared),
            log: RateLimitedLog::default(),
        };
        let (handle, ours) = (self.handle.clone(), control.clone());
        let again = |first, server| {
            let (shared, look_up) = (Arc::clone(&self.shared), self.look_up.clone());
            ReconnectListeners {
                first,
                address,
                named: None,
                connected: None,
                can_be_asked: self.can_be_asked(),
                shared,
                look_up,
                server,
            }
        };
        let (begun, listener) = match origin {
            Origin::Listener(listener) => {
                let (log, shared) = (Mutex::new(RateLimitedLog::default()), Arc::clone(&self.shared));
                let listener = Arc::new(listener.on_refusal(move |why| {
                    let why = format!("a connection was turned away: {why}");
                    lock(&log).print(&why);
                    shared.update_migration(|info| {
                        // In post-copy the error says how the guest gets the rest of its memory.
                        if info.status() != MigrationStatus::PostcopyPaused {
                            info.error = Some(why);
                        }
                    });
                }));
                task.again = Some(again(Some(Arc::clone(&listener)), listener.security().clone()));
                let theirs = Arc::clone(&listener);
                (ended::spawn(handle, setup, ours, move || task.await_source(&theirs)), Some(listener))
            }
            Origin::Connection(socket, server) => {
                task.again = Some(again(None, server.clone()));
                (ended::spawn(handle, setup, ours, || task.receive_connected(socket, server)), None)
            }
            Origin::HandedOver(socket) => {
                (ended::spawn(handle, setup, ours, || task.receive_connected(socket, None)), None)
            }
            Origin::File(file) => (ended::spawn(handle, setup, ours, || (task.read(file), None)), None),
        };
        let thread = begun.map_err(|error| Outcome::Ended(End::Failed(format!("cannot spawn a thread: {error}"))))?;
        self.incoming = Some(Incoming { control, thread, listener, from_file, exit_on_error });
        Ok(())
    }
}
