//! The checker against what really happens: random descriptions, random evolutions, a naive encoder and loader.
#![cfg(feature = "tools")]

mod choices;
mod decode;
mod encode;
mod model;

use std::cell::RefCell;
use std::collections::BTreeMap;

use choices::Choices;
use decode::Loader;
use encode::Encoder;
use model::{Outcomes, predicted, same};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use vmstate::compat::{Break, Condition, Direction, Reason, Subject, Verdict, check};

/// The same evolutions in each run, so that a change fails on what it changed; `PROPTEST_RNG_SEED=N` asks others.
fn config() -> ProptestConfig {
    let asked = ProptestConfig::default();
    let rng_seed = if asked.rng_seed == RngSeed::Random { RngSeed::Fixed(2026) } else { asked.rng_seed };
    ProptestConfig { cases: 1500, failure_persistence: None, max_shrink_iters: 2000, rng_seed, ..asked }
}

#[test]
fn the_verdict_is_what_happens() {
    // What was said how often: verdicts, and what conditions are about.
    let said = RefCell::new(BTreeMap::new());
    let evolutions = (prop::collection::vec(any::<u16>(), 0..128), any::<[u64; 8]>());
    let agrees = |(tape, seeds): (Vec<u16>, [u64; 8])| {
        let mut choices = Choices(tape.into());
        let old = choices.section();
        let new = choices.evolve(&old);
        // A break is not said to rely on anything, but takes predicates of a renamed struct to be the same.
        let is_renamed = new.fields.iter().any(|field| field.name.ends_with("_renamed"));
        for crossing in check(&old, &new).crossings {
            let (writer, reader) = match crossing.direction {
                Direction::OldToNew => (&old, &new),
                Direction::NewToOld => (&new, &old),
            };
            words(&crossing.verdict).into_iter().for_each(|word| *said.borrow_mut().entry(word).or_insert(0) += 1);
            if let Verdict::NotCompared(_) = &crossing.verdict {
                continue;
            }
            let same = same(&crossing.relies_on);
            *said.borrow_mut().entry("paired").or_insert(0) += u32::from(!same.is_empty());
            for seed in seeds {
                let outcomes = Outcomes(seed);
                let encoded = Encoder::encode(writer, crossing.version, outcomes);
                if !encoded.is_possible {
                    continue;
                }
                let mut loader = Loader::new(&encoded, &same);
                let happened = loader.load(reader, crossing.version);
                let numbers = [&encoded.numbers, &loader.numbers];
                let says = predicted(&crossing.verdict, outcomes, &numbers, &[&encoded.elements, &loader.elements]);
                if !says && happened.is_ok() && (is_stricter(&crossing.verdict) || is_renamed) {
                    continue;
                }
                prop_assert_eq!(
                    says,
                    happened.is_ok(),
                    "{} but {:?}\nwriter {:?}\nreader {:?}",
                    crossing,
                    happened,
                    writer,
                    reader
                );
            }
        }
        Ok(())
    };
    if let Err(failure) = TestRunner::new(config()).run(&evolutions, agrees) {
        panic!("{failure}");
    }
    let said = said.into_inner();
    let often = |word: &str| said.get(word).copied().unwrap_or(0);
    for word in WORDS {
        assert!(often(word) > 10, "hardly ever {word:?}: {said:?}");
    }
    assert!(often("not compared") * 20 < often("loads"), "{said:?}");
}

/// True if the verdict may warn of a break that does not happen: values of two lengths, or the keys of a map, can fit by
/// chance.
fn is_stricter(verdict: &Verdict) -> bool {
    let by_chance = |breaks: &Break| matches!(breaks.reason, Reason::OtherLength | Reason::OtherOrder);
    match verdict {
        Verdict::Breaks(breaks) => by_chance(breaks),
        Verdict::LoadsIf(cases) => cases.iter().any(|case| by_chance(&case.breaks)),
        Verdict::Loads | Verdict::NotCompared(_) => false,
    }
}

const WORDS: [&str; 12] = [
    "loads",
    "breaks",
    "predicate",
    "unnamed",
    "subsection",
    "elements",
    "count",
    "null",
    "value",
    "configuration",
    "not compared",
    "paired",
];

/// The verdict, or what its conditions are about.
fn words(verdict: &Verdict) -> Vec<&'static str> {
    match verdict {
        Verdict::Loads => vec!["loads"],
        Verdict::Breaks(_) => vec!["breaks"],
        Verdict::NotCompared(_) => vec!["not compared"],
        Verdict::LoadsIf(cases) => {
            let conditions = cases.iter().flat_map(|case| &case.when);
            let subject = |condition: &Condition| match &condition.subject {
                Subject::Predicate(_) => "predicate",
                Subject::Unnamed(_) => "unnamed",
                Subject::Subsection(_) => "subsection",
                Subject::Section(_) => "section",
                Subject::Elements(_) => "elements",
                Subject::Count { .. } => "count",
                Subject::Null(_) => "null",
                Subject::Value { .. } => "value",
                Subject::Configuration(_) => "configuration",
            };
            conditions.map(subject).collect()
        }
    }
}
