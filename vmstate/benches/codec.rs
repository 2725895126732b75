//! How fast device state is encoded and decoded: vmstate beside bincode, postcard and `serde_json`, on the same machine.
//!
//! `cargo bench -p vmstate --bench codec [-- ROUNDS [NAME [DIRECTION]]]`; with a NAME only that one runs, for a profiler.
//! The codecs take turns in each round, so that a noisy machine is noisy to all of them. vmstate carries names, versions
//! and footers, compares, checks ranges, and can undo; the others carry the values.

mod machine;

use std::hint::black_box;
use std::time::Instant;

use machine::Machine;
use machine::sections::{load, save};
use vmstate::codec::Writer;

/// How often a codec runs in one round: so few that most rounds are not interrupted.
const RUNS: u32 = 20;

fn main() {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let rounds = arguments.first().map_or(3000, |rounds| rounds.parse().expect("ROUNDS is a number"));
    let wanted = |at: usize, name: &str| arguments.get(at).is_none_or(|wanted| wanted == name);

    let mut codecs = [vmstate(), bincode(), postcard(), serde_json()];
    codecs.iter().for_each(|codec| println!("{:10} {:6} bytes", codec.name, codec.size));
    println!("µs for {} devices: best round, median round; ratio of the best round to vmstate's", Machine::DEVICES);
    for direction in ["encode", "decode"].into_iter().filter(|direction| wanted(2, direction)) {
        let mut times = codecs.each_ref().map(|_| Vec::new());
        for _ in 0..rounds {
            for (codec, times) in codecs.iter_mut().zip(&mut times).filter(|(codec, _)| wanted(1, codec.name)) {
                times.push(codec.time(direction));
            }
        }
        let best = times.each_ref().map(|times| times.iter().copied().fold(f64::INFINITY, f64::min));
        for ((codec, times), theirs) in codecs.iter().zip(&mut times).zip(best) {
            times.sort_by(f64::total_cmp);
            let Some(median) = times.get(times.len() / 2) else { continue };
            let ratio = theirs / best[0];
            println!("{direction} {:10} {:8.2} {:8.2} {ratio:8.2}", codec.name, theirs * 1e6, median * 1e6);
        }
    }
}

struct Codec {
    name: &'static str,
    /// Bytes of the encoded machine.
    size: usize,
    encode: Box<dyn FnMut()>,
    decode: Box<dyn FnMut()>,
}

impl Codec {
    /// Seconds of one run.
    fn time(&mut self, direction: &str) -> f64 {
        let run = if direction == "encode" { &mut self.encode } else { &mut self.decode };
        // Once more than is timed: the codec before has left its own data in the caches.
        run();
        let begun = Instant::now();
        (0..RUNS).for_each(|_| run());
        begun.elapsed().as_secs_f64() / f64::from(RUNS)
    }
}

/// A machine for as long as the program runs, and another to load into.
fn machines() -> (&'static mut Machine, &'static mut Machine) {
    (Box::leak(Box::new(Machine::new(1))), Box::leak(Box::new(Machine::new(2))))
}

fn vmstate() -> Codec {
    let (from, to) = machines();
    let expected = from.clone();
    let mut from = from.sections();
    let mut out = Writer::new();
    save(&mut from, &mut out).expect("a machine");
    let encoded = out.as_slice().to_vec();
    load(&mut to.sections(), &encoded).expect("a machine");
    assert_eq!(*to, expected);
    let mut to = to.sections();
    Codec {
        name: "vmstate",
        size: encoded.len(),
        encode: Box::new(move || {
            out.buffer().clear();
            save(&mut from, &mut out).expect("a machine");
            black_box(&out);
        }),
        decode: Box::new(move || load(&mut to, black_box(&encoded)).expect("a machine")),
    }
}

/// The fastest of its configurations: little-endian integers of fixed width, into a buffer of the right size.
fn bincode() -> Codec {
    let config = bincode::config::standard().with_fixed_int_encoding();
    let (from, to) = machines();
    let encoded = bincode::encode_to_vec(&*from, config).expect("a machine");
    let mut buffer = encoded.clone();
    codec(
        "bincode",
        encoded,
        from,
        to,
        move |from| {
            bincode::encode_into_slice(from, &mut buffer, config).expect("a machine");
            black_box(&buffer);
        },
        move |bytes| bincode::decode_from_slice(bytes, config).expect("a machine").0,
    )
}

fn postcard() -> Codec {
    let (from, to) = machines();
    let encoded = postcard::to_allocvec(&*from).expect("a machine");
    let mut buffer = encoded.clone();
    codec(
        "postcard",
        encoded,
        from,
        to,
        move |from| {
            black_box(postcard::to_slice(from, &mut buffer).expect("a machine"));
        },
        |bytes| postcard::from_bytes(bytes).expect("a machine"),
    )
}

fn serde_json() -> Codec {
    let (from, to) = machines();
    let encoded = serde_json::to_vec(&*from).expect("a machine");
    let mut buffer = Vec::new();
    codec(
        "serde_json",
        encoded,
        from,
        to,
        move |from| {
            buffer.clear();
            serde_json::to_writer(&mut buffer, from).expect("a machine");
            black_box(&buffer);
        },
        |bytes| serde_json::from_slice(bytes).expect("a machine"),
    )
}

/// A codec that makes one value of bytes: a new machine, which replaces the old.
fn codec(
    name: &'static str,
    encoded: Vec<u8>,
    from: &'static Machine,
    to: &'static mut Machine,
    mut encode: impl FnMut(&Machine) + 'static,
    decode: impl Fn(&[u8]) -> Machine + 'static,
) -> Codec {
    assert_eq!(decode(&encoded), *from);
    Codec {
        name,
        size: encoded.len(),
        encode: Box::new(move || encode(black_box(from))),
        decode: Box::new(move || *to = decode(black_box(&encoded))),
    }
}
