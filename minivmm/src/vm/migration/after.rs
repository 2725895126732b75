//! End of a migration: where the guest is, what the user is told, and whether the guest may resume here.

use vmstate::migrate::{Claim, DestinationPhase, Phase, SourcePhase};
use vmstate::ownership::OwnershipError;

use super::ended::{Ended, LeftStopped};
use super::engine_machine::STILL_MARKED;
use crate::error::chain;
use crate::memory::PAGE_SIZE;
use crate::sync::lock;
use crate::vm::assembly::{End, Outcome, Vm};
use crate::vm::request::Refusal;

const UNPROVED: &str = "nothing can prove that the other side does not run the guest, or has not run it: look there, and only \
                        if it did not, ask for cont with force";

impl Vm {
    /// Handles the end of the migration thread, on either side.
    pub(in crate::vm) fn ended(&mut self, end: Ended) -> Result<(), Outcome> {
        if let Phase::Source(SourcePhase::Failed | SourcePhase::Cancelled) = end.phase {
            // The guest is here, with all its resources.
            self.backends.ownership.leave_out(&[]);
        }
        if end.phase == Phase::Source(SourcePhase::Completed) && end.unrecorded {
            // A QEMU takes no output that is not written.
            lock(&self.machine.devices.serial).release();
        }
        let hands_over = self.outgoing.as_ref().is_some_and(|outgoing| outgoing.hands_over);
        if end.phase == Phase::Source(SourcePhase::Completed) && !end.unrecorded && hands_over {
            self.shared.set_handed_over();
        }
        let exits = self.incoming.as_ref().is_none_or(|incoming| incoming.exit_on_error);
        (self.outgoing, self.incoming) = (None, None);
        let state = self.shared.run_state();
        let next = state.after_migration(end.phase);
        if next != state {
            // The engine did not resume the guest: a later resume has to continue where the engine stopped.
            self.left_stopped = Some(LeftStopped::after(&end, &self.backends.ownership));
            self.shared.set_run_state(next);
        }
        let stranded = end.phase == Phase::Destination(DestinationPhase::Stranded);
        if stranded && !self.can_be_asked() {
            // The locks are released with the machine, so that the source may take the guest back.
            let why = format!("{}; nobody can ask for cont here (--control)", end.error.unwrap_or_default());
            return Err(Outcome::Ended(End::Failed(why)));
        }
        let remedy = match end.unrecorded {
            true => "only if the source does not run it, ask for cont with force",
            false => "cont tries again",
        };
        let error = match end.error {
            Some(why) if stranded => Some(format!("{why}; it stays stopped here; {remedy}")),
            error => error,
        };
        let failed_here = end.phase == Phase::Destination(DestinationPhase::Failed);
        if failed_here && !exits {
            self.await_another()?;
        }
        self.publish_end(end.phase, error.clone());
        self.queue.take_up_deferred();
        match failed_here && exits {
            true => {
                let why = error.unwrap_or_default();
                let why = format!("the incoming migration failed, the guest did not run here: {why}");
                Err(Outcome::Ended(End::Failed(why)))
            }
            false => Ok(()),
        }
    }

    /// Destination, where a guest arrived in part and never ran: resets the machine to its start, for another guest.
    fn await_another(&mut self) -> Result<(), Outcome> {
        let failed = |why: String| Outcome::Ended(End::Failed(why));
        let made = self.make_anew();
        made.map_err(|error| failed(format!("the machine could not be made anew: {}", error.with_causes())))?;
        self.firmware.clear();
        let cleared = self.ram.zero_run(0, self.ram.len() / PAGE_SIZE);
        cleared.map_err(|error| failed(format!("memory could not be cleared: {error}")))
    }

    /// Resumes a guest that a migration left stopped, if it is proved that no other process runs it or has run it. If nothing
    /// can prove that, the user (`vouched`) or the engine decides.
    pub(in crate::vm) fn take_back(&mut self, vouched: bool) -> Result<(), Refusal> {
        let ownership = &self.backends.ownership;
        let vouched = vouched || self.left_stopped == Some(LeftStopped::Here);
        // A free lock does not say who has held it since.
        let proved = ownership.is_provable() && self.left_stopped != Some(LeftStopped::Unrecorded);
        let claim = match proved || vouched {
            true => match ownership.claim() {
                // The locks still say who has the guest now.
                Err(OwnershipError::RecordGone { .. }) if vouched => ownership.take().map(|()| Claim::Won),
                claim => claim,
            },
            false => Ok(Claim::Undecidable),
        };
        let claim = claim.map_err(|error| match error {
            OwnershipError::RecordGone { .. } => {
                Refusal(format!("{error}, so {UNPROVED}; the guest stays stopped here"))
            }
            error => stays("who has its disks, or has run on them, cannot be found out", &error),
        })?;
        may_go_on(claim, vouched)?;
        ownership.advance().map_err(|error| stays("that it runs here could not be recorded", &error))?;
        self.backends
            .unmark()
            .map_err(|error| Refusal(format!("{STILL_MARKED}: {error}; the guest stays stopped here")))?;
        self.left_stopped = None;
        // The log was abandoned when the guest had gone.
        self.machine.kvm.stop_dirty_log();
        self.start();
        Ok(())
    }
}

fn stays(what: &str, error: &OwnershipError) -> Refusal {
    Refusal(format!("{what}: {}; the guest stays stopped here", chain(error)))
}

