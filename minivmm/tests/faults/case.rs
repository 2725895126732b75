//! One case of the matrix, on two real processes: the fault, and what must hold after it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::place::{Oddities, PATIENCE, Place, Side, ThirdParty};
use crate::table::{Answer, Cell, Fault, Guest, Phase, Says};
use crate::wire::{Alteration, Mark, Wire};

/// A command is given this long before the wire flows again: some are answered only once the migration has ended.
const COMMAND: Duration = Duration::from_millis(500);
/// Nobody ran if nobody made a pass in this time; a pass takes a few milliseconds.
const SILENCE: Duration = Duration::from_millis(300);

type Result<T> = std::result::Result<T, String>;

/// Makes the fault happen and checks the ending.
pub(crate) fn walk(fault: Fault, phase: Phase, cell: &Cell) -> Result<()> {
    let Cell::Ends { guest, source, destination, answer } = *cell else { return Ok(()) };
    let mut place = Place::new(oddities(fault, phase))?;
    let told = (|| {
        place.migrate()?;
        place.wire.await_mark(phase.mark(), Instant::now() + PATIENCE)?;
        inject(fault, phase, &mut place)
    })();
    let checked = told.and_then(|told| {
        says("the source", &mut place.source, source)?;
        says("the destination", &mut place.destination, destination)?;
        answered(answer, told)?;
        let mut ending = Ending { place: &mut place, fault, source, destination };
        ending.check(guest)?;
        ending.lasts(guest)
    });
    checked.map_err(|why| format!("{why}\n  {}", describe(&mut place)))
}

fn oddities(fault: Fault, phase: Phase) -> Oddities {
    let change = |find, at, put| Some(Alteration { find, at, put });
    // Name, instance 0, version 3 of QEMU's serial port; behind it divider (2 bytes), receive buffer, IER.
    const SERIAL: &[u8] = b"serial\0\0\0\0\0\0\0\x03";
    let alteration = match fault {
        Fault::WrongMagic => change(b"QEVM", 3, b"X"),
        Fault::WrongMachine => change(b"microvm", 0, b"macrovm"),
        Fault::LoadRefused => change(SERIAL, SERIAL.len() - 1, b"\x63"),
        Fault::UnknownSection => change(SERIAL, 0, b"cereal"),
        Fault::PostLoadFails => change(SERIAL, SERIAL.len() + 3, b"\xf0"),
        _ => None,
    };
    Oddities {
        hold: Some(phase.mark()),
        alteration,
        image_copied: fault == Fault::ImageCopied,
        destination_memory_mib: (fault == Fault::OtherMemory).then_some(32),
        console_full: fault == Fault::DiskFull,
    }
}

/// What was answered, where there was a command.
type Told = Option<Result<()>>;

