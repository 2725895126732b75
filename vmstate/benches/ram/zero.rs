//! The zero test, beside reading the same memory at all and beside a test byte by byte.

use std::hint::black_box;

use vmstate::raw::ram::is_zero;

use super::{Unit, compare};

const PAGE: usize = 4096;
/// Far longer than any cache, and within one.
const LENGTHS: [(&str, usize); 2] = [("from memory", 256 << 20), ("from a cache", 256 << 10)];

pub(crate) fn run(rounds: usize) {
    for (place, len) in LENGTHS {
        for (content, value) in [("zeros", 0_u64), ("no zeros", 0x0101_0101_0101_0101)] {
            let words = vec![value; len / 8];
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let pages = || black_box(&bytes).as_chunks::<PAGE>().0.iter();
            let naive = |page: &&[u8; PAGE]| {
                let mut zero = true;
                for &byte in *page {
                    zero = zero && black_box(byte) == 0;
                }
                zero
            };
            compare(
                &format!("zero test, {content} {place}"),
                Unit::Speed(len),
                rounds,
                &mut [
                    ("page by page", Box::new(|| drop(black_box(pages().filter(|page| is_zero(*page)).count())))),
                    (
                        "reading alone",
                        Box::new(|| drop(black_box(black_box(&words).iter().fold(0, |any, word| any | word)))),
                    ),
                    ("naive, by bytes", Box::new(|| drop(black_box(pages().filter(naive).count())))),
                ],
            );
        }
    }
}
