//! The data that writers write: noise, repetitive text and zeros, whole pages or some bytes.

use std::ops::Range;
use std::sync::LazyLock;

use vmstate::ram::PAGE_SIZE;
use vmstate_lab::random::Random;

const PAGE: usize = PAGE_SIZE as usize;
const NOISE: usize = 0;
const TEXT: usize = NOISE + 4 * PAGE;
const ZEROS: usize = TEXT + 2 * PAGE;
const END: usize = ZEROS + PAGE;

/// The source of all written data.
pub(crate) static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(2026);
    let mut bytes: Vec<u8> = (NOISE..TEXT / 8).flat_map(|_| random.number().to_ne_bytes()).collect();
    bytes.extend(b"all that was written is here; ".iter().cycle().take(ZEROS - TEXT));
    bytes.resize(END, 0);
    bytes
});

/// A page of noise, of zeros or of text, or some bytes of noise; and the offset in the page.
pub(crate) fn some_bytes(random: &mut Random) -> (usize, Range<usize>) {
    let (kind, first, at) = (random.below(8), random.below(PAGE as u64) as usize, random.below(PAGE as u64) as usize);
    let (at, from, len) = match kind {
        0 => (0, NOISE + first, PAGE),
        1 => (0, ZEROS, PAGE),
        2 => (0, TEXT + first, PAGE),
        _ => (at, NOISE + first, (1 << kind).min(PAGE - at)),
    };
    (at, from..from + len)
}