/// Whether a guest that a migration left stopped may run here, after `claim`.
fn may_go_on(claim: Claim, vouched: bool) -> Result<(), Refusal> {
    let why = match claim {
        Claim::Won => return Ok(()),
        Claim::Undecidable if vouched => return Ok(()),
        Claim::Held => "another process holds the guest's disks, and so may run it",
        Claim::Moved => "the guest has run elsewhere since, and its disks have moved on",
        Claim::Undecidable => UNPROVED,
    };
    Err(Refusal(format!("{why}; the guest stays stopped here")))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::thread::JoinHandle;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::config::{Address, Config, Cpu, Disk, ListenAt, RateLimits, Restore, Serial, Tls};
    use crate::vm::handle::Handle;
    use crate::vm::request::{EngineRequest, Request};
    use crate::vm::state::RunState;

    #[test]
    fn force_counts_only_where_nothing_is_proved() {
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

    /// Makes a destination with these disks, whose engine leaves a complete guest stopped. `unrecorded`: the guest is a QEMU's.
    fn strands(disks: Vec<Disk>, control: Option<PathBuf>, unrecorded: bool) -> Option<(Handle, JoinHandle<End>)> {
        if let Err(error) = crate::kvm::open() {
            vmstate_lab::skip::skip(error);
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            kernel: None,
            initrd: None,
            append: String::new(),
            memory: 2 << 20,
            shares_memory: false,
            cpus: 1,
            cpu: Cpu::default(),
            disks,
            lease: None,
            nets: Vec::new(),
            serial: Serial::None,
            control,
            incoming: Some(ListenAt::Address(Address::Unix(dir.path().join("incoming")))),
            restore: Restore::default(),
            tls: Tls::default(),
            kvm: None,
        };
        let vm = Vm::new(config, Box::new(std::io::sink())).unwrap();
        let handle = vm.handle();
        let thread = std::thread::spawn(|| vm.run());
        let phase = Phase::Destination(DestinationPhase::Stranded);
        handle.send(EngineRequest::Ended(Ended { phase, error: Some("the record is read-only".into()), unrecorded }));
        Some((handle, thread))
    }

    fn stranded(disks: Vec<Disk>, unrecorded: bool) -> Option<(Handle, JoinHandle<End>)> {
        let (handle, thread) = strands(disks, Some(PathBuf::new()), unrecorded)?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while handle.run_state() != RunState::Paused {
            assert!(Instant::now() < deadline, "{:?}", handle.run_state());
            std::thread::sleep(Duration::from_millis(1));
        }
        // Published after the run state, by the same request: this waits for its end.
        handle.ask(Request::Stop).unwrap();
        let info = handle.migration();
        let remedy =
            if unrecorded { "only if the source does not run it, ask for cont with force" } else { "cont tries again" };
        let why = format!("the record is read-only; it stays stopped here; {remedy}");
        assert_eq!((info.status().as_str(), info.error), ("failed", Some(why)));
        Some((handle, thread))
    }

    /// The destination has confirmed that it takes over, so no other process runs the guest: the process must not end with it.
    #[test]
    fn a_guest_that_cannot_go_on_where_it_arrived_stays_there() {
        let Some((handle, thread)) = stranded(Vec::new(), false) else { return };
        handle.ask(Request::Cont).unwrap();
        handle.ask(Request::Quit).unwrap();
        assert_eq!(thread.join().unwrap(), End::Quit);
    }

    #[test]
    fn a_guest_that_no_client_can_resume_is_left_to_its_source() {
        let Some((_, thread)) = strands(Vec::new(), None, false) else { return };
        let why = "the record is read-only; nobody can ask for cont here (--control)";
        assert_eq!(thread.join().unwrap(), End::Failed(why.into()));
    }

    /// The source may have taken the guest back and ended since, and a disk without a record proves nothing. A file of procfs
    /// has locks and no extended attributes; this one belongs to this process only.
    #[test]
    fn a_free_lock_alone_does_not_let_a_guest_go_on() {
        let path = PathBuf::from("/proc/self/oom_score_adj");
        let disk = Disk { path, read_only: false, create: None, limits: RateLimits::default() };
        let Some((handle, thread)) = stranded(vec![disk], false) else { return };
        let refusal = handle.ask(Request::Cont).unwrap_err().0;
        assert!(refusal.starts_with("nothing can prove that the other side does not run the guest"), "{refusal}");
        handle.ask(Request::ContUnproved).unwrap();
        // Without a kernel KVM may give up at the first instruction: that the guest left the pause shows that it ran.
        assert_ne!(handle.run_state(), RunState::Paused);
        handle.ask(Request::Quit).unwrap();
        assert_eq!(thread.join().unwrap(), End::Quit);
    }

    /// A QEMU writes no record, so a free lock and an old record do not prove that its guest has not run since; without a disk
    /// nothing does.
    #[test]
    fn the_guest_of_a_qemu_resumes_only_with_force() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, [0; 4096]).unwrap();
        for disks in [vec![], vec![Disk { path, read_only: false, create: None, limits: RateLimits::default() }]] {
            let Some((handle, thread)) = stranded(disks, true) else { return };
            let refusal = handle.ask(Request::Cont).unwrap_err().0;
            assert!(refusal.starts_with("nothing can prove that the other side does not run the guest"), "{refusal}");
            handle.ask(Request::ContUnproved).unwrap();
            assert_ne!(handle.run_state(), RunState::Paused);
            handle.ask(Request::Quit).unwrap();
            assert_eq!(thread.join().unwrap(), End::Quit);
        }
    }
}
