//! The conditions after a fault: one guest, at the expected side, with its memory and disk, and two sides in the
//! expected state.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cell::{Answer, Fault, Guest, Says};
use super::place::Place;
use super::side::Side;
use super::{PATIENCE, Result, until};

/// The answer to the case's command, if there was one.
pub(super) type Told = Option<Result<()>>;

/// Waits until a side is in the expected state.
///
/// # Errors
/// The state that the side has instead.
pub(super) fn says(name: &str, side: &mut Side, wanted: Says) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ended = side.exit_code();
        let (found, said) = match (ended, wanted) {
            (Some(None), Says::Killed) => return Ok(()),
            (Some(code), Says::Ended(wanted, text)) => {
                let errors = side.vmm.errors();
                (code == Some(wanted) && errors.contains(text), format!("ended with {code:?}: {errors}"))
            }
            (Some(code), _) => (false, format!("ended with {code:?}: {}", side.vmm.errors())),
            (None, _) => match (side.answers(), wanted) {
                (Ok((state, status, error)), Says::Answers(wanted_state, wanted_status, text)) => (
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

pub(super) fn answered(wanted: Answer, told: Told) -> Result<()> {
    match (wanted, &told) {
        (Answer::None, None) | (Answer::Done, Some(Ok(()))) => Ok(()),
        (Answer::Refused(text), Some(Err(why))) if why.contains(text) => Ok(()),
        _ => Err(format!("the command's answer is {told:?}, expected {wanted:?}")),
    }
}

/// The conditions at the end of a case.
pub(super) struct Ending<'a> {
    pub(super) place: &'a mut Place,
    pub(super) fault: Fault,
    pub(super) source: Says,
    pub(super) destination: Says,
}

impl Ending<'_> {
    pub(super) fn check(&mut self, guest: Guest) -> Result<()> {
        if guest == Guest::AnewAtDestination {
            let (place, banner) = (&*self.place, self.place.subject.banner);
            let started = || Ok(place.consoles().0.contains(banner) || place.consoles().1.contains(banner));
            until("the guest starts again", started)?;
        }
        match guest {
            Guest::AtSource => self.runs_at_source()?,
            Guest::AtDestination | Guest::AnewAtDestination => self.runs_at_destination()?,
            Guest::StaleAtSource => self.nobody_runs()?,
            Guest::PausedAtSource => {
                self.nobody_runs()?;
                let cont = self.place.source.execute("cont", Value::Null);
                cont.map_err(|error| format!("the guest cannot be resumed at the source: {error}"))?;
                self.runs_at_source()?;
            }
            Guest::UndecidedAtSource => {
                self.nobody_runs()?;
                self.no_cont_at_source()?;
                let cont = self.place.source.execute("cont", json!({ "force": true }));
                cont.map_err(|error| format!("the guest cannot be resumed with `force` at the source: {error}"))?;
                self.runs_at_source()?;
            }
            Guest::PausedAtDestination => {
                self.nobody_runs()?;
                self.no_cont_at_source()?;
                let cont = self.place.destination.execute("cont", Value::Null);
                cont.map_err(|error| format!("the guest cannot be resumed at the destination: {error}"))?;
                self.runs_at_destination()?;
            }
            Guest::LacksPages => {
                self.no_cont_at_source()?;
                self.no_forced_cont_at_source()?;
                self.place.resume(None)?;
                self.completes()?;
            }
            Guest::PoweredOff | Guest::DiedWithItsProcess | Guest::Lost => {
                self.nobody_runs()?;
                self.no_cont_at_source()?;
            }
        }
        if matches!(self.source, Says::Answers(_, "postcopy-paused", _)) {
            self.source_is_let_go(guest)?;
        }
        check_consoles(self.place, guest, self.source == Says::Killed)?;
        // After a failed hand-over in place, another new process can take the guest over.
        if self.place.is_in_place() && guest == Guest::AtSource {
            return self.migrates_after_all();
        }
        // A waiting destination still accepts a real source, if it fits the guest.
        let fit = !matches!(self.fault, Fault::OtherMemory | Fault::ImageCopied);
        if fit && matches!(self.destination, Says::Answers("inmigrate", ..)) && guest == Guest::AtSource {
            says("the destination", &mut self.place.destination, self.destination)?;
            self.migrates_after_all()?;
        }
        Ok(())
    }

    /// Checks that the states of both sides are not transient.
    pub(super) fn lasts(&mut self, guest: Guest) -> Result<()> {
        // In these cases the test has resumed the guest since.
        if matches!(guest, Guest::PausedAtSource | Guest::UndecidedAtSource | Guest::PausedAtDestination) {
            return Ok(());
        }
        says("the source", &mut self.place.source, self.source)?;
        says("the destination", &mut self.place.destination, self.destination)
    }

    fn runs_at_source(&mut self) -> Result<()> {
        let silent = self.place.destination.vmm.console();
        self.goes_on(|place| &mut place.source)?;
        if self.place.destination.holds(&self.place.image) {
            return Err("the guest runs at the source, and the destination holds the image's lock".into());
        }
        if matches!(self.destination, Says::Answers("paused", ..)) {
            self.no_cont_at_destination()?;
        }
        self.stays(&silent, |place| place.destination.vmm.console())
    }

    fn runs_at_destination(&mut self) -> Result<()> {
        self.no_cont_at_source()?;
        self.no_forced_cont_at_source()?;
        let silent = self.place.source.vmm.console();
        self.goes_on(|place| &mut place.destination)?;
        if self.place.source.holds(&self.place.image) {
            return Err("the guest runs at the destination, and the source holds the image's lock".into());
        }
        self.stays(&silent, |place| place.source.vmm.console())
    }

    /// Waits for three more passes of the guest at the side that holds the lock, and lets the guest verify its work.
    fn goes_on(&mut self, side: impl Fn(&mut Place) -> &mut Side) -> Result<()> {
        let place = &mut *self.place;
        // The console's output is lost.
        let by_disk = (self.fault == Fault::DiskFull).then_some(place.subject.pass_on_disk).flatten();
        let pass = |place: &mut Place| match by_disk {
            Some(pass) => pass(&place.image),
            None => Ok(side(place).last_pass()),
        };
        let before = pass(place)?;
        until("the guest goes on", || Ok(pass(place)? >= before + 3))?;
        let image = place.image.clone();
        if !side(place).holds(&image) {
            return Err("the side that runs the guest does not hold the image's lock".into());
        }
        (place.subject.verify)(&mut side(place).vmm)
    }

    fn nobody_runs(&mut self) -> Result<()> {
        let consoles = |place: &Place| place.source.vmm.console() + &place.destination.vmm.console();
        let before = consoles(self.place);
        self.stays(&before, consoles)
    }

    fn stays(&mut self, before: &str, console: impl Fn(&Place) -> String) -> Result<()> {
        std::thread::sleep(self.place.subject.silence);
        let after = console(self.place);
        if after == before { Ok(()) } else { Err(format!("a second guest runs: {:?}", after.strip_prefix(before))) }
    }

    /// Checks that a source which has handed over, or cannot prove that it has not, refuses `cont`.
    fn no_cont_at_source(&mut self) -> Result<()> {
        if !matches!(self.source, Says::Answers(..)) {
            return Ok(());
        }
        match self.place.source.execute("cont", Value::Null) {
            Err(_) => Ok(()),
            Ok(_) => Err("`cont` is accepted at the source, which does not have the guest any more".into()),
        }
    }

    /// Checks that `cont` with `force` is refused as well: the lock shows that the guest runs.
    fn no_forced_cont_at_source(&mut self) -> Result<()> {
        if !matches!(self.source, Says::Answers(..)) {
            return Ok(());
        }
        match self.place.source.execute("cont", json!({ "force": true })) {
            Err(_) => Ok(()),
            Ok(_) => Err("`cont` with `force` is accepted at the source while the destination runs the guest".into()),
        }
    }

    /// Checks that a stale copy refuses `cont`.
    fn no_cont_at_destination(&mut self) -> Result<()> {
        match self.place.destination.execute("cont", Value::Null) {
            Err(_) => Ok(()),
            Ok(_) => Err("`cont` is accepted at the destination, though the guest has run at the source since".into()),
        }
    }

    fn migrates_after_all(&mut self) -> Result<()> {
        self.place.new_wire()?;
        self.place.migrate()?;
        self.completes()?;
        check_consoles(self.place, Guest::AtDestination, false)
    }

    /// Checks that another attempt migrates the guest completely.
    fn completes(&mut self) -> Result<()> {
        self.source = Says::Answers("postmigrate", "completed", "");
        self.destination = Says::Answers("running", "completed", "");
        says("the source of the second attempt", &mut self.place.source, self.source)?;
        says("the destination of the second attempt", &mut self.place.destination, self.destination)?;
        self.runs_at_destination()
    }

    /// Checks that a source whose destination needs nothing more, or is gone, waits until `migrate_cancel`, and does
    /// not run its older guest afterwards either.
    fn source_is_let_go(&mut self, guest: Guest) -> Result<()> {
        let told = self.place.source.execute("migrate_cancel", Value::Null);
        told.map_err(|why| format!("`migrate_cancel` does not end the source's wait: {why}"))?;
        self.source =
            Says::Answers("postmigrate", "failed", "unless the destination says that the migration completed");
        says("the source after `migrate_cancel`", &mut self.place.source, self.source)?;
        self.no_cont_at_source()?;
        if guest == Guest::AtDestination { self.no_forced_cont_at_source() } else { Ok(()) }
    }
}

/// Checks the guest's output: no complaint, and each pass was made once, on one side.
///
/// # Errors
/// The condition that failed.
pub fn check_consoles(place: &Place, guest: Guest, source_killed: bool) -> Result<()> {
    let (source, destination) = place.consoles();
    let whole = source + &destination;
    if let Some(complaint) = (place.subject.complaint)(&whole) {
        return Err(complaint);
    }
    let never_ran = matches!(guest, Guest::AtSource | Guest::PausedAtSource | Guest::UndecidedAtSource);
    if never_ran && !destination.is_empty() {
        return Err(format!("the guest ran at the destination, too: {destination:?}"));
    }
    for boot in whole.split(place.subject.banner) {
        let passes = (place.subject.passes)(boot);
        // A killed process loses output that it had not written to its console yet.
        let in_turn = |two: &[u64]| if source_killed { two[0] < two[1] } else { two[0] + 1 == two[1] };
        if !passes.windows(2).all(in_turn) {
            return Err(format!("passes are duplicated or lost: {passes:?}"));
        }
    }
    let boots = whole.matches(place.subject.banner).count();
    let wanted = usize::from(guest == Guest::AnewAtDestination);
    if boots == wanted { Ok(()) } else { Err(format!("the guest was started again {boots} times, not {wanted}")) }
}
