//! What follows the end of a migration: where the guest is, what the user is told, and whether the guest may go on here.

use vmstate::migrate::{Claim, DestinationPhase, Machine as _, Phase, SourcePhase};

use super::Outgoing;
use super::ended::Ended;
use crate::error::chain;
use crate::vm::driver::{End, Outcome, Vm};
use crate::vm::request::Refusal;

impl Vm {
    /// The migration thread has ended, on either side.
    pub(in crate::vm) fn ended(&mut self, end: Ended) -> Result<(), Outcome> {
        let outgoing = self.outgoing.take();
        self.incoming = None;
        let state = self.shared.run_state();
        let next = state.after_migration(end.phase);
        if next != state {
            // The engine did not let the guest go on: whoever wants that has to go on where the engine stopped.
            self.owner = end.owner;
            self.shared.set_run_state(next);
        }
        let error = match outgoing {
            Some(Outgoing { cancelled_for: Some(why), .. }) if end.phase == Phase::Source(SourcePhase::Cancelled) => {
                Some(why.into())
            }
            _ => end.error,
        };
        self.publish_end(end.phase, error.clone());
        self.queue.take_up_deferred();
        match end.phase {
            Phase::Destination(DestinationPhase::Failed) => {
                let why = error.unwrap_or_default();
                let why = format!("the incoming migration failed, the guest did not run here: {why}");
                Err(Outcome::Ended(End::Failed(why)))
            }
            _ => Ok(()),
        }
    }

    /// Destination: whether the guest stands when it has arrived, or goes on as it was.
    pub(in crate::vm) fn arrives_stopped(&mut self, stopped: bool) {
        if let Some(incoming) = &mut self.incoming {
            incoming.stopped = stopped;
        }
    }

    /// Lets a guest go on that a migration has left standing, if it is proved that nobody else runs it or has run it. Where
    /// nothing can prove it, a word for it counts (`vouched`): the user's, or at the side that the guest belongs to the
    /// engine's.
    pub(in crate::vm) fn take_back(&mut self, vouched: bool) -> Result<(), Refusal> {
        let claim = match &mut self.owner {
            // A lock that is free now does not tell who has had it since.
            Some(owner) if owner.is_provable() || vouched => owner.claim().map_err(|error| Refusal(chain(&error)))?,
            _ => Claim::Undecidable,
        };
        may_go_on(claim, vouched)?;
        if let Some(owner) = &mut self.owner {
            owner.advance().map_err(|error| Refusal(chain(&error)))?;
        }
        self.owner = None;
        self.start();
        Ok(())
    }
}

/// Whether a guest that a migration has left standing may run here, after `claim`.
fn may_go_on(claim: Claim, vouched: bool) -> Result<(), Refusal> {
    let why = match claim {
        Claim::Won => return Ok(()),
        Claim::Undecidable if vouched => return Ok(()),
        Claim::Held => "another process holds the guest's disks, and so may run it",
        Claim::Moved => "the guest has run elsewhere since, and its disks have moved on",
        Claim::Undecidable => {
            "nothing can prove that the destination does not run the guest: look there, and only if it does not, ask for \
             cont with force"
        }
    };
    Err(Refusal(format!("{why}; the guest stays stopped here")))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::config::{Address, Config, Serial};
    use crate::vm::request::{EngineRequest, Request};
    use crate::vm::state::RunState;

    #[test]
    fn a_word_for_it_counts_only_where_nothing_is_proved() {
        let cases = [
            (Claim::Won, false, ""),
            (Claim::Won, true, ""),
            (Claim::Held, false, "another process holds the guest's disks"),
            (Claim::Held, true, "another process holds the guest's disks"),
            (Claim::Moved, false, "the guest has run elsewhere since"),
            (Claim::Moved, true, "the guest has run elsewhere since"),
            (Claim::Undecidable, false, "nothing can prove"),
            (Claim::Undecidable, true, ""),
        ];
        for (claim, vouched, why) in cases {
            match may_go_on(claim, vouched) {
                Ok(()) => assert!(why.is_empty(), "{claim:?}, {vouched}"),
                Err(Refusal(sentence)) => {
                    assert!(!why.is_empty() && sentence.starts_with(why), "{claim:?}, {vouched}: {sentence}");
                }
            }
        }
    }

    /// It has told the source that it takes over, so nobody else runs the guest: the process must not end with it.
    #[test]
    fn a_guest_that_cannot_go_on_where_it_arrived_stays_there() {
        if let Err(error) = crate::kvm::open() {
            return vmstate_lab::skip::skip(error);
        }
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            kernel: None,
            initrd: None,
            append: String::new(),
            memory: 2 << 20,
            cpus: 1,
            disks: Vec::new(),
            lease: None,
            nets: Vec::new(),
            serial: Serial::None,
            control: Some(PathBuf::new()),
            incoming: Some(Address::Unix(dir.path().join("door"))),
        };
        let vm = Vm::new(config, Box::new(std::io::sink())).unwrap();
        let handle = vm.handle();
        let thread = std::thread::spawn(|| vm.run());
        let stranded = Phase::Destination(DestinationPhase::Stranded);
        handle.tell(EngineRequest::Ended(Ended::without_owner(stranded, Some("the record is read-only".into()))));
        let deadline = Instant::now() + Duration::from_secs(60);
        while handle.run_state() != RunState::Paused {
            assert!(Instant::now() < deadline, "{:?}", handle.run_state());
            std::thread::sleep(Duration::from_millis(1));
        }
        // Published after the run state, by the same request: this waits for its end.
        handle.ask(Request::Stop).unwrap();
        let info = handle.migration();
        assert_eq!((info.status().as_str(), info.error.as_deref()), ("failed", Some("the record is read-only")));
        handle.ask(Request::Cont).unwrap();
        handle.ask(Request::Quit).unwrap();
        assert_eq!(thread.join().unwrap(), End::Quit);
    }
}
