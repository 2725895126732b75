//! The driver's part in migrations: begin and cancel them, pause and take back the guest, read and write its state.

use std::sync::{Arc, PoisonError};

use vmstate::migrate::Control;

use crate::config::Address;
use crate::error::chain;
use crate::migration::global::{GlobalState, Timer};
use crate::migration::ownership::SharedTickets;
use crate::migration::ram::{MachineDirtyLog, MachineRam};
use crate::migration::sections::{MachineState, Parts};
use crate::vm::driver::{End, Outcome, Vm};
use crate::vm::handle::{Departed, MigrationStatus, Refusal, Request, RunState};
use crate::vm::incoming::{Door, Reception};
use crate::vm::outgoing::Departure;
use crate::vm::seam::Seam;
use crate::vm::underway::{Answer, Underway};

impl Vm {
    /// Begins to send the guest to `address`.
    pub(super) fn migrate(&mut self, address: Address) -> Result<(), Refusal> {
        if self.underway.is_some() {
            return Err(Refusal("a migration is under way already; cancel it first".into()));
        }
        let before = self.shared.run_state();
        if !matches!(before, RunState::Running | RunState::Paused) {
            return Err(Refusal(format!("the machine is in state {} and cannot migrate", before.as_str())));
        }
        let control = Control::default();
        let parameters = self.shared.parameters();
        control.set_downtime_limit(parameters.downtime_limit);
        control.set_bandwidth_limit(parameters.max_bandwidth);
        self.shared.begin_migration(&control);
        let parts = self.parts();
        let departure = Departure {
            address,
            control: control.clone(),
            machine: Seam::new(self.handle.clone(), &self.backends, &parts.tickets),
            parts,
            ram: MachineRam::new(self.ram.clone()),
            log: MachineDirtyLog::new(Arc::clone(&self.machine.kvm)),
            handle: self.handle.clone(),
            shared: Arc::clone(&self.shared),
        };
        let begun = departure.begin().map_err(|error| Refusal(format!("the host gives no thread: {error}")));
        match &begun {
            Ok(()) => self.underway = Some(Underway { control, waiting: Vec::new(), before, reset: false }),
            Err(refusal) => self.publish_end(MigrationStatus::Failed, Some(refusal.to_string())),
        }
        begun
    }

    /// Cancels; `answer` is given once the migration has ended.
    pub(super) fn cancel_migration(&mut self, answer: Answer) {
        let Some(underway) = &mut self.underway else {
            // As QEMU: nothing to cancel is no error.
            let _ = answer.send(Ok(()));
            return;
        };
        if underway.control.cancel() {
            self.shared.update_migration(|info| info.status = MigrationStatus::Cancelling);
            underway.waiting.push(answer);
        } else {
            let refusal = "the guest is being handed over already; it cannot be cancelled any more";
            let _ = answer.send(Err(Refusal(refusal.into())));
        }
    }

    /// Changes the limits, also of a migration under way.
    pub(super) fn set_migration_parameters(&self, request: &Request) {
        let Request::MigrateSetParameters { downtime_limit, max_bandwidth } = *request else { return };
        let mut parameters = self.shared.parameters();
        parameters.downtime_limit = downtime_limit.unwrap_or(parameters.downtime_limit);
        parameters.max_bandwidth = max_bandwidth.unwrap_or(parameters.max_bandwidth);
        self.shared.set_parameters(parameters);
        if let Some(underway) = &self.underway {
            underway.control.set_downtime_limit(parameters.downtime_limit);
            underway.control.set_bandwidth_limit(parameters.max_bandwidth);
        }
    }

    /// True if a reset has to wait for the end of a migration, which is cancelled for it.
    pub(super) fn defer_reset(&mut self) -> bool {
        let Some(underway) = &mut self.underway else { return false };
        underway.control.cancel();
        underway.reset = true;
        true
    }

