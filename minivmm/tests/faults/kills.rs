//! Kills at random moments of a migration: no guest is lost, and none runs twice.
//!
//! Page transfers alternate between the main channel, page channels, and memory that stays in place, with one channel and with
//! two. `VMSTATE_KILLS` is the number of kills, `VMSTATE_SEED` repeats a run. A guest whose process was killed died with it. A guest
//! is *lost* if a complete copy that may run is left and does not run after one `cont`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use tempfile::TempDir;
use vmstate_lab::faults::cell::Guest;
use vmstate_lab::faults::channels::CHANNELS;
use vmstate_lab::faults::marks::Mark;
use vmstate_lab::faults::outcome::check_consoles;
use vmstate_lab::faults::relay::Behaviour;
use vmstate_lab::faults::setup::Memory;
use vmstate_lab::faults::side::Side;
use vmstate_lab::faults::testbed::{Testbed, TestbedOptions};
use vmstate_lab::faults::third_party::ThirdParty;
use vmstate_lab::faults::{Result, TIMEOUT, until};
use vmstate_lab::random::Random;

use crate::setup::{self, kvm_is_here};

/// Number of kills in an ordinary run.
const KILLS: u64 = 60;
/// The ways of the guest's memory, in turn.
const MEMORIES: [Memory; 4] = [Memory::Main, Memory::PageChannels(CHANNELS), Memory::InPlace, Memory::Transfer];
/// Longest time between two marks of an undisturbed migration on an idle host.
const GAP: Duration = Duration::from_millis(40);
/// Attempts to hit the moment between two steps of the destination.
const ATTEMPTS: u32 = 25;
/// Time within which everything around the commit happens.
const COMMIT: Duration = Duration::from_millis(3);

/// Time slice short enough to interrupt the destination between two of its steps.
const STEP: Duration = Duration::from_micros(5);

/// Moment of the kill.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// This long after a mark.
    After(Mark, Duration),
    /// As soon as the destination holds the image's lock: before it says `SHUT`, if the kill is quick enough.
    LockTaken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Source,
    Destination,
}

/// Result of a migration with a kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    RunsAtSource,
    RunsAtSourceAfterCont,
    RunsAtDestination,
    DiedWithSource,
    DiedWithDestination,
}

