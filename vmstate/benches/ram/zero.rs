//! The zero test, compared with only reading the same memory and with a test byte by byte.

use std::hint::black_box;

use vmstate::raw::ram::is_zero;

use super::{Unit, compare};

const PAGE: usize = 4096;
/// One length much larger than any cache, and one that fits a cache.
const LENGTHS: [(&str, usize); 2] = [("from memory", 256 << 20), ("from a cache", 256 << 10)];

pub(crate) fn run(rounds: usize) {
    for (place, len) in LENGTHS {
        for (content, value) in [("zeros", 0_u64), ("no zeros", 0x0101_0101_0101_0101)] {
            // Written first: untouched memory would be mapped to one shared zero page.
            let mut words = vec![1; len / 8];
            words.fill(value);
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let pages = || black_box(&bytes).as_chunks::<PAGE>().0.iter();
            let naive = |page: &&[u8; PAGE]| page.iter().all(|&byte| byte == 0);
            compare(
                &format!("zero test, {content} {place}"),
                Unit::Speed(len),
                rounds,
                &mut [
                    ("page by page", Box::new(|| seen(pages().filter(|page| is_zero(*page)).count()))),
                    ("reading alone", Box::new(|| seen(black_box(&words).iter().fold(0, |any, word| any | word)))),
                    ("naive, by bytes", Box::new(|| seen(pages().filter(naive).count()))),
                ],
            );
        }
    }
}

/// Keeps the compiler from dropping the result.
fn seen<T>(result: T) {
    black_box(result);
}
