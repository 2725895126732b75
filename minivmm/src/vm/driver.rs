//! The driver: the one thread that changes the machine's run state. `state.rs` has the states, `queue.rs` the order of
//! requests, `decision.rs` the requests that each state allows.

use std::sync::Arc;
use std::time::Duration;

use crate::error::print_message;
use crate::sandbox::{self, Kind};
use crate::sync::lock;
use crate::vm::assembly::{End, Outcome, Vm};
use crate::vm::backup::Jobs;
use crate::vm::decision::{Decision, UnderWay, decide, handles_guest_events};
use crate::vm::dirty_rate::{self, DirtyRate};
use crate::vm::migration::status::MigrationStatus;
use crate::vm::migration::{schema, under_way};
use crate::vm::published::Event;
use crate::vm::queue::{Awaited, Next};
use crate::vm::request::{AnyRequest, EngineRequest, Envelope, GuestEvent, Refusal, Request};
use crate::vm::state::RunState;

/// How long a stop waits for vCPUs and disk I/O in flight. A vCPU leaves the kernel within microseconds, on a loaded host
/// within milliseconds; only a very slow disk takes longer than this.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a quit waits for the driver, which may wait for a disk or a file: then the process ends nevertheless.
const QUIT: Duration = Duration::from_millis(500);

/// How long a machine that ends waits for its backup jobs, which remove their incomplete files.
const JOBS: Duration = Duration::from_millis(250);