#[test]
fn kills_at_random_moments_lose_no_guest_and_double_none() {
    if !kvm_is_here() {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let kills = number("VMSTATE_KILLS").unwrap_or(KILLS);
    let now = || SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
    let seed = number("VMSTATE_SEED").unwrap_or_else(now);
    println!("{kills} kills; again with VMSTATE_SEED={seed}");
    let mut random = Random::new(seed);
    let mut outcomes = BTreeMap::<_, u64>::new();
    let mut failures = Vec::new();
    for index in 0..kills {
        let (victim, moment) = choose(&mut random);
        let hold = matches!(moment, Moment::LockTaken).then_some(Mark::Eof);
        let memory = MEMORIES[index as usize % MEMORIES.len()];
        let (_directory, mut testbed) = testbed(hold, memory);
        match one(&mut testbed, victim, moment) {
            Ok((outcome, last)) => *outcomes.entry((memory, victim, last, outcome)).or_default() += 1,
            Err(why) => failures.push(format!("{index}, {victim:?} killed, {moment:?}, {memory:?}: {why}")),
        }
    }
    for ((memory, victim, last, outcome), count) in &outcomes {
        let last = last.map_or("nothing".into(), |last| format!("{last:?}"));
        println!("{count:4} {victim:?} killed, {memory:?}, the last on the wire was {last}: {outcome:?}");
    }
    let failed = failures.len();
    assert!(failures.is_empty(), "{failed} of {kills}, VMSTATE_SEED={seed}:\n{}\n", failures.join("\n"));
}

/// The destination is killed after it took the lock and before it said so: the source tries the lock until the killed process's
/// lock is gone.
#[test]
fn destination_killed_between_lock_and_shut() {
    if !kvm_is_here() {
        return;
    }
    for attempt in 1..=ATTEMPTS {
        let (_directory, mut testbed) = testbed(Some(Mark::Eof), Memory::Main);
        let (outcome, last) = one(&mut testbed, Victim::Destination, Moment::LockTaken).unwrap();
        if last == Some(Mark::Eof) {
            assert_eq!(outcome, Outcome::RunsAtSource, "attempt {attempt}");
            return;
        }
    }
    println!(
        "in {ATTEMPTS} attempts none came between the two: the destination had always said SHUT when it was killed"
    );
}

/// Starts a guest and a destination; also returns the directory of their files.
fn testbed(hold: Option<Mark>, memory: Memory) -> (TempDir, Testbed) {
    let directory = tempfile::tempdir().unwrap();
    let setup = setup::setup(directory.path(), memory);
    let started = Side::boot(&setup)
        .and_then(|source| Testbed::new(&setup, source, &TestbedOptions { hold, ..TestbedOptions::default() }));
    (directory, started.unwrap_or_else(|why| panic!("the processes do not start: {why}")))
}

/// Chooses a victim and a moment, half of them around the commit.
fn choose(random: &mut Random) -> (Victim, Moment) {
    let victim = if random.below(2) == 0 { Victim::Source } else { Victim::Destination };
    let span = |random: &mut Random, most: Duration| Duration::from_nanos(random.below(most.as_nanos() as u64));
    let moment = match random.below(9) {
        0 => Moment::After(Mark::Header, span(random, GAP)),
        1 => Moment::After(Mark::Round, span(random, GAP)),
        2 => Moment::After(Mark::SwitchOver, span(random, GAP)),
        3 => Moment::After(Mark::Everything, span(random, COMMIT)),
        4 => Moment::After(Mark::Ready, span(random, COMMIT)),
        5 => Moment::After(Mark::Eof, span(random, COMMIT)),
        6 => Moment::After(Mark::Shut, span(random, COMMIT)),
        _ => Moment::LockTaken,
    };
    (victim, moment)
}

/// Migrates, kills, and finds out what became of the guest; also returns the last mark on the wire.
fn one(testbed: &mut Testbed, victim: Victim, moment: Moment) -> Result<(Outcome, Option<Mark>)> {
    testbed.migrate()?;
    let deadline = Instant::now() + TIMEOUT;
    let generation = setup::generation(&testbed.image)?;
    let process = if victim == Victim::Source { testbed.source.process } else { testbed.destination.process };
    match moment {
        Moment::After(mark, delay) => {
            while !testbed.relay.has_seen(mark) {
                if Instant::now() > deadline {
                    return Err(format!("{mark:?} does not come"));
                }
                std::thread::yield_now();
            }
            let at = Instant::now() + delay;
            // Busy waiting is more exact than a sleep.
            while Instant::now() < at {
                std::hint::spin_loop();
            }
        }
        Moment::LockTaken => {
            testbed.relay.await_mark(Mark::Eof, deadline)?;
            let onlooker = ThirdParty::new(&testbed.image)?;
            if onlooker.finds_it_locked() {
                return Err("the source said EOF and holds the lock".into());
            }
            let process = Pid::from_raw(process as i32);
            let destination = testbed.destination.process;
            let relay = &testbed.relay;
            std::thread::scope(|scope| {
                let killer = scope.spawn(move || {
                    share_one_processor(destination)?;
                    relay.set_behaviour(Behaviour::Flows);
                    while !onlooker.finds_it_locked() {
                        if Instant::now() > deadline {
                            return Err("the destination does not take the lock".into());
                        }
                        // Only now the destination runs.
                        std::thread::sleep(STEP);
                    }
                    kill(process, Signal::SIGKILL).map_err(|errno| format!("kill: {errno}"))
                });
                killer.join().unwrap_or_else(|_| Err("the killer panicked".into()))
            })?;
        }
    }
    kill(Pid::from_raw(process as i32), Signal::SIGKILL).map_err(|errno| format!("kill: {errno}"))?;
    let outcome = match victim {
        Victim::Source => source_killed(testbed),
        Victim::Destination => destination_killed(testbed, generation),
    };
    let marks: Vec<Mark> = testbed.relay.seen().into_iter().map(|(mark, _)| mark).collect();
    outcome.map(|outcome| (outcome, marks.last().copied())).map_err(|why| {
        let states = (testbed.source.state(), testbed.destination.state());
        format!("{why}; relay: {marks:?}; source and destination: {states:?}; {:?}", testbed.destination.vmm.errors())
    })
}

/// Pins this thread and those of `process` to one processor, this one with priority: so the steps of `process` can be observed.
fn share_one_processor(process: u32) -> Result<()> {
    let say = |errno: nix::errno::Errno| format!("a processor cannot be shared: {errno}");
    let mine = sched_getaffinity(Pid::from_raw(0)).map_err(say)?;
    let mut one = CpuSet::new();
    let first = (0..CpuSet::count()).find(|&cpu| mine.is_set(cpu) == Ok(true)).unwrap_or(0);
    one.set(first).map_err(say)?;
    sched_setaffinity(Pid::from_raw(0), &one).map_err(say)?;
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).map_err(|error| error.to_string())?;
    let threads = threads.flatten().filter_map(|thread| thread.file_name().to_str()?.parse().ok());
    // A thread that has ended since is skipped.
    for thread in threads {
        let _ = sched_setaffinity(Pid::from_raw(thread), &one);
    }
    Ok(())
}

