//! Cost of dirty bitmaps: of a guest's write, of a merge, and of a migration with the bitmap of a disk of 1 TiB.
//!
//! `cargo bench -p minivmm --bench bitmaps [-- REPEATS]`. The measure is the least time of the repeats. Nothing is written to a
//! disk: a write marks the bitmaps after the image was written.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minivmm::devices::virtio::blk::Bitmaps;
use minivmm::migration::bitmaps::BitmapSection;
use vmstate::codec::Outbox;
use vmstate::section::IterativeSection;

/// Bytes of the disk.
const BYTES: u64 = 1 << 40;
const GRANULARITY: u32 = 64 << 10;
/// Bytes of a write.
const WRITE: u64 = 4096;
/// Writes whose cost is measured, and writes between the last round and the pause.
const WRITES: u64 = 1_000_000;
const LATE: u64 = 1000;

/// A place for each number, evenly distributed (a step of SplitMix64).
fn place(number: u64) -> u64 {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ mixed >> 27) % (BYTES / WRITE) * WRITE
}

fn disk(count: usize) -> Arc<Bitmaps> {
    let bitmaps = Arc::new(Bitmaps::new(BYTES));
    (0..count).for_each(|index| bitmaps.add(&format!("b{index}"), GRANULARITY, true).expect("room"));
    bitmaps
}

fn time(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// Least time of `repeats`.
fn least<const N: usize>(repeats: u32, mut work: impl FnMut() -> [Duration; N]) -> [Duration; N] {
    let mut least = [Duration::MAX; N];
    for _ in 0..repeats {
        least.iter_mut().zip(work()).for_each(|(least, now)| *least = now.min(*least));
    }
    least
}

/// Time of all writes to a disk with `count` bitmaps.
fn writes(count: usize) -> [Duration; 1] {
    let bitmaps = disk(count);
    [time(|| (0..WRITES).for_each(|number| bitmaps.mark(black_box(place(number)), WRITE)))]
}

/// Times of the first round of a source with `dirty` random writes, and of its pause; the bytes of both are added to `sent`.
fn migration(dirty: u64, sent: &mut [u64; 2]) -> [Duration; 2] {
    let bitmaps = disk(1);
    (0..dirty).for_each(|number| bitmaps.mark(place(number), WRITE));
    let mut section = BitmapSection::new(vec![Arc::clone(&bitmaps)], true);
    let (mut first, mut last) = (Outbox::new(), Outbox::new());
    let round = time(|| {
        section.setup(&mut first).expect("a bitmap");
        section.sync().expect("a bitmap");
        section.iterate(&mut first, u64::MAX).expect("a bitmap");
    });
    (dirty..dirty + LATE).for_each(|number| bitmaps.mark(place(number), WRITE));
    let pause = time(|| {
        section.sync().expect("a bitmap");
        section.iterate(&mut last, u64::MAX).expect("a bitmap");
        section.complete(&mut last).expect("a bitmap");
    });
    *sent = [first.len(), last.len()];
    [round, pause]
}

/// Times to merge a bitmap with `dirty` random writes into an empty one of the same granularity, and of twice that one.
fn merges(dirty: u64) -> [Duration; 2] {
    let bitmaps = disk(2);
    bitmaps.add("coarse", 2 * GRANULARITY, true).expect("room");
    bitmaps.set_recording("b1", false).expect("a bitmap");
    bitmaps.set_recording("coarse", false).expect("a bitmap");
    (0..dirty).for_each(|number| bitmaps.mark(place(number), WRITE));
    ["b1", "coarse"].map(|target| time(|| bitmaps.merge(target, "b0").expect("bitmaps")))
}

fn main() {
    let repeats = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(5);
    for count in [0, 1, 4] {
        let [all] = least(repeats, || writes(count));
        println!("{count} bitmaps: {:.1} ns a write", all.as_secs_f64() * 1e9 / WRITES as f64);
    }
    for dirty in [1000, 100_000, 10_000_000] {
        let [same, other] = least(repeats, || merges(dirty));
        println!(
            "{dirty} random writes: merge {:.2} ms, into another granularity {:.2} ms",
            same.as_secs_f64() * 1e3,
            other.as_secs_f64() * 1e3,
        );
    }
    for dirty in [1000, 100_000, 10_000_000] {
        let mut sent = [0; 2];
        let [round, pause] = least(repeats, || migration(dirty, &mut sent));
        println!(
            "{dirty} random writes: first round {:.2} ms, {} KiB; pause after {LATE} more writes {:.2} ms, {} KiB",
            round.as_secs_f64() * 1e3,
            sent[0] >> 10,
            pause.as_secs_f64() * 1e3,
            sent[1] >> 10,
        );
    }
}