    /// Source: stops the guest and reads the state that is in the kernel.
    pub(super) fn switch_over(&mut self) -> Result<(), Refusal> {
        let Some(underway) = &mut self.underway else {
            return Err(Refusal("no migration is under way".into()));
        };
        let state = self.shared.run_state();
        if !matches!(state, RunState::Running | RunState::Paused) {
            return Err(Refusal(format!("the machine is in state {} and cannot be handed over", state.as_str())));
        }
        underway.before = state;
        if state == RunState::Running {
            self.rest()?;
        }
        let hypervisor = match self.machine.read_state() {
            Ok(hypervisor) => hypervisor,
            Err(error) => {
                if state == RunState::Running {
                    self.start();
                }
                return Err(Refusal(chain(&error)));
            }
        };
        let tsc = hypervisor.vcpus.first().map_or(0, |vcpu| vcpu.cpu.tsc);
        let timer = Timer::at(hypervisor.clock.clock, tsc);
        let state = MachineState { hypervisor, timer, global: GlobalState::new(state.as_str()) };
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        self.shared.set_run_state(RunState::FinishMigrate);
        self.shared.update_migration(|info| info.status = MigrationStatus::Device);
        Ok(())
    }

    /// Destination: writes the state that belongs into the kernel. The guest has not run.
    pub(super) fn write_state(&self) -> Result<(), Refusal> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.machine.write_state(&state.hypervisor).map_err(|error| Refusal(chain(&error)))
    }

    /// Source: the guest goes on here as before. Destination: it goes on as it was at the source.
    pub(super) fn go_on(&mut self) -> Result<(), Refusal> {
        let runs = match (self.shared.run_state(), &self.underway) {
            (RunState::FinishMigrate, Some(underway)) => underway.before == RunState::Running,
            (RunState::InMigrate, _) => self.state.lock().unwrap_or_else(PoisonError::into_inner).global.was_running(),
            (state, _) => return Err(Refusal(format!("the machine is in state {} and cannot go on", state.as_str()))),
        };
        if runs {
            self.start();
        } else {
            self.shared.set_run_state(RunState::Paused);
        }
        Ok(())
    }

    /// Source: the migration thread has ended.
    pub(super) fn departed(&mut self, end: Departed) -> Result<(), Outcome> {
        let Some(underway) = self.underway.take() else { return Ok(()) };
        let (status, error) = match end {
            Departed::Sent => (MigrationStatus::Completed, None),
            Departed::Cancelled => (MigrationStatus::Cancelled, None),
            Departed::Failed(why) => (MigrationStatus::Failed, Some(why)),
            Departed::Unacknowledged(why) => {
                let why = format!("the destination has the disk images and so the guest, but did not confirm: {why}");
                (MigrationStatus::Completed, Some(why))
            }
            Departed::Undecided(why) => {
                let why = format!("{why}; the destination may run the guest: look there, and cont here if it does not");
                (MigrationStatus::Failed, Some(why))
            }
        };
        if self.shared.run_state() == RunState::FinishMigrate {
            let state = if status == MigrationStatus::Completed { RunState::PostMigrate } else { RunState::Paused };
            self.shared.set_run_state(state);
        }
        self.publish_end(status, error);
        for answer in underway.waiting {
            let _ = answer.send(Ok(()));
        }
        if underway.reset && status != MigrationStatus::Completed { self.reset() } else { Ok(()) }
    }

    /// Destination: listens for the source.
    pub(super) fn receive(&self, door: Door) -> Result<(), Outcome> {
        let control = Control::default();
        self.shared.begin_migration(&control);
        let parts = self.parts();
        let reception = Reception {
            door,
            machine: Seam::new(self.handle.clone(), &self.backends, &parts.tickets),
            parts,
            ram: MachineRam::new(self.ram.clone()),
            handle: self.handle.clone(),
            control,
        };
        reception.begin().map_err(|error| Outcome::Ended(End::Failed(format!("the host gives no thread: {error}"))))
    }

    /// Destination: the migration thread has ended.
    pub(super) fn arrived(&self, end: Result<(), String>) -> Result<(), Outcome> {
        match end {
            Ok(()) => {
                self.publish_end(MigrationStatus::Completed, None);
                Ok(())
            }
            Err(why) => {
                self.publish_end(MigrationStatus::Failed, Some(why.clone()));
                let why = format!("the incoming migration failed, the guest did not run here: {why}");
                Err(Outcome::Ended(End::Failed(why)))
            }
        }
    }

    fn parts(&self) -> Parts {
        Parts {
            state: Arc::clone(&self.state),
            vcpus: self.machine.vcpus.len(),
            tickets: SharedTickets::default(),
            devices: self.machine.devices.sections(),
        }
    }

    fn publish_end(&self, status: MigrationStatus, error: Option<String>) {
        self.shared.update_migration(|info| (info.status, info.error) = (status, error));
    }
}