impl Vm {
    /// Starts the machine and serves requests until it ends, on a thread of its own. A quit always ends this: anything that the
    /// driver waits for then is left to the end of the process.
    pub fn run(self) -> End {
        let waiting = Arc::clone(self.queue.waiting());
        let presence = waiting.present();
        let driver = sandbox::spawn(Kind::Driver, "driver", move || {
            let _presence = presence;
            self.drive()
        });
        let driver = match driver {
            Ok(driver) => driver,
            Err(error) => return End::Failed(format!("cannot spawn a thread: {error}")),
        };
        // From here on this thread only waits and ends things.
        if let Err(error) = sandbox::confine(Kind::Main) {
            return End::Failed(error.to_string());
        }
        match waiting.await_end(QUIT) {
            Awaited::Gone => {}
            Awaited::Failed(why) => return End::Failed(why),
            Awaited::Stuck => {
                print_message("ended while the machine was busy; its work in flight was not waited for");
                return End::Quit;
            }
        }
        driver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn drive(mut self) -> End {
        let end = self.serve_all();
        self.shared.jobs().cancel_all(JOBS);
        // Senders that wait for an answer learn that there will be none.
        drop(self.queue);
        under_way::give_up(self.outgoing, self.incoming);
        end
    }

    fn serve_all(&mut self) -> End {
        if self.shared.run_state() == RunState::Prelaunch {
            self.start();
        }
        if let Some(origin) = self.origin.take()
            && let Err(Outcome::Ended(end)) = self.receive(origin, self.awaited_at(), true)
        {
            return end;
        }
        loop {
            let handles_events = handles_guest_events(self.shared.run_state());
            let events = self.machine.events();
            let end = match self.queue.next(&|| events.first().filter(|_| handles_events)) {
                Next::Asked(envelope) => self.answer(envelope),
                Next::Guest(event) => self.serve_guest(event),
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Decides about a request, carries it out and answers it; `Some` if the machine has ended.
    fn answer(&mut self, (request, answer): Envelope) -> Option<End> {
        let decision = decide(&request, self.shared.run_state(), self.under_way());
        let cancelled = match decision {
            Decision::CancelOrRefuse => self.cancel_migration(),
            Decision::Accept | Decision::Refuse(_) | Decision::Defer => Ok(()),
        };
        let outcome = match (decision, cancelled) {
            (Decision::Accept, _) => self.serve(request),
            (Decision::Refuse(why), _) => Err(Refusal(why).into()),
            (Decision::CancelOrRefuse, Err(refusal)) => Err(refusal.into()),
            (Decision::Defer | Decision::CancelOrRefuse, _) => {
                self.queue.defer((request, answer));
                return None;
            }
        };
        let (reply, end) = match outcome {
            Ok(()) => (Ok(()), None),
            Err(Outcome::Refused(refusal)) => (Err(refusal), None),
            Err(Outcome::Ended(end)) => (Ok(()), Some(end)),
        };
        // The sender may be gone.
        let _ = answer.send(reply);
        end
    }

    /// Carries out an action of the guest; `Some` if the machine has ended. An event that could not be handled stays flagged,
    /// and is tried again.
    fn serve_guest(&mut self, event: GuestEvent) -> Option<End> {
        let (what, outcome) = match event {
            GuestEvent::PoweredOff => {
                self.shared.set_run_state(RunState::Shutdown);
                return Some(End::PoweredOff);
            }
            GuestEvent::Reset => ("the guest's reset".to_owned(), self.reset(true)),
            GuestEvent::Failed(why) => (format!("{why}; the machine's stop"), self.fail(why)),
        };
        match outcome {
            Ok(()) => None,
            Err(Outcome::Refused(refusal)) => {
                print_message(format_args!("{what} waits: {refusal}"));
                None
            }
            Err(Outcome::Ended(end)) => Some(end),
        }
    }

    fn serve(&mut self, request: AnyRequest) -> std::result::Result<(), Outcome> {
        match request {
            AnyRequest::User(request) => self.serve_user(request)?,
            AnyRequest::Engine(EngineRequest::Rehearse(with)) => self.rehearse(with)?,
            AnyRequest::Engine(EngineRequest::Hold) => self.hold()?,
            AnyRequest::Engine(EngineRequest::Pause(within)) => self.switch_over(within)?,
            AnyRequest::Engine(EngineRequest::AdoptProcessor) => self.adopt_processor()?,
            AnyRequest::Engine(EngineRequest::Arriving(_)) => self.populate(),
            AnyRequest::Engine(EngineRequest::Loaded { may_be_copy }) => self.write_state(may_be_copy)?,
            AnyRequest::Engine(EngineRequest::Resume) => self.go_on(),
            AnyRequest::Engine(EngineRequest::Ended(end)) => self.ended(end)?,
        }
        Ok(())
    }

    fn serve_user(&mut self, request: Request) -> std::result::Result<(), Outcome> {
        match request {
            Request::Stop => self.stop()?,
            Request::Cont => self.cont(false)?,
            Request::ContUnproved => self.cont(true)?,
            Request::Quit => return Err(Outcome::Ended(End::Quit)),
            Request::PowerDown => {
                lock(&self.machine.devices.ged).press_power_button();
                self.shared.notify(Event::PowerDown);
            }
            Request::Reset => self.reset(false)?,
            Request::MeasureDirtyRate(sampling) => {
                if matches!(self.shared.dirty_rate(), DirtyRate::Measuring(_)) {
                    return Err(Refusal("the dirty rate is already being measured.".into()).into());
                }
                let begun = dirty_rate::measure(sampling, self.ram.clone(), &self.shared);
                begun.map_err(|error| Refusal(format!("cannot spawn a thread: {error}")))?;
            }
            Request::Backup(terms) => Jobs::make(&self.shared, &self.backends.images, &terms)?,
            Request::Announce(with) => self.machine.devices.announce(with),
            Request::Migrate(address, terms) => self.migrate(address, &terms)?,
            Request::MigrateIncoming { at, exit_on_error } => self.migrate_incoming(&at, exit_on_error)?,
            Request::DumpSchema(file) => schema::write(&self.parts(), &file)?,
            Request::MigrateContinue => self.continue_migration()?,
            Request::MigrateStartPostcopy => self.start_postcopy()?,
            Request::MigrateResume(address) => self.resume_migration(address)?,
            // A migration under way was cancelled when this was requested, and has ended.
            Request::MigrateCancel => {}
            Request::MigrateSetParameters(change) => self.set_migration_parameters(&change)?,
        }
        Ok(())
    }

    fn under_way(&self) -> UnderWay {
        match (&self.outgoing, &self.incoming) {
            (Some(_), _) => UnderWay::Outgoing,
            (None, Some(_)) => match self.shared.migration().status() {
                MigrationStatus::PostcopyActive => UnderWay::IncomingPostcopy,
                status if status.is_postcopy() => UnderWay::IncomingPostcopyPaused,
                _ => UnderWay::Incoming,
            },
            (None, None) => UnderWay::Nothing,
        }
    }

    fn stop(&mut self) -> std::result::Result<(), Refusal> {
        match self.shared.run_state() {
            RunState::Running => {
                self.pause_all(TIMEOUT)?;
                self.shared.set_run_state(RunState::Paused);
            }
            RunState::InMigrate => self.arrives_stopped = true,
            _ => {}
        }
        Ok(())
    }

    /// Resumes the guest; `vouched`: the user has checked that no other process runs it.
    fn cont(&mut self, vouched: bool) -> std::result::Result<(), Refusal> {
        match self.shared.run_state() {
            RunState::InMigrate => self.arrives_stopped = false,
            RunState::Paused | RunState::PostMigrate if self.left_stopped.is_some() => self.take_back(vouched)?,
            RunState::Prelaunch | RunState::Paused => self.start(),
            _ => {}
        }
        Ok(())
    }

    /// Resets the machine; `by_guest`: at the guest's request.
    fn reset(&mut self, by_guest: bool) -> std::result::Result<(), Outcome> {
        let running = self.shared.run_state() == RunState::Running;
        if running {
            self.pause_all(TIMEOUT)?;
        }
        self.remake()?;
        self.shared.notify(Event::Reset { by_guest });
        if running {
            self.start();
        }
        Ok(())
    }

    /// Keeps a failed machine that a client can inspect, and ends another one.
    fn fail(&self, why: String) -> std::result::Result<(), Outcome> {
        if !self.can_be_asked() {
            return Err(Outcome::Ended(End::Failed(why)));
        }
        self.pause_vcpus(TIMEOUT)?;
        print_message(&why);
        self.shared.set_run_state(RunState::InternalError);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
