//! Speed of encoding and decoding device state: vmstate beside bincode, postcard and `serde_json`, with the same state.
//!
//! `cargo bench -p vmstate --bench codec [-- ROUNDS [NAME [DIRECTION [STATE]]]]`; with a NAME, only that codec runs, for a
//! profiler. The codecs take turns in each round, so that noise of the machine affects all of them. vmstate carries names,
//! versions and footers, compares, checks ranges, and can undo a load; the others carry only the values.

mod device;
mod machine;

use std::hint::black_box;
use std::time::Instant;

use bincode::{Decode, Encode};
use device::{Ports, Requests};
use machine::Machine;
use machine::sections::{load, save};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vmstate::codec::Writer;
use vmstate::section::Sections;

/// How often a codec runs in one round; a low number, so that most rounds are not interrupted.
const RUNS: u32 = 20;
/// Number of copies of each codec, each with its memory and stack at another place: the placement within a page and a cache line
/// decides over a third of the time of some codecs.
const PLACES: usize = 8;
/// Functions that move the stack down, each by more bytes.
const LOWER: [Lower; 4] = [lower::<16>, lower::<32>, lower::<48>, lower::<64>];
type Lower = fn(&mut dyn FnMut() -> f64) -> f64;

fn main() {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let rounds = arguments.first().map_or(400, |rounds| rounds.parse().expect("ROUNDS is a number"));
    println!("a machine of {} devices; a device whose parts are shared; one of enums", Machine::DEVICES);
    println!(
        "µs: best round, median round, each the mean over {PLACES} places of memory and stack; ratio of the best to vmstate's"
    );
    compare::<Machine>("machine", rounds, &arguments);
    compare::<Ports>("shared", rounds, &arguments);
    compare::<Requests>("enum", rounds, &arguments);
}

/// State in use by a guest, which every codec can encode.
trait State: Serialize + DeserializeOwned + Encode + Decode<()> + 'static {
    /// Creates the state; another `seed` gives other values of the same size.
    fn new(seed: u64) -> Self;
    /// The state as sections, as an embedder of vmstate registers it.
    fn sections(&mut self) -> Sections<'_>;
}

impl State for Machine {
    fn new(seed: u64) -> Self {
        Self::new(seed)
    }

    fn sections(&mut self) -> Sections<'_> {
        self.sections()
    }
}

macro_rules! device {
    ($($device:ident),*) => {$(
        impl State for $device {
            fn new(seed: u64) -> Self {
                Self::new(seed)
            }

            fn sections(&mut self) -> Sections<'_> {
                let mut sections = Sections::new();
                sections.add(self).expect("a new name");
                sections
            }
        }
    )*};
}

device!(Ports, Requests);

/// Prints the times of all codecs for the state `S`.
fn compare<S: State>(state: &str, rounds: usize, arguments: &[String]) {
    let wanted = |at: usize, name: &str| arguments.get(at).is_none_or(|wanted| wanted == name);
    if !wanted(3, state) {
        return;
    }
    let codecs = |place| {
        // Separates the memory of one place from that of the next.
        Box::leak(vec![0_u8; 520 * place].into_boxed_slice());
        [vmstate::<S>(), bincode::<S>(), postcard::<S>(), serde_json::<S>()]
    };
    let mut places: [[Codec; 4]; PLACES] = std::array::from_fn(codecs);
    places[0].iter().for_each(|codec| println!("{state} {:10} {:6} bytes", codec.name, codec.size));
    for direction in ["encode", "decode"].into_iter().filter(|direction| wanted(2, direction)) {
        let mut times = [const { [const { Vec::new() }; PLACES] }; 4];
        for _ in 0..rounds {
            for (place, codecs) in places.iter_mut().enumerate() {
                for (codec, times) in codecs.iter_mut().zip(&mut times).filter(|(codec, _)| wanted(1, codec.name)) {
                    times[place].push(LOWER[place % LOWER.len()](&mut || codec.time(direction)));
                }
            }
        }
        let mut vmstate = None;
        for (codec, times) in places[0].iter().zip(&mut times).filter(|(codec, _)| wanted(1, codec.name)) {
            times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
            let mean = |of: fn(&[f64]) -> f64| times.iter().map(|times| of(times)).sum::<f64>() / PLACES as f64;
            let (best, median) = (mean(|times| times[0]), mean(|times| times[times.len() / 2]));
            let ratio = best / *vmstate.get_or_insert(best);
            println!("{state} {direction} {:10} {:8.2} {:8.2} {ratio:8.2}", codec.name, best * 1e6, median * 1e6);
        }
    }
}

