//! The handle on a migration answers, whatever call the engine is in.

use std::collections::HashSet;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use crate::pair::guest::Load;
use crate::pair::run::Setup;
use crate::pair::world::World;
use vmstate::VmState;
use vmstate::migrate::{DestinationPhase, Phase, SourcePhase};
use vmstate::section::Sections;

/// A device that reports its save and its load to the test.
#[derive(VmState, Debug)]
#[vmstate(name = "noticed", pre_save = Self::saves, post_load = Self::loads)]
struct Noticed {
    value: u8,
    #[vmstate(skip)]
    world: World,
}

impl Noticed {
    fn saves(&mut self) -> Result<(), &'static str> {
        self.world.called("save");
        Ok(())
    }

    fn loads(&mut self, _version: u32) -> Result<(), &'static str> {
        self.world.called("load");
        Ok(())
    }
}

/// The engine is stopped in each call that it makes — on the wire, the clock, guest memory, the dirty log, the machine, a device
/// — until both sides' handles have answered another thread. So the engine holds no lock of a handle while it waits, sends, or
/// reads pages; under a lock, it only copies figures.
#[test]
fn a_handle_answers_whatever_the_engine_is_at() {
    let world = World::new(None, Some(5e6), Duration::from_micros(200));
    let mut setup = Setup::with(&[("main.ram", 200)], world, Load { writes_per_second: 1000.0, working_set: 60 });
    (0..200).for_each(|page| setup.source.guest.poke(0, page * 4096, 1));
    // The source waits for space in the buffer.
    setup.world.set_buffer(16 << 10);
    setup.source.pause_takes = Duration::from_millis(3);
    setup.source_control.set_downtime_limit(Duration::from_millis(30));
    let controls = [setup.source_control.clone(), setup.destination_control.clone()];
    let (ask, asked) = channel::<()>();
    let (answer, answers) = channel();
    let answering = thread::spawn(move || {
        for () in asked {
            let phases = controls.each_ref().map(|control| {
                let _ = (control.rounds(), control.heat(), control.sections(), control.parameters());
                control.progress().phase
            });
            answer.send(phases).unwrap();
        }
    });
    let seen = Arc::new(Mutex::new(HashSet::new()));
    let silent = Arc::new(OnceLock::new());
    let (log, held, line) = (Arc::clone(&seen), Arc::clone(&silent), Mutex::new((ask, answers)));
    setup.world.watch(move |what| {
        let line = line.lock().unwrap();
        if held.get().is_some() {
            return;
        }
        line.0.send(()).unwrap();
        match line.1.recv_timeout(Duration::from_secs(20)) {
            Ok([source, destination]) => log.lock().unwrap().extend([(source, what), (destination, what)]),
            // Released, or both would wait for ever.
            Err(_) => held.set(what).unwrap(),
        }
    });
    let mut devices = [7, 0].map(|value| Noticed { value, world: setup.world.clone() });
    let [mut here, mut there] = [Sections::new(), Sections::new()];
    let [leaving, arriving] = &mut devices;
    here.add(leaving).unwrap();
    there.add(arriving).unwrap();
    let outcome = setup.run_with(&mut here, &mut there);
    drop((here, there));
    outcome.world.watch(|_| ());
    answering.join().unwrap();
    assert_eq!(silent.get(), None, "no answer while the engine called this");
    assert_eq!((outcome.departure.phase, devices[1].value), (SourcePhase::Completed, 7));
    let seen = seen.lock().unwrap();
    for (phase, calls) in [
        (Phase::Source(SourcePhase::Setup), vec!["send", "receive", "now"]),
        (
            Phase::Source(SourcePhase::Rounds),
            vec!["send", "receive", "now", "read", "sync", "clear", "prepare", "rehearse"],
        ),
        (Phase::Source(SourcePhase::SwitchOver), vec!["pause", "save", "read", "send", "receive", "loaded", "release"]),
        (Phase::Source(SourcePhase::Commit), vec!["send", "receive", "claim", "resume"]),
        (Phase::Destination(DestinationPhase::Receiving), vec!["receive", "write", "send", "now"]),
        (Phase::Destination(DestinationPhase::Loading), vec!["receive", "write", "load", "loaded"]),
        (Phase::Destination(DestinationPhase::Ready), vec!["send", "receive"]),
        (Phase::Destination(DestinationPhase::Commit), vec!["claim", "advance", "resume"]),
    ] {
        let missing: Vec<_> = calls.iter().filter(|call| !seen.contains(&(phase, call))).collect();
        assert!(missing.is_empty(), "the engine was not held in {missing:?} of {phase:?}");
    }
}
