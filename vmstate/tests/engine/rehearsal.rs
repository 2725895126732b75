//! A device that refuses its save while the pause is rehearsed: the pause saves it again, and only that save counts.

use std::ops::Range;
use std::time::Duration;

use crate::pair::guest::Load;
use crate::pair::run::{Outcome, Setup};
use crate::pair::world::{Side, World};
use vmstate::VmState;
use vmstate::migrate::SourcePhase;
use vmstate::section::Sections;

/// Refuses some of its saves, which are counted from 0.
#[derive(VmState, Clone, Default, Debug, PartialEq)]
#[vmstate(name = "busy", pre_save = Self::count)]
struct Busy {
    level: u8,
    #[vmstate(skip)]
    saves: u32,
    #[vmstate(skip)]
    refused: Range<u32>,
}

impl Busy {
    fn count(&mut self) -> Result<(), &'static str> {
        let save = self.saves;
        self.saves += 1;
        if self.refused.contains(&save) { Err("a command is under way") } else { Ok(()) }
    }
}

const REASON: &str = "busy/0: pre_save: a command is under way";

/// A guest that writes all the time, on a wire that needs several rounds for it; returns how often the device was saved.
fn migrate(refused: Range<u32>) -> (Outcome, u32) {
    let world = World::new(None, Some(50e6), Duration::from_micros(200));
    let setup = Setup::with(&[("main.ram", 600)], world, Load { writes_per_second: 4000.0, working_set: 300 });
    setup.source_control.set_downtime_limit(Duration::from_millis(10));
    let (mut device, mut arrived) = (Busy { level: 7, saves: 0, refused }, Busy::default());
    let (mut here, mut there) = (Sections::new(), Sections::new());
    here.add(&mut device).unwrap();
    there.add(&mut arrived).unwrap();
    let outcome = setup.run_with(&mut here, &mut there);
    drop((here, there));
    if outcome.departure.error.is_none() {
        assert_eq!(arrived.level, 7);
        assert_eq!(outcome.destination.guest.memory(), outcome.source.guest.memory());
    }
    (outcome, device.saves)
}

/// Checks that the guest runs here and does not stand for a rehearsal.
fn stayed(outcome: &Outcome) {
    assert_eq!(outcome.departure.phase, SourcePhase::Failed);
    assert_eq!(outcome.departure.error.as_ref().unwrap().to_string(), REASON);
    assert!(outcome.source.running && !outcome.source.rehearses && !outcome.source.released);
    assert!(outcome.source.guest.is_running() && !outcome.destination.running);
    assert_eq!(outcome.source.guest.throttle(), 0, "the engine takes the throttle off");
    assert!(outcome.source.paused.is_some(), "only the pause decides");
}

#[test]
fn a_save_that_only_a_rehearsal_refuses_does_not_end_the_migration() {
    let (untroubled, saves) = migrate(0..0);
    assert_eq!(untroubled.departure.phase, SourcePhase::Completed);
    assert_eq!(untroubled.departure.report.refused_rehearsal, None);
    assert!(saves >= 3, "{saves} saves: the rehearsal before the rounds, one behind the first, the pause");
    for refused in (0..saves - 1).map(|save| save..save + 1).chain(std::iter::once(0..saves - 1)) {
        let (outcome, _) = migrate(refused.clone());
        let Outcome { departure, .. } = &outcome;
        assert_eq!(departure.phase, SourcePhase::Completed, "{refused:?} refused: {:?}", departure.error);
        assert!(outcome.destination.running && !outcome.source.running);
        assert_eq!(departure.report.refused_rehearsal.as_deref(), Some(REASON));
    }
}

/// A rehearsal directly before the pause would be felt as one long pause. The loads range from none to one that takes several
/// rounds.
#[test]
fn the_guest_runs_between_the_last_rehearsal_and_the_pause() {
    const STOP: Duration = Duration::from_millis(30);
    for (writes_per_second, speed) in [(0.0, 50e6), (1000.0, 50e6), (4000.0, 50e6), (1000.0, 5e6)] {
        let world = World::new(None, Some(speed), Duration::from_micros(200));
        let mut setup = Setup::with(&[("main.ram", 2000)], world, Load { writes_per_second, working_set: 300 });
        setup.source.pause_takes = STOP;
        setup.source_control.set_downtime_limit(Duration::from_millis(500));
        let Outcome { departure, source, .. } = setup.run();
        assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
        let ran = source.paused.unwrap() - source.rehearsed.unwrap();
        assert!(ran >= STOP, "{writes_per_second} writes/s, {speed} bytes/s: it ran for {ran:?}");
    }
}

/// The virtual guest stands still for a known time in each rehearsal, in addition to the time of the pages that are sent
/// meanwhile.
#[test]
fn the_pauses_of_rehearsals_are_reported() {
    const STOP: Duration = Duration::from_millis(3);
    let world = World::new(None, Some(50e6), Duration::from_micros(200));
    let mut setup = Setup::with(&[("main.ram", 600)], world, Load { writes_per_second: 4000.0, working_set: 300 });
    setup.source.pause_takes = STOP;
    let control = setup.source_control.clone();
    let outcome = setup.run();
    let report = outcome.departure.report;
    assert_eq!(outcome.departure.phase, SourcePhase::Completed, "{:?}", outcome.departure.error);
    // One rehearsal before the first round, one after it, and at most one a second from then on.
    let seconds = report.total.as_secs() as u32;
    let rehearsed = report.slowdown.rehearsed;
    assert!(2 * STOP <= rehearsed && rehearsed <= (3 + seconds) * (STOP + Duration::from_millis(60)), "{rehearsed:?}");
    assert!(rehearsed < report.total, "{rehearsed:?} of {:?}", report.total);
    assert_eq!(report.slowdown.throttled, Duration::ZERO);
    assert_eq!(control.progress().slowdown, report.slowdown);
    assert_eq!((outcome.source.guest.throttle(), control.progress().throttle_percent), (0, 0));
}

#[test]
fn a_save_that_the_pause_refuses_leaves_the_guest_running_here() {
    let (_, saves) = migrate(0..0);
    let (outcome, _) = migrate(saves - 1..saves);
    stayed(&outcome);
    assert_eq!(outcome.departure.report.refused_rehearsal, None);
    let (outcome, _) = migrate(0..u32::MAX);
    stayed(&outcome);
    assert_eq!(outcome.departure.report.refused_rehearsal.as_deref(), Some(REASON));
    // The destination has received memory, and never the command to run it.
    assert!(outcome.world.sent(Side::Source) > 0);
}
