//! Migrations over each kind of wire, of a guest that writes all the time; some attempts are cancelled, and then the
//! destination's memory is checked. `memory.rs` of the including test defines the guest's memory and its reference copy.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use vmstate::migrate::{Control, DestinationPhase, Parameters, SourcePhase};

use crate::guest::{Attempt, Cancel, Guest};
use crate::rig::{Pages, Rig, Wire};

/// Cancelled attempts, and whether the next attempt has the same destination.
type Cancelled = Vec<(Cancel, bool)>;

/// The same cases in each run, different ones for each kind.
fn config(kind: u64) -> ProptestConfig {
    let asked = ProptestConfig::default();
    let rng_seed = if asked.rng_seed == RngSeed::Random { RngSeed::Fixed(2026 + kind) } else { asked.rng_seed };
    // proptest's default is 256.
    let cases = if asked.cases == 256 { 1 } else { asked.cases };
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 50, rng_seed, ..asked }
}

/// Whether the guest is throttled, and the number of cancelled attempts.
pub(crate) type Kind = (bool, usize);

/// Each kind of migration over each wire.
pub(crate) fn each(wires: impl IntoIterator<Item = Wire>, kinds: &[Kind]) {
    for (first, wire) in (0..).step_by(kinds.len()).zip(wires) {
        for (kind, &(throttled, cancels)) in (first..).zip(kinds) {
            let cancel = prop_oneof![
                (1..300_u32).prop_map(Cancel::AfterLooks),
                (1..4_u32).prop_map(Cancel::AfterRound),
                Just(Cancel::InThePause),
            ];
            let cases = (vec((cancel, any::<bool>()), cancels), any::<u64>());
            let arrives = |(cancelled, seed): (Cancelled, u64)| arrives(wire, throttled, cancelled, seed);
            if let Err(failure) = TestRunner::new(config(kind)).run(&cases, arrives) {
                panic!("{wire:?}, throttled: {throttled}: {failure}");
            }
        }
    }
}

fn arrives(wire: Wire, throttled: bool, cancelled: Cancelled, seed: u64) -> Result<(), TestCaseError> {
    let here = Guest::busy(seed);
    let arrived = arrives_from(&here, wire, throttled, cancelled, seed);
    // The guest may still run if something was wrong.
    here.stop();
    arrived
}

fn arrives_from(
    here: &Guest,
    wire: Wire,
    throttled: bool,
    cancelled: Cancelled,
    seed: u64,
) -> Result<(), TestCaseError> {
    let mut there = Guest::waiting();
    for (cancel, same_again) in cancelled {
        if attempt(wire, throttled, Some(cancel), seed, here, &there)? {
            return Ok(());
        }
        if !same_again {
            there = Guest::waiting();
        }
    }
    prop_assert!(attempt(wire, throttled, None, seed, here, &there)?);
    Ok(())
}

/// True if the guest has arrived with each page as it was last written; else it continues to run.
fn attempt(
    wire: Wire,
    throttled: bool,
    cancel: Option<Cancel>,
    seed: u64,
    here: &Guest,
    there: &Guest,
) -> Result<bool, TestCaseError> {
    let control = Control::default();
    let mut parameters = Parameters::default();
    parameters.downtime_limit = Duration::from_secs(1);
    parameters.auto_converge = throttled;
    parameters.throttle_trigger_threshold = 1;
    let is_cancelled = cancel.is_some();
    here.begin(Attempt { control: control.clone(), cancel, throttled });
    let ended = Rig { wire, parameters, control: control.clone(), seed }.run(here, there);
    let source = &ended.source;
    prop_assert_eq!(here.throttled().0, 0, "the throttle is still on");
    if source.phase == SourcePhase::Cancelled {
        prop_assert!(is_cancelled && here.is_running() && !ended.arrived, "{:?}", source);
        return Ok(false);
    }
    prop_assert_eq!(source.phase, SourcePhase::Completed, "{:?}, {:?}", source, ended.destination);
    prop_assert!(ended.arrived && !here.is_running());
    prop_assert_eq!(ended.destination.map(|arrival| arrival.phase), Some(DestinationPhase::Completed));
    prop_assert_eq!(here.memory.stale_page(&here.memory), None, "at the source itself");
    prop_assert_eq!(there.memory.stale_page(&here.memory), None, "block and page, after {:?}", source.report);
    prop_assert!(source.report.rounds.len() >= 3 && source.report.pages.zero > 0, "{:?}", source.report);
    prop_assert_eq!(here.throttled().1 > 0, throttled, "throttled: {:?}", source.report);
    if matches!(wire.pages, Pages::Deltas) {
        prop_assert!(control.progress().xbzrle.is_some_and(|count| count.encoded > 0), "{:?}", control.progress());
    }
    Ok(true)
}
