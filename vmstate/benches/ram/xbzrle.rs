//! XBZRLE: the encoder, compared with one that works byte by byte and one that works by words, as QEMU's without vector
//! instructions does.

use std::hint::black_box;

use vmstate::raw::ram::xbzrle::{Encoded, Encoder, Page, changed_bytes, decode};

use super::{Unit, compare};

const PAGES: usize = 256;
const PAGE: usize = 4096;

/// Changes of a page: a name, the number of changed bytes, and how many of them are adjacent.
const CHANGES: [(&str, usize, usize); 5] = [
    ("none", 0, 1),
    ("1 % scattered", 41, 1),
    ("5 % scattered", 205, 1),
    ("10 % scattered", 410, 1),
    ("10 % in runs", 410, 205),
];

pub(crate) fn run(rounds: usize) {
    for (name, changed, together) in CHANGES {
        let (old, new) = pages(changed, together);
        let unit = Unit::Speed(PAGES * PAGE);
        let mut encoder = Encoder::default();
        let mut out = vec![0; 2 * PAGE];
        let mut by_words = vec![0; 2 * PAGE];
        let group = format!("XBZRLE encode, {name}");
        compare(
            &group,
            unit,
            rounds,
            &mut [
                (
                    "masks of 64 bytes",
                    Box::new(|| each(&old, &new, |old, new| length(encoder.encode(new, &changed_bytes(old, new))))),
                ),
                ("by words", Box::new(|| each(&old, &new, |old, new| words(old, new, &mut by_words)))),
                ("naive, by bytes", Box::new(|| each(&old, &new, |old, new| naive(old, new, &mut out)))),
            ],
        );
        let mut encoder = Encoder::default();
        let runs: Vec<Vec<u8>> = old
            .iter()
            .zip(&new)
            .map(|(old, new)| match encoder.encode(new, &changed_bytes(old, new)) {
                Encoded::Runs(runs) => runs.to_vec(),
                _ => Vec::new(),
            })
            .collect();
        let mut page = [0; PAGE];
        compare(
            &format!("XBZRLE decode, {name}"),
            unit,
            rounds,
            &mut [(
                "checked",
                Box::new(|| {
                    for (runs, old) in runs.iter().zip(&old) {
                        page = *old;
                        decode(black_box(runs), black_box(&mut page), 0).expect("runs");
                    }
                }),
            )],
        );
    }
}

fn each(old: &[Page], new: &[Page], mut encode: impl FnMut(&Page, &Page) -> usize) {
    for (old, new) in old.iter().zip(new) {
        black_box(encode(black_box(old), black_box(new)));
    }
}

fn length(encoded: Encoded<'_>) -> usize {
    match encoded {
        Encoded::Runs(runs) => runs.len(),
        Encoded::Unchanged => 0,
        Encoded::TooLong => PAGE,
    }
}

/// Random pages, and copies of them with `changed` bytes of each changed, in runs of `together`.
fn pages(changed: usize, together: usize) -> (Vec<Page>, Vec<Page>) {
    let mut state = 1_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let old: Vec<Page> = (0..PAGES).map(|_| std::array::from_fn(|_| random() as u8)).collect();
    let mut new = old.clone();
    for page in &mut new {
        for _ in 0..changed / together {
            let start = random() as usize % (PAGE - together);
            page[start..start + together].iter_mut().for_each(|byte| *byte = byte.wrapping_add(random() as u8 | 1));
        }
    }
    (old, new)
}

/// Appends both lengths and the changed bytes at `at`; returns the end, or `None` if the result is too long.
fn put(out: &mut [u8], mut at: usize, equal: usize, changed: &[u8]) -> Option<usize> {
    for length in [equal, changed.len()] {
        if length > 0x7f {
            out[at..at + 2].copy_from_slice(&[length as u8 | 0x80, (length >> 7) as u8]);
            at += 2;
        } else {
            out[at] = length as u8;
            at += 1;
        }
    }
    out[at..at + changed.len()].copy_from_slice(changed);
    at += changed.len();
    (at < PAGE).then_some(at)
}

fn naive(old: &Page, new: &Page, out: &mut [u8]) -> usize {
    let (mut at, mut length) = (0, 0);
    loop {
        let equal = (at..PAGE).take_while(|&at| old[at] == new[at]).count();
        let start = at + equal;
        if start == PAGE {
            return length;
        }
        let changed = (start..PAGE).take_while(|&at| old[at] != new[at]).count();
        at = start + changed;
        let Some(end) = put(out, length, equal, &new[start..at]) else { return PAGE };
        length = end;
    }
}

/// Compares eight bytes at a time: a word whose XOR is zero is equal; if its XOR has no zero byte, all of it changed.
fn words(old: &Page, new: &Page, out: &mut [u8]) -> usize {
    let word = |at: usize| {
        let of = |page: &Page| u64::from_le_bytes(*page[at..].first_chunk().expect("aligned"));
        of(old) ^ of(new)
    };
    let zero_byte = |word: u64| word.wrapping_sub(0x0101_0101_0101_0101) & !word & 0x8080_8080_8080_8080;
    let (mut at, mut length) = (0, 0);
    loop {
        let from = at;
        while at < PAGE && old[at] == new[at] {
            at += 1;
            if at % 8 == 0 {
                while at < PAGE && word(at) == 0 {
                    at += 8;
                }
            }
        }
        if at == PAGE {
            return length;
        }
        let start = at;
        while at < PAGE && old[at] != new[at] {
            at += 1;
            if at % 8 == 0 {
                while at < PAGE && zero_byte(word(at)) == 0 {
                    at += 8;
                }
            }
        }
        let Some(end) = put(out, length, start - from, &new[start..at]) else { return PAGE };
        length = end;
    }
}
