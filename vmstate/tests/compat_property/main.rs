//! The checker against what really happens: random descriptions, random evolutions, a naive encoder and loader.

mod choices;
mod decode;
mod encode;
mod model;

use std::cell::Cell;

use choices::Choices;
use decode::Loader;
use encode::Encoder;
use model::{Outcomes, predicted};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use vmstate::compat::{Direction, Verdict, check};

/// The same evolutions in each run, so that a change fails on what it changed; `PROPTEST_RNG_SEED=N` asks others.
fn config() -> ProptestConfig {
    let asked = ProptestConfig::default();
    let rng_seed = if asked.rng_seed == RngSeed::Random { RngSeed::Fixed(2026) } else { asked.rng_seed };
    ProptestConfig { cases: 3000, failure_persistence: None, max_shrink_iters: 2000, rng_seed, ..asked }
}

#[test]
fn the_verdict_is_what_happens() {
    let (compared, left_out) = (Cell::new(0), Cell::new(0));
    let evolutions = (prop::collection::vec(any::<u16>(), 0..64), any::<[u64; 8]>());
    let agrees = |(tape, seeds): (Vec<u16>, [u64; 8])| {
        let mut choices = Choices(tape.into());
        let old = choices.section();
        let new = choices.evolve(&old);
        for crossing in check(&old, &new).crossings {
            let (writer, reader) = match crossing.direction {
                Direction::OldToNew => (&old, &new),
                Direction::NewToOld => (&new, &old),
            };
            // No verdict, and said so.
            if let Verdict::NotCompared(_) = &crossing.verdict {
                left_out.set(left_out.get() + 1);
                continue;
            }
            compared.set(compared.get() + 1);
            for seed in seeds {
                let outcomes = Outcomes(seed);
                let encoded = Encoder::encode(writer, crossing.version, outcomes);
                if !encoded.is_possible {
                    continue;
                }
                let mut loader = Loader::new(&encoded);
                let happened = loader.load(reader, crossing.version);
                prop_assert_eq!(
                    predicted(&crossing.verdict, outcomes, &[&encoded.numbers, &loader.numbers]),
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
    let (compared, left_out): (u32, u32) = (compared.get(), left_out.get());
    assert!(left_out * 20 < compared, "{left_out} verdicts left out, {compared} compared");
}