fn inject(fault: Fault, phase: Phase, place: &mut Place) -> Result<Told> {
    match fault {
        Fault::SourceKilled => place.source.kill(),
        Fault::DestinationKilled => place.destination.kill(),
        Fault::WireCut => place.wire.behave(Wire::Cut),
        Fault::WireStalls => {
            place.wire.behave(Wire::Stalls);
            ends_at_source(place)?;
            place.wire.behave(Wire::Cut);
        }
        Fault::WireTrickles => {
            place.wire.behave(Wire::Trickles(512));
            match phase {
                Phase::Setup | Phase::Rounds => {
                    std::thread::sleep(COMMAND);
                    let told = command(place, "migrate_cancel", Value::Null, PATIENCE)?;
                    place.wire.behave(Wire::Flows);
                    return Ok(told);
                }
                _ => ends_at_source(place)?,
            }
        }
        Fault::LockTaken => {
            let third = ThirdParty::take(&place.image)?;
            place.wire.behave(Wire::Flows);
            ends_at_source(place)?;
            until("the destination ends", || Ok(place.destination.exit_code().is_some()))?;
            drop(third);
        }
        Fault::LockTakenBriefly => {
            let third = ThirdParty::take(&place.image)?;
            place.wire.behave(Wire::Flows);
            std::thread::sleep(Duration::from_millis(200));
            drop(third);
        }
        Fault::EofLate => ends_at_source(place)?,
        Fault::EofLateAfterQuit => {
            ends_at_source(place)?;
            let before = place.source.last_pass();
            until("the guest goes on at the source", || Ok(place.source.last_pass() > before + 2))?;
            // Its answer may not come any more.
            let _ = place.source.vmm.qmp.execute("quit", Value::Null);
            until("the source ends", || Ok(place.source.exit_code().is_some()))?;
        }
        Fault::GuestPowersOff | Fault::GuestReboots => {
            let key = if fault == Fault::GuestPowersOff { "q" } else { "r" };
            let side = if phase == Phase::Shut { &mut place.destination } else { &mut place.source };
            // The guest looks at its serial port once in each pass.
            let before = side.last_pass();
            until("the guest runs", || Ok(side.last_pass() > before))?;
            side.vmm.type_in(key).map_err(|error| error.to_string())?;
            std::thread::sleep(COMMAND);
        }
        Fault::Cancel => return released(place, "migrate_cancel", Value::Null),
        Fault::Quit => {
            // A process that ends may not come to answer.
            let told = released(place, "quit", Value::Null)?;
            let lost = |why: &String| why.contains("lost");
            return Ok(told.map(|told| if told.as_ref().is_err_and(lost) { Ok(()) } else { told }));
        }
        Fault::Stop => return released(place, "stop", Value::Null),
        Fault::Reset => return released(place, "system_reset", Value::Null),
        Fault::PowerButton => return released(place, "system_powerdown", Value::Null),
        Fault::SecondMigrate => {
            let again = json!({ "uri": place.wire.uri() });
            return released(place, "migrate", again);
        }
        Fault::ImageCopied
        | Fault::DiskFull
        | Fault::LoadRefused
        | Fault::PostLoadFails
        | Fault::OtherMemory
        | Fault::OtherCpu
        | Fault::UnknownSection
        | Fault::WrongMachine
        | Fault::WrongMagic => {}
    }
    if !matches!(fault, Fault::WireCut | Fault::WireStalls) {
        place.wire.behave(Wire::Flows);
    }
    Ok(None)
}

/// Gives the source a command, and lets the wire flow once it had time to be carried out.
fn released(place: &mut Place, name: &'static str, arguments: Value) -> Result<Told> {
    let answer = place.source.ask(name, arguments);
    let deadline = Instant::now() + COMMAND;
    while !answer.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let in_time = answer.is_finished();
    place.wire.behave(Wire::Flows);
    if name == "migrate_cancel" && !in_time {
        return Err(format!("{name} is not answered within {COMMAND:?}, while the wire is silent"));
    }
    join(answer)
}

fn command(place: &mut Place, name: &'static str, arguments: Value, patience: Duration) -> Result<Told> {
    let answer = place.source.ask(name, arguments);
    let deadline = Instant::now() + patience;
    while !answer.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    join(answer)
}

fn join(answer: std::thread::JoinHandle<Result<()>>) -> Result<Told> {
    // Each step of it has a deadline of its own.
    answer.join().map(Some).map_err(|_| "the thread that gave a command panicked".to_owned())
}

/// Waits until the source's migration is over, one way or another.
fn ends_at_source(place: &mut Place) -> Result<()> {
    until("the source's migration ends", || {
        if place.source.exit_code().is_some() {
            return Ok(true);
        }
        let (_, status, _) = place.source.answers()?;
        Ok(!matches!(status.as_str(), "setup" | "active" | "device" | "cancelling" | "pre-switchover"))
    })
}

