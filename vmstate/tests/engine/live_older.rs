//! Live migrations to an older release: the destination has the structs of that release, and the guest runs on one side whatever
//! state becomes needed during the migration.

use std::time::Duration;

use crate::pair::guest::Load;
use crate::pair::run::{Outcome, Setup};
use crate::pair::world::{Side, World};
use vmstate::VmState;
use vmstate::error::ErrorKind;
use vmstate::migrate::SourcePhase;
use vmstate::schema::json::Schema;
use vmstate::section::Sections;

/// The release that the other hosts run.
mod old {
    use vmstate::VmState;

    #[derive(VmState, Default, Debug, PartialEq)]
    #[vmstate(name = "uart", version = 1)]
    pub(super) struct Uart {
        pub(super) divider: u16,
    }

    #[derive(VmState, Default, Debug, PartialEq)]
    #[vmstate(name = "pic")]
    pub(super) struct Pic {
        pub(super) level: u8,
    }
}

#[derive(VmState, Clone, Default, Debug, PartialEq)]
#[vmstate(name = "uart", version = 2, minimum_version = 1, subsection(name = "uart/sending"))]
struct Uart {
    divider: u16,
    #[vmstate(since = 2)]
    trigger: u32,
    #[vmstate(subsection = "uart/sending")]
    sending: Option<u8>,
}

/// From save number `late_from` on, it needs state that the older release does not have.
#[derive(VmState, Default, Debug, PartialEq)]
#[vmstate(name = "pic", pre_save = Self::count, subsection(name = "pic/late", needed = Self::is_late))]
struct Pic {
    level: u8,
    #[vmstate(subsection = "pic/late")]
    saves: u8,
    #[vmstate(skip)]
    late_from: Option<u8>,
}

impl Pic {
    fn count(&mut self) -> Result<(), &'static str> {
        self.saves += 1;
        Ok(())
    }

    fn is_late(&self) -> bool {
        self.late_from.is_some_and(|from| self.saves >= from)
    }
}

fn of_old<'a>(uart: &'a mut old::Uart, pic: &'a mut old::Pic) -> Sections<'a> {
    let mut sections = Sections::new();
    sections.add(uart).unwrap();
    sections.add(pic).unwrap();
    sections
}

/// The sections of today; the UART's section has been renamed.
fn of_today<'a>(uart: &'a mut Uart, pic: &'a mut Pic) -> Sections<'a> {
    let mut sections = Sections::new();
    sections.register("serial", 0, uart).unwrap();
    sections.add(pic).unwrap();
    sections.add_alias("serial", "uart").unwrap();
    sections
}

/// The schema that the release wrote.
fn release() -> Schema {
    let schema = of_old(&mut old::Uart::default(), &mut old::Pic::default()).schema(None).unwrap();
    Schema::from_json(&schema.to_json()).unwrap()
}

const BLOCKS: [(&str, u64); 1] = [("main.ram", 600)];

/// A guest that writes all the time, on a wire that needs several rounds for it.
fn busy() -> Setup {
    let world = World::new(None, Some(50e6), Duration::from_micros(200));
    let setup = Setup::with(&BLOCKS, world, Load { writes_per_second: 4000.0, working_set: 300 });
    setup.source_control.set_downtime_limit(Duration::from_millis(10));
    setup
}

fn arrived(outcome: &Outcome) {
    assert_eq!(outcome.departure.phase, SourcePhase::Completed, "{:?}", outcome.departure.error);
    assert!(outcome.destination.running && !outcome.source.running);
    assert_eq!(outcome.destination.guest.memory(), outcome.source.guest.memory());
}

/// Checks that the guest runs here and does not stand for a rehearsal.
fn stayed(outcome: &Outcome, phase: SourcePhase) {
    assert_eq!(outcome.departure.phase, phase, "{:?}", outcome.departure.error);
    assert!(outcome.source.running && !outcome.source.rehearses && !outcome.source.released);
    assert!(outcome.source.guest.is_running() && !outcome.source.guest.is_logging() && !outcome.destination.running);
}