/// Calls `run` with the stack moved down by this many bytes.
#[inline(never)]
fn lower<const BYTES: usize>(run: &mut dyn FnMut() -> f64) -> f64 {
    let bytes = [0_u8; BYTES];
    let seconds = run();
    black_box(&bytes);
    seconds
}

struct Codec {
    name: &'static str,
    /// Size of the encoded state in bytes.
    size: usize,
    encode: Box<dyn FnMut()>,
    decode: Box<dyn FnMut()>,
}

impl Codec {
    /// The time of one run in seconds.
    fn time(&mut self, direction: &str) -> f64 {
        let run = if direction == "encode" { &mut self.encode } else { &mut self.decode };
        // One run more than is timed: the previous codec's data is still in the caches.
        run();
        let begun = Instant::now();
        (0..RUNS).for_each(|_| run());
        begun.elapsed().as_secs_f64() / f64::from(RUNS)
    }
}

/// A state that lives as long as the program, and another to load into.
fn states<S: State>() -> (&'static mut S, &'static mut S) {
    (Box::leak(Box::new(S::new(1))), Box::leak(Box::new(S::new(2))))
}

fn vmstate<S: State>() -> Codec {
    let (from, to) = states::<S>();
    let (mut from, mut to) = (from.sections(), to.sections());
    let saved = |sections: &mut Sections<'_>| {
        let mut out = Writer::new();
        save(sections, &mut out).expect("a state");
        out
    };
    let mut out = saved(&mut from);
    let encoded = out.as_slice().to_vec();
    load(&mut to, &encoded).expect("a state");
    assert_eq!(saved(&mut to).as_slice(), encoded);
    Codec {
        name: "vmstate",
        size: encoded.len(),
        encode: Box::new(move || {
            out.buffer().clear();
            save(&mut from, &mut out).expect("a state");
            black_box(&out);
        }),
        decode: Box::new(move || load(&mut to, black_box(&encoded)).expect("a state")),
    }
}

/// bincode in its fastest configuration: little-endian integers of fixed width, into a buffer of the right size.
fn bincode<S: State>() -> Codec {
    let config = bincode::config::standard().with_fixed_int_encoding();
    let encoded = |state: &S| bincode::encode_to_vec(state, config).expect("a state");
    let mut buffer = encoded(&S::new(1));
    codec(
        "bincode",
        encoded,
        move |from| {
            bincode::encode_into_slice(from, &mut buffer, config).expect("a state");
            black_box(&buffer);
        },
        move |bytes| bincode::decode_from_slice(bytes, config).expect("a state").0,
    )
}

fn postcard<S: State>() -> Codec {
    let encoded = |state: &S| postcard::to_allocvec(state).expect("a state");
    let mut buffer = encoded(&S::new(1));
    codec(
        "postcard",
        encoded,
        move |from| {
            black_box(postcard::to_slice(from, &mut buffer).expect("a state"));
        },
        |bytes| postcard::from_bytes(bytes).expect("a state"),
    )
}

fn serde_json<S: State>() -> Codec {
    let mut buffer = Vec::new();
    codec(
        "serde_json",
        |state: &S| serde_json::to_vec(state).expect("a state"),
        move |from| {
            buffer.clear();
            serde_json::to_writer(&mut buffer, from).expect("a state");
            black_box(&buffer);
        },
        |bytes| serde_json::from_slice(bytes).expect("a state"),
    )
}

/// A codec that decodes into a new value, which replaces the old one.
fn codec<S: State>(
    name: &'static str,
    encoded: impl Fn(&S) -> Vec<u8>,
    mut encode: impl FnMut(&S) + 'static,
    decode: impl Fn(&[u8]) -> S + 'static,
) -> Codec {
    let (from, to) = states::<S>();
    let bytes = encoded(from);
    assert_eq!(encoded(&decode(&bytes)), bytes);
    Codec {
        name,
        size: bytes.len(),
        encode: Box::new(move || encode(black_box(from))),
        decode: Box::new(move || *to = decode(black_box(&bytes))),
    }
}