/// Waits for `condition`.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        if Instant::now() > deadline {
            return Err(format!("not within {PATIENCE:?}: {what}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Waits until a side says what it is to say.
fn says(name: &str, side: &mut Side, wanted: Says) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (found, said) = match (side.exit_code(), wanted) {
            (Some(None), Says::Killed) => return Ok(()),
            (Some(code), Says::Ended(wanted, text)) => {
                let errors = side.vmm.errors();
                (code == Some(wanted) && errors.contains(text), format!("ended with {code:?}: {errors}"))
            }
            (Some(code), _) => (false, format!("ended with {code:?}: {}", side.vmm.errors())),
            (None, _) => match (side.answers(), wanted) {
                (Ok((state, status, error)), Says::Answers(wanted_state, wanted_status, text)) => (
                    state == wanted_state && status == wanted_status && error.contains(text),
                    format!("says {state}, {status}, {error:?}"),
                ),
                (other, _) => (false, format!("says {other:?}")),
            },
        };
        if found {
            return Ok(());
        }
        if Instant::now() > deadline || side.exit_code().is_some() {
            return Err(format!("{name} is to be {wanted:?} and {said}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn answered(wanted: Answer, told: Told) -> Result<()> {
    match (wanted, &told) {
        (Answer::None, None) | (Answer::Done, Some(Ok(()))) => Ok(()),
        (Answer::Refused(text), Some(Err(why))) if why.contains(text) => Ok(()),
        _ => Err(format!("the command's answer is to be {wanted:?} and is {told:?}")),
    }
}

/// What must hold in the end.
struct Ending<'a> {
    place: &'a mut Place,
    fault: Fault,
    source: Says,
    destination: Says,
}

impl Ending<'_> {
    fn check(&mut self, guest: Guest) -> Result<()> {
        match guest {
            Guest::AtSource | Guest::AnewAtSource => self.runs_at_source()?,
            Guest::AtDestination | Guest::AnewAtDestination => self.runs_at_destination()?,
            Guest::PausedAtSource => {
                self.nobody_runs()?;
                let cont = self.place.source.vmm.qmp.execute("cont", Value::Null);
                cont.map_err(|error| format!("the guest is safe to run at the source: {error}"))?;
                self.runs_at_source()?;
            }
            Guest::PausedAtDestination => {
                self.nobody_runs()?;
                self.no_cont_at_source()?;
                let cont = self.place.destination.vmm.qmp.execute("cont", Value::Null);
                cont.map_err(|error| format!("the guest is safe to run at the destination: {error}"))?;
                self.runs_at_destination()?;
            }
            Guest::PoweredOff | Guest::DiedWithItsProcess => {
                self.nobody_runs()?;
                self.no_cont_at_source()?;
            }
        }
        check_consoles(self.place, guest, self.source == Says::Killed)?;
        // A destination that waits is reached by a real source.
        if matches!(self.destination, Says::Answers("inmigrate", ..)) && guest == Guest::AtSource {
            says("the destination", &mut self.place.destination, self.destination)?;
            self.migrates_after_all()?;
        }
        Ok(())
    }

    /// What both sides said is not only what they said for a moment.
    fn lasts(&mut self, guest: Guest) -> Result<()> {
        // These went on since, at the wish of the test.
        if matches!(guest, Guest::PausedAtSource | Guest::PausedAtDestination) {
            return Ok(());
        }
        says("the source", &mut self.place.source, self.source)?;
        says("the destination", &mut self.place.destination, self.destination)
    }

    fn runs_at_source(&mut self) -> Result<()> {
        let silent = self.place.destination.vmm.console();
        self.goes_on(|place| place.source.last_pass(), |place| place.source.holds(&place.image))?;
        if self.place.destination.holds(&self.place.image) {
            return Err("the guest runs at the source, and the destination holds the image's lock".into());
        }
        self.stays(&silent, |place| place.destination.vmm.console())
    }

    fn runs_at_destination(&mut self) -> Result<()> {
        let silent = self.place.source.vmm.console();
        match self.fault {
            // What it prints is lost.
            Fault::DiskFull => self.goes_on(Place::pass_on_disk, |place| place.destination.holds(&place.image))?,
            _ => self.goes_on(|place| place.destination.last_pass(), |place| place.destination.holds(&place.image))?,
        }
        self.no_cont_at_source()?;
        if self.place.source.holds(&self.place.image) {
            return Err("the guest runs at the destination, and the source holds the image's lock".into());
        }
        self.stays(&silent, |place| place.source.vmm.console())
    }

    /// Three more passes, by who holds the lock.
    fn goes_on(&mut self, pass: impl Fn(&Place) -> u64, holds: impl Fn(&Place) -> bool) -> Result<()> {
        let before = pass(self.place);
        let place = &mut *self.place;
        until("the guest goes on", || Ok(pass(place) >= before + 3))?;
        if holds(place) { Ok(()) } else { Err("who runs the guest does not hold the image's lock".into()) }
    }

    fn nobody_runs(&mut self) -> Result<()> {
        let consoles = |place: &Place| place.source.vmm.console() + &place.destination.vmm.console();
        let before = consoles(self.place);
        self.stays(&before, consoles)
    }

    fn stays(&mut self, before: &str, console: impl Fn(&Place) -> String) -> Result<()> {
        std::thread::sleep(SILENCE);
        let after = console(self.place);
        if after == before { Ok(()) } else { Err(format!("a second guest runs: {:?}", after.strip_prefix(before))) }
    }

    /// A source that has handed over, or cannot prove that it did not, does not run the guest.
    fn no_cont_at_source(&mut self) -> Result<()> {
        if !matches!(self.source, Says::Answers(..)) {
            return Ok(());
        }
        match self.place.source.vmm.qmp.execute("cont", Value::Null) {
            Err(_) => Ok(()),
            Ok(_) => Err("`cont` is accepted at the source, which does not have the guest any more".into()),
        }
    }

    fn migrates_after_all(&mut self) -> Result<()> {
        self.place.new_wire();
        self.place.migrate()?;
        says(
            "the source of the second migration",
            &mut self.place.source,
            Says::Answers("postmigrate", "completed", ""),
        )?;
        says(
            "the destination of the second migration",
            &mut self.place.destination,
            Says::Answers("running", "completed", ""),
        )?;
        self.source = Says::Answers("postmigrate", "completed", "");
        self.destination = Says::Answers("running", "completed", "");
        self.runs_at_destination()?;
        check_consoles(self.place, Guest::AtDestination, false)
    }
}

/// The guest's own words: memory and disk were right, and each pass was made once, in one place.
pub(crate) fn check_consoles(place: &Place, guest: Guest, source_killed: bool) -> Result<()> {
    let (source, destination) = (place.source.vmm.console(), place.destination.vmm.console());
    let whole = source.clone() + &destination;
    if whole.contains('E') {
        return Err("the guest found its memory or its disk wrong".into());
    }
    if !matches!(guest, Guest::AtDestination | Guest::AnewAtDestination | Guest::PausedAtDestination)
        && !matches!(guest, Guest::PoweredOff | Guest::DiedWithItsProcess)
        && !destination.is_empty()
    {
        return Err(format!("the guest ran at the destination, too: {destination:?}"));
    }
    // A killed process takes what its console had not written yet with it, and so a part of a line.
    let lives: Vec<&str> = whole.split(vmstate_lab::tiny::BANNER).collect();
    for life in lives {
        let passes = vmstate_lab::tiny::passes(life);
        let in_turn = |two: &[u64]| if source_killed { two[0] < two[1] } else { two[0] + 1 == two[1] };
        if !passes.windows(2).all(in_turn) {
            return Err(format!("passes are doubled or lost: {passes:?}"));
        }
    }
    let lives = whole.matches(vmstate_lab::tiny::BANNER).count();
    let wanted = if matches!(guest, Guest::AnewAtSource | Guest::AnewAtDestination) { 2 } else { 1 };
    if lives == wanted { Ok(()) } else { Err(format!("the guest was started {lives} times, not {wanted}")) }
}

fn describe(place: &mut Place) -> String {
    let marks: Vec<Mark> = place.wire.seen().into_iter().map(|(mark, _)| mark).collect();
    let side = |name, side: &mut Side| {
        let state = match side.exit_code() {
            Some(code) => format!("ended with {code:?}"),
            None => format!("{:?}", side.answers()),
        };
        format!("{name}: {state}, last pass {}, stderr {:?}", side.last_pass(), side.vmm.errors())
    };
    let (source, destination) = (side("source", &mut place.source), side("destination", &mut place.destination));
    format!("{source}\n  {destination}\n  wire: {marks:?}")
}