#[test]
fn a_running_guest_goes_back_to_the_older_release() {
    let (mut uart, mut pic) = (Uart { divider: 0x0102, trigger: 9, sending: None }, Pic { level: 3, ..Pic::default() });
    let (mut old_uart, mut old_pic) = (old::Uart::default(), old::Pic::default());
    let mut here = of_today(&mut uart, &mut pic);
    here.save_for(Some(release()));
    let outcome = busy().run_with(&mut here, &mut of_old(&mut old_uart, &mut old_pic));
    arrived(&outcome);
    assert_eq!((old_uart, old_pic), (old::Uart { divider: 0x0102 }, old::Pic { level: 3 }));
    // docs/format.md: section full, number, name, instance, version; footer.
    let section = b"\x04\0\0\0\x02\x04uart\0\0\0\0\0\0\0\x01\x01\x02\x7e\0\0\0\x02";
    let stream = outcome.world.recorded();
    assert_eq!(stream.windows(section.len()).filter(|bytes| bytes == section).count(), 1);
}

#[test]
fn what_the_release_lacks_is_refused_with_all_reasons_before_the_first_byte() {
    let (mut uart, mut pic) =
        (Uart { sending: Some(b'x'), ..Uart::default() }, Pic { late_from: Some(1), ..Pic::default() });
    let mut here = of_today(&mut uart, &mut pic);
    here.save_for(Some(release()));
    let outcome = busy().run_with(&mut here, &mut of_old(&mut old::Uart::default(), &mut old::Pic::default()));
    stayed(&outcome, SourcePhase::Failed);
    assert_eq!((outcome.world.sent(Side::Source), outcome.source.paused), (0, None));
    assert!(outcome.arrival.pristine);
    let error = outcome.departure.error.unwrap();
    let text = "the release for which it is saved cannot have this machine: serial/0: subsection \"uart/sending\" is \
                needed now and not known there; pic/0: subsection \"pic/late\" is needed now and not known there";
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Rejected, text));
}

/// Whenever that happens: at the first check, so that nothing is sent; or in the pause, whatever the rehearsals before found.
#[test]
fn what_becomes_needed_on_the_way_leaves_the_guest_running_here() {
    let mut ended = Vec::new();
    for late_from in 1.. {
        let mut pic = Pic { late_from: Some(late_from), ..Pic::default() };
        let (mut uart, mut old_uart, mut old_pic) = (Uart::default(), old::Uart::default(), old::Pic { level: 77 });
        let mut here = of_today(&mut uart, &mut pic);
        here.save_for(Some(release()));
        let outcome = busy().run_with(&mut here, &mut of_old(&mut old_uart, &mut old_pic));
        if outcome.departure.error.is_none() {
            arrived(&outcome);
            break;
        }
        ended.push((outcome.world.sent(Side::Source) > 0, outcome.source.paused.is_some()));
        stayed(&outcome, SourcePhase::Failed);
        let error = outcome.departure.error.unwrap().to_string();
        let reason = "pic/0: subsection \"pic/late\" is needed now and not known there";
        assert_eq!(error, format!("the release for which it is saved cannot have this machine: {reason}"));
        drop(here);
        assert_eq!(old_pic.level, 77, "a device was sent");
    }
    assert_eq!(ended, [(false, false), (true, true), (true, true), (true, true)]);
}

#[test]
fn after_a_cancelled_migration_the_caller_chooses_the_release_of_the_next_one() {
    let today = Uart { divider: 5, trigger: 9, sending: None };
    for back in [false, true] {
        let (mut uart, mut pic) = (today.clone(), Pic { level: 3, ..Pic::default() });
        let mut here = of_today(&mut uart, &mut pic);
        here.save_for(Some(release()));
        let mut setup = busy();
        setup.source.cancels_at = Some(("pause", setup.source_control.clone()));
        let outcome = setup.run_with(&mut here, &mut of_old(&mut old::Uart::default(), &mut old::Pic::default()));
        stayed(&outcome, SourcePhase::Cancelled);

        let again = Setup::again(outcome, &BLOCKS);
        if back {
            let (mut old_uart, mut old_pic) = (old::Uart::default(), old::Pic::default());
            arrived(&again.run_with(&mut here, &mut of_old(&mut old_uart, &mut old_pic)));
            assert_eq!((old_uart.divider, old_pic.level), (5, 3));
        } else {
            here.save_for(None);
            let (mut there, mut pic) = (Uart::default(), Pic::default());
            arrived(&again.run_with(&mut here, &mut of_today(&mut there, &mut pic)));
            assert_eq!((there, pic.level), (today.clone(), 3));
        }
    }
}
