//! The conditions after a fault: one guest, at the expected side, with its memory and disk, and two sides in the
//! expected state.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cell::{Answer, Fault, Guest, SideState};
use super::setup::TestGuest;
use super::side::Side;
use super::testbed::Testbed;
use super::{Result, TIMEOUT, until};

/// The answer to the case's command, if there was one.
pub(super) type CommandResult = Option<Result<()>>;

/// Waits until a side is in the expected state.
///
/// # Errors
/// The state that the side has instead.
pub(super) fn await_state(name: &str, side: &mut Side, wanted: SideState) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let ended = side.exit_code();
        let (found, said) = match (ended, wanted) {
            (Some(None), SideState::Killed) => return Ok(()),
            (Some(code), SideState::Ended(wanted, text)) => {
                let errors = side.vmm.errors();
                (code == Some(wanted) && errors.contains(text), format!("ended with {code:?}: {errors}"))
            }
            (Some(code), _) => (false, format!("ended with {code:?}: {}", side.vmm.errors())),
            (None, _) => match (side.state(), wanted) {
                (Ok((state, status, error)), SideState::Answers(wanted_state, wanted_status, text)) => (
                    state == wanted_state
                        && status == wanted_status
                        && error.contains(text)
                        && (status != "failed" || !error.is_empty()),
                    format!("says {state}, {status}, {error:?}"),
                ),
                (other, _) => (false, format!("says {other:?}")),
            },
        };
        if found {
            return Ok(());
        }
        if Instant::now() > deadline || ended.is_some() {
            return Err(format!("{name}: expected {wanted:?}, but {said}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(super) fn check_answer(wanted: Answer, result: CommandResult) -> Result<()> {
    match (wanted, &result) {
        (Answer::None, None) | (Answer::Done, Some(Ok(()))) => Ok(()),
        (Answer::Refused(text), Some(Err(why))) if why.contains(text) => Ok(()),
        _ => Err(format!("the command's answer is {result:?}, expected {wanted:?}")),
    }
}

/// The conditions at the end of a case.
pub(super) struct Outcome<'a> {
    pub(super) testbed: &'a mut Testbed,
    pub(super) fault: Fault,
    pub(super) source: SideState,
    pub(super) destination: SideState,
}

impl Outcome<'_> {
    pub(super) fn check(&mut self, guest: Guest) -> Result<()> {
        if guest == Guest::AnewAtDestination {
            let (testbed, banner) = (&*self.testbed, self.testbed.test_guest.banner);
            let started = || Ok(testbed.consoles().0.contains(banner) || testbed.consoles().1.contains(banner));
            until("the guest starts again", started)?;
        }
        match guest {
            Guest::AtSource => self.runs_at_source()?,
            Guest::AtDestination | Guest::AnewAtDestination => self.runs_at_destination()?,
            Guest::StaleAtSource => self.check_neither_runs()?,
            // A migration that completes takes the guest along.
            Guest::AnewAtSource => return Err("a rebooted guest at the source belongs to another table".into()),
            Guest::PausedAtSource => {
                self.check_neither_runs()?;
                let cont = self.testbed.source.execute("cont", Value::Null);
                cont.map_err(|error| format!("the guest cannot be resumed at the source: {error}"))?;
                self.runs_at_source()?;
            }
            Guest::UndecidedAtSource => {
                self.check_neither_runs()?;
                self.no_cont_at_source()?;
                let cont = self.testbed.source.execute("cont", json!({ "force": true }));
                cont.map_err(|error| format!("the guest cannot be resumed with `force` at the source: {error}"))?;
                self.runs_at_source()?;
            }
            Guest::PausedAtDestination => {
                self.check_neither_runs()?;
                self.no_cont_at_source()?;
                let cont = self.testbed.destination.execute("cont", Value::Null);
                cont.map_err(|error| format!("the guest cannot be resumed at the destination: {error}"))?;
                self.runs_at_destination()?;
            }
            Guest::LacksPages => {
                self.no_cont_at_source()?;
                self.no_forced_cont_at_source()?;
                self.testbed.resume(None)?;
                self.completes()?;
            }
            Guest::PoweredOff | Guest::DiedWithItsProcess | Guest::Lost => {
                self.check_neither_runs()?;
                self.no_cont_at_source()?;
            }
        }
        if matches!(self.source, SideState::Answers(_, "postcopy-paused", _)) {
            self.cancel_ends_the_wait(guest)?;
        }
        check_consoles(self.testbed, guest, self.source == SideState::Killed)?;
        // After a failed hand-over in place, another new process can take the guest over.
        if self.testbed.is_in_place() && guest == Guest::AtSource {
            return self.migrates_after_all();
        }
        // A waiting destination still accepts a real source, if it fits the guest.
        let unfit = [Fault::OtherMemory, Fault::ImageCopied, Fault::CopyExists, Fault::ImageTruncated];
        let fit = !unfit.contains(&self.fault);
        if fit && matches!(self.destination, SideState::Answers("inmigrate", ..)) && guest == Guest::AtSource {
            await_state("the destination", &mut self.testbed.destination, self.destination)?;
            self.migrates_after_all()?;
        }
        Ok(())
    }

    /// Checks that the states of both sides are not transient.
    pub(super) fn check_lasts(&mut self, guest: Guest) -> Result<()> {
        // In these cases the test has resumed the guest since.
        if matches!(guest, Guest::PausedAtSource | Guest::UndecidedAtSource | Guest::PausedAtDestination) {
            return Ok(());
        }
        await_state("the source", &mut self.testbed.source, self.source)?;
        await_state("the destination", &mut self.testbed.destination, self.destination)
    }

    fn runs_at_source(&mut self) -> Result<()> {
        let silent = self.testbed.destination.vmm.console();
        let image = self.testbed.image.clone();
        self.check_runs(&image, |testbed| &mut testbed.source)?;
        if self.testbed.destination.holds(&self.testbed.image) {
            return Err("the guest runs at the source, and the destination holds the image's lock".into());
        }
        if matches!(self.destination, SideState::Answers("paused", ..)) {
            self.no_cont_at_destination()?;
        }
        self.check_silent(&silent, |testbed| testbed.destination.vmm.console())
    }

    fn runs_at_destination(&mut self) -> Result<()> {
        self.no_cont_at_source()?;
        self.no_forced_cont_at_source()?;
        let silent = self.testbed.source.vmm.console();
        let image = self.testbed.destination_image().to_owned();
        self.check_runs(&image, |testbed| &mut testbed.destination)?;
        if self.testbed.source.holds(&image) {
            return Err("the guest runs at the destination, and the source holds the image's lock".into());
        }
        self.check_silent(&silent, |testbed| testbed.source.vmm.console())
    }

    /// Waits for three more passes of the guest at the side that holds the lock on `image`, and lets the guest verify its work.
    fn check_runs(&mut self, image: &Path, side: impl Fn(&mut Testbed) -> &mut Side) -> Result<()> {
        let testbed = &mut *self.testbed;
        // The console's output is lost.
        let by_disk = (self.fault == Fault::DiskFull).then_some(testbed.test_guest.pass_on_disk).flatten();
        let pass = |testbed: &mut Testbed| match by_disk {
            Some(pass) => pass(image),
            None => Ok(side(testbed).last_pass()),
        };
        let before = pass(testbed)?;
        until("the guest goes on", || Ok(pass(testbed)? >= before + 3))?;
        if !side(testbed).holds(image) {
            return Err("the side that runs the guest does not hold the image's lock".into());
        }
        (testbed.test_guest.verify)(&mut side(testbed).vmm)
    }

    fn check_neither_runs(&mut self) -> Result<()> {
        let consoles = |testbed: &Testbed| testbed.source.vmm.console() + &testbed.destination.vmm.console();
        let before = consoles(self.testbed);
        self.check_silent(&before, consoles)
    }

    fn check_silent(&mut self, before: &str, console: impl Fn(&Testbed) -> String) -> Result<()> {
        std::thread::sleep(self.testbed.test_guest.silence);
        let after = console(self.testbed);
        if after == before { Ok(()) } else { Err(format!("a second guest runs: {:?}", after.strip_prefix(before))) }
    }

    /// Checks that a source which has handed over, or cannot prove that it has not, refuses `cont`.
    fn no_cont_at_source(&mut self) -> Result<()> {
        if !matches!(self.source, SideState::Answers(..)) {
            return Ok(());
        }
        match self.testbed.source.execute("cont", Value::Null) {
            Err(_) => Ok(()),
            Ok(_) => Err("`cont` is accepted at the source, which does not have the guest any more".into()),
        }
    }

    /// Checks that `cont` with `force` is refused as well: the lock shows that the guest runs. Where the disk is copied, nothing
    /// shows that at the source.
    fn no_forced_cont_at_source(&mut self) -> Result<()> {
        if !matches!(self.source, SideState::Answers(..)) {
            return Ok(());
        }
        if self.testbed.destination_image() != self.testbed.image {
            return Ok(());
        }
        match self.testbed.source.execute("cont", json!({ "force": true })) {
            Err(_) => Ok(()),
            Ok(_) => Err("`cont` with `force` is accepted at the source while the destination runs the guest".into()),
        }
    }

    /// Checks that a stale copy refuses `cont`.
    fn no_cont_at_destination(&mut self) -> Result<()> {
        match self.testbed.destination.execute("cont", Value::Null) {
            Err(_) => Ok(()),
            Ok(_) => Err("`cont` is accepted at the destination, though the guest has run at the source since".into()),
        }
    }

    fn migrates_after_all(&mut self) -> Result<()> {
        self.testbed.new_relay()?;
        self.testbed.migrate()?;
        self.completes()?;
        check_consoles(self.testbed, Guest::AtDestination, false)
    }

    /// Checks that another attempt migrates the guest completely.
    fn completes(&mut self) -> Result<()> {
        self.source = SideState::Answers("postmigrate", "completed", "");
        self.destination = SideState::Answers("running", "completed", "");
        await_state("the source of the second attempt", &mut self.testbed.source, self.source)?;
        await_state("the destination of the second attempt", &mut self.testbed.destination, self.destination)?;
        self.runs_at_destination()
    }

    /// Checks that a source whose destination needs nothing more, or is gone, waits until `migrate_cancel`, and does
    /// not run its older guest afterwards either.
    fn cancel_ends_the_wait(&mut self, guest: Guest) -> Result<()> {
        let result = self.testbed.source.execute("migrate_cancel", Value::Null);
        result.map_err(|why| format!("`migrate_cancel` does not end the source's wait: {why}"))?;
        self.source =
            SideState::Answers("postmigrate", "failed", "unless the destination says that the migration completed");
        await_state("the source after `migrate_cancel`", &mut self.testbed.source, self.source)?;
        self.no_cont_at_source()?;
        if guest == Guest::AtDestination { self.no_forced_cont_at_source() } else { Ok(()) }
    }
}