/// A destination that got EOF runs the guest; any other one never does.
fn source_killed(testbed: &mut Testbed) -> Result<Outcome> {
    testbed.source.kill();
    // Data that the source sent may still be on the way.
    until("the destination decides", || {
        // A process that takes over in place answers once it has the guest's memory.
        let decided = |testbed: &mut Testbed| matches!(testbed.destination.state(), Ok((state, status, _)) if state != "inmigrate" || status == "setup");
        Ok(testbed.destination.exit_code().is_some() || decided(testbed))
    })?;
    let told = testbed.relay.has_seen(Mark::Eof);
    match testbed.destination.exit_code() {
        None if told => {
            await_passes(testbed, Victim::Destination)?;
            check_consoles(testbed, Guest::AtDestination, true)?;
            Ok(Outcome::RunsAtDestination)
        }
        Some(Some(1)) if !told => Ok(Outcome::DiedWithSource),
        // The destination got nothing from the source.
        None if testbed.destination.vmm.console().is_empty() => Ok(Outcome::DiedWithSource),
        code => {
            Err(format!("lost: EOF was {} sent, and the destination ended: {code:?}", if told { "" } else { "not" }))
        }
    }
}

/// A source whose destination did not take over runs the guest, or does so after a `cont`. `generation` is the record's value
/// before: the destination increments it just before the first instruction.
fn destination_killed(testbed: &mut Testbed, generation: u64) -> Result<Outcome> {
    testbed.destination.kill();
    until("the source decides", || {
        let (state, status, _) = testbed.source.state()?;
        let over = ["completed", "failed", "unacknowledged", "undecided"].contains(&status.as_str());
        Ok(over && state != "finish-migrate")
    })?;
    let (state, ..) = testbed.source.state()?;
    let ran = !testbed.destination.vmm.console().is_empty();
    let outcome = if state == "running" {
        Outcome::RunsAtSource
    } else {
        match testbed.source.execute("cont", Value::Null) {
            Ok(_) => Outcome::RunsAtSourceAfterCont,
            Err(_) if testbed.relay.has_seen(Mark::Shut) && setup::generation(&testbed.image)? != generation => {
                return Ok(Outcome::DiedWithDestination);
            }
            Err(why) => return Err(format!("lost: the destination did not run the guest, and {why}")),
        }
    };
    if ran {
        return Err("stale: the guest runs at the source, and ran at the destination before".into());
    }
    await_passes(testbed, Victim::Source)?;
    check_consoles(testbed, Guest::AtSource, false)?;
    Ok(outcome)
}

fn await_passes(testbed: &mut Testbed, side: Victim) -> Result<()> {
    let side = if side == Victim::Source { &testbed.source } else { &testbed.destination };
    let before = side.last_pass();
    until("the guest goes on", || Ok(side.last_pass() >= before + 3))
}
