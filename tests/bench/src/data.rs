//! The contents of pages, which are the same in each run and on each machine.

use crate::case::Data;
use crate::memory::PAGE;

/// Number of consecutive pages that have the same kind of content.
const STRETCH: u64 = 16;
/// Number of bytes of a page of [`Data::Changed`] that change: one in a hundred.
const CHANGED: usize = PAGE / 100;

const WORDS: [&str; 16] = [
    "memory ",
    "the ",
    "guest ",
    "of ",
    "page ",
    "is ",
    "written ",
    "to ",
    "and ",
    "a ",
    "migration ",
    "in ",
    "source ",
    "round ",
    "sent\n",
    "destination ",
];

/// Xorshift random numbers.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Fills page `number`, which is zero before.
pub(crate) fn fill(data: Data, number: u64, page: &mut [u8; PAGE]) {
    let mut random = Random::new(number);
    match data {
        Data::Zero | Data::Untouched => {}
        Data::Random | Data::Changed => bytes(&mut random, page),
        Data::Mixed => match Random::new(number / STRETCH).next() >> 32 & 3 {
            0 => {}
            1 => bytes(&mut random, page),
            2 => text(&mut random, page),
            _ => records(&mut random, page),
        },
    }
}

/// Changes one byte in a hundred of a page, but never the first byte; the second call undoes the first.
pub(crate) fn change(number: u64, page: &mut [u8; PAGE]) {
    let mut random = Random::new(number);
    for _ in 0..CHANGED {
        let draw = random.next();
        page[1 + (draw >> 32) as usize % (PAGE - 1)] ^= draw as u8 | 1;
    }
}

fn bytes(random: &mut Random, page: &mut [u8; PAGE]) {
    for word in page.as_chunks_mut().0 {
        *word = random.next().to_le_bytes();
    }
}

fn text(random: &mut Random, page: &mut [u8; PAGE]) {
    let words = std::iter::repeat_with(|| WORDS[(random.next() >> 32) as usize % WORDS.len()]);
    for (byte, letter) in page.iter_mut().zip(words.flat_map(str::bytes)) {
        *byte = letter;
    }
}

/// Records as in a kernel's tables: of 64 bytes an address, a count and some flags, the rest zero.
fn records(random: &mut Random, page: &mut [u8; PAGE]) {
    for record in page.as_chunks_mut::<64>().0 {
        let draw = random.next();
        record[..8].copy_from_slice(&(0xffff_8880_0000_0000 | (draw & 0x3fff_ffc0)).to_le_bytes());
        record[16] = (draw >> 32) as u8 & 7;
        record[24..26].copy_from_slice(&((draw >> 40) as u16).to_le_bytes());
    }
}