/// Checks the guest's output: no complaint, and each pass was made once, on one side.
///
/// # Errors
/// The condition that failed.
pub fn check_consoles(testbed: &Testbed, guest: Guest, source_killed: bool) -> Result<()> {
    let (source, destination) = testbed.consoles();
    let whole = source + &destination;
    let never_ran = matches!(guest, Guest::AtSource | Guest::PausedAtSource | Guest::UndecidedAtSource);
    if never_ran && !destination.is_empty() {
        return Err(format!("the guest ran at the destination, too: {destination:?}"));
    }
    check_passes(&testbed.test_guest, &whole, source_killed)?;
    let boots = whole.matches(testbed.test_guest.banner).count();
    let wanted = usize::from(guest == Guest::AnewAtDestination);
    if boots == wanted { Ok(()) } else { Err(format!("the guest was started again {boots} times, not {wanted}")) }
}

/// Checks the output of a guest since any moment: no complaint, and since each boot each pass was made once. A process that was
/// `killed` loses output that it had not written to its console yet.
pub(super) fn check_passes(guest: &TestGuest, console: &str, killed: bool) -> Result<()> {
    if let Some(complaint) = (guest.complaint)(console) {
        return Err(complaint);
    }
    let in_turn = |two: &[u64]| if killed { two[0] < two[1] } else { two[0] + 1 == two[1] };
    for boot in console.split(guest.banner) {
        let passes = (guest.passes)(boot);
        if !passes.windows(2).all(in_turn) {
            return Err(format!("passes are duplicated or lost: {passes:?}"));
        }
    }
    Ok(())
}
