//! XBZRLE compared with an encoder and a decoder that work byte by byte, written from the format alone: pairs of a run of equal
//! bytes and a run of changed bytes, each after its length as ULEB128; the changed bytes are those of the new page, and the equal
//! rest of the page is left out.

use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;
use vmstate::error::{ErrorKind, Result};
use vmstate::raw::ram::xbzrle::{Delta, Encoded, Encoder, Page, PageCache, XbzrleSource, changed_bytes, decode};

const PAGE: usize = 4096;
/// A record of a whole page has 8 + 4096 bytes; one of runs has 8 + 3 before them.
const LONGEST: usize = PAGE - 3 - 1;

fn naive_encode(old: &Page, new: &Page) -> Vec<u8> {
    let mut runs = Vec::new();
    let mut at = 0;
    loop {
        let equal = (at..PAGE).take_while(|&at| old[at] == new[at]).count();
        let start = at + equal;
        if start == PAGE {
            return runs;
        }
        let changed = (start..PAGE).take_while(|&at| old[at] != new[at]).count();
        at = start + changed;
        put_uleb128(&mut runs, equal);
        put_uleb128(&mut runs, changed);
        runs.extend_from_slice(&new[start..at]);
    }
}

fn put_uleb128(out: &mut Vec<u8>, mut value: usize) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Returns `None` for bytes that are not an encoding of a page.
fn naive_decode(runs: &[u8], old: &Page) -> Option<Page> {
    let mut page = old.to_vec();
    let (mut from, mut to) = (0, 0);
    while from < runs.len() {
        let mut length = || {
            let low = *runs.get(from)?;
            from += 1;
            if low < 0x80 {
                return Some(usize::from(low));
            }
            let high = *runs.get(from).filter(|high| **high < 0x80)?;
            from += 1;
            Some(usize::from(low - 0x80) + 128 * usize::from(high))
        };
        let (equal, first) = (length()?, to == 0);
        let changed = length()?;
        if (equal == 0 && !first) || changed == 0 {
            return None;
        }
        to += equal;
        for _ in 0..changed {
            *page.get_mut(to)? = *runs.get(from)?;
            (from, to) = (from + 1, to + 1);
        }
    }
    page.try_into().ok()
}

/// The result of decoding `runs`, at stream offset 100, on a copy of `old`.
fn decoded(runs: &[u8], old: &Page) -> Result<Page> {
    let mut page = *old;
    decode(runs, &mut page, 100).map(|()| page)
}

/// An old page, and a new one with changed ranges: anywhere, near one another, to random or to few values.
fn pages() -> impl Strategy<Value = (Box<Page>, Box<Page>)> {
    let changes = vec((0..PAGE, prop_oneof![1_usize..4, 1_usize..200, 1_usize..PAGE], any::<u64>()), 0..60);
    let few = prop_oneof![Just(1_u64), Just(2), Just(256)];
    (any::<u64>(), few, changes).prop_map(|(seed, values, changes)| {
        let mut old = Box::new([0; PAGE]);
        let mut state = seed;
        old.iter_mut().for_each(|byte| *byte = (random(&mut state) % values) as u8);
        let mut new = old.clone();
        for (at, length, seed) in changes {
            let mut state = seed;
            new.iter_mut().skip(at).take(length).for_each(|byte| *byte = (random(&mut state) % values.max(2)) as u8);
        }
        (old, new)
    })
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn assert_encodes(encoder: &mut Encoder, old: &Page, new: &Page) {
    let naive = naive_encode(old, new);
    match encoder.encode(new, &changed_bytes(old, new)) {
        Encoded::Unchanged => assert!(old == new),
        Encoded::TooLong => assert!(naive.len() > LONGEST, "{} bytes are not too long", naive.len()),
        Encoded::Runs(runs) => {
            assert!(runs == naive && runs.len() <= LONGEST, "{} bytes, naively {}", runs.len(), naive.len());
            assert!(naive_decode(runs, old).unwrap() == *new && decoded(runs, old).unwrap() == *new);
        }
    }
}

#[test]
fn the_bytes_of_a_page_written_out() {
    let old = [7; PAGE];
    let mut new = old;
    (new[0], new[200], new[201]) = (1, 2, 3);
    let mut encoder = Encoder::default();
    assert_eq!(encoder.encode(&old, &changed_bytes(&old, &old)), Encoded::Unchanged);
    // 0 equal, 1 changed; 199 = 0x47 + 0x80 equal, 2 changed; the rest is left out.
    assert_eq!(encoder.encode(&new, &changed_bytes(&old, &new)), Encoded::Runs(&[0, 1, 1, 0xc7, 0x01, 2, 2, 3]));
    new = old;
    new[4095] = 0;
    assert_eq!(encoder.encode(&new, &changed_bytes(&old, &new)), Encoded::Runs(&[0xff, 0x1f, 1, 0]));
    // Each other byte: 0 and 1 and the byte, and 2047 times three bytes more.
    (0..PAGE).step_by(2).for_each(|at| new[at] = 1);
    assert_eq!(encoder.encode(&new, &changed_bytes(&old, &new)), Encoded::TooLong);
    assert_eq!(encoder.encode(&[8; PAGE], &changed_bytes(&old, &[8; PAGE])), Encoded::TooLong);
}

#[test]
fn one_run_anywhere() {
    let old = [0x5a; PAGE];
    let mut encoder = Encoder::default();
    for length in [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 4087, 4088, 4089, 4096] {
        let last = PAGE - length;
        for start in (0..130.min(last)).chain((130..last).step_by(97)).chain(last.saturating_sub(70)..=last) {
            let mut new = old;
            new[start..start + length].fill(0xa5);
            assert_encodes(&mut encoder, &old, &new);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn encodes_as_the_naive_encoder((old, new) in pages()) {
        assert_encodes(&mut Encoder::default(), &old, &new);
    }

    /// Valid runs with some bytes changed, and random bytes.
    #[test]
    fn decodes_what_the_naive_decoder_decodes(
        (old, new) in pages(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        any in vec(prop_oneof![0_u8..4, any::<u8>()], 0..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut runs = naive_encode(&old, &new);
        for (at, byte) in changes {
            if !runs.is_empty() {
                let at = at.index(runs.len());
                runs[at] = byte;
            }
        }
        for runs in [&runs[..], &runs[..cut.index(runs.len() + 1)], &any] {
            let decoded = decoded(runs, &old);
            assert_eq!(decoded.as_ref().ok(), naive_decode(runs, &old).as_ref());
            if let Err(error) = decoded {
                assert_eq!(error.kind(), ErrorKind::Malformed);
                assert!((100..=100 + runs.len() as u64).contains(&error.offset().unwrap()), "{error}");
            }
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(30) })]

    /// The destination applies what is sent, and has the guest's page after each; whatever the cache drops, and whichever pages
    /// it is used for.
    #[test]
    fn the_destination_has_each_page_as_the_source(
        seed in any::<u64>(),
        cache_pages in prop_oneof![Just(0_u64), Just(1), Just(16), Just(300)],
        wild in any::<bool>(),
    ) {
        const PAGES: usize = 400;
        let mut state = seed;
        let mut guest = vec![[0_u8; PAGE]; PAGES];
        let mut there: HashMap<usize, Page> = HashMap::new();
        let mut source = XbzrleSource::new(cache_pages << 12);
        for round in 1..12 {
            // The size of the cache and the pattern of writes change during the migration.
            let cache = if round == 9 { 64 } else { cache_pages };
            source.resize(cache << 12);
            source.begin_round();
            let last = round == 11;
            for (page, bytes) in guest.iter_mut().enumerate() {
                match random(&mut state) % 8 {
                    0 => bytes.fill(0),
                    1 => continue,
                    2 => {}
                    _ if wild && round < 6 => bytes.iter_mut().for_each(|byte| *byte = random(&mut state) as u8),
                    _ => bytes[random(&mut state) as usize % PAGE] ^= 1 + random(&mut state) as u8 % 255,
                }
                let (tried, end) = source.stretch(page as u64);
                assert!(end > page as u64);
                if *bytes == [0; PAGE] {
                    if tried {
                        source.zero(page as u64);
                    }
                    there.insert(page, *bytes);
                } else {
                    match if tried { source.delta(page as u64, bytes, last, changed_bytes) } else { Delta::Whole } {
                        Delta::Nothing => {}
                        Delta::Kept | Delta::Whole => drop(there.insert(page, *bytes)),
                        Delta::Runs(runs) => {
                            let now = naive_decode(runs, &there[&page]).unwrap();
                            there.insert(page, now);
                        }
                    }
                }
                assert!(there[&page] == *bytes, "page {page} in round {round}");
            }
        }
        let count = source.count();
        assert!(cache_pages < 300 || count.pages > 0, "{count:?}");
    }
}

#[test]
fn a_page_keeps_its_place_for_a_round() {
    let mut cache = PageCache::new(8 * 4096 + 4095);
    let (one, two) = ([1; PAGE], [2; PAGE]);
    assert!(cache.get(3, 2).is_none());
    assert!(cache.insert(3, 2, &one));
    // The page eight further has the same slot, which page 3 used in the last round.
    assert!(!cache.insert(11, 3, &two));
    assert!(cache.get(11, 3).is_none());
    assert_eq!(cache.get(3, 3), Some(&mut one.clone()));
    assert!(!cache.insert(11, 4, &two));
    assert!(cache.insert(11, 5, &two));
    assert_eq!(cache.get(3, 5), None);
    assert_eq!(cache.get(11, 5), Some(&mut two.clone()));
    // A page is stored in its own slot at once.
    assert!(cache.insert(11, 5, &one) && cache.insert(12, 5, &two));
    assert_eq!(cache.get(11, 5), Some(&mut one.clone()));
    cache.retain(|page| page == 12);
    assert!(cache.get(11, 5).is_none() && cache.get(12, 5).is_some());
    let mut none = PageCache::new(4095);
    assert!(!none.insert(0, 1, &one) && none.get(0, 1).is_none());
}

/// One round in which each of 512 pages is changed by `change`.
fn round(source: &mut XbzrleSource, guest: &mut [Page], change: impl Fn(&mut Page, u8)) -> u64 {
    source.begin_round();
    let mut tried = 0;
    for (page, bytes) in (0..).zip(guest) {
        change(bytes, page as u8);
        if source.stretch(page).0 {
            tried += 1;
            source.delta(page, bytes, false, changed_bytes);
        }
    }
    tried
}

#[test]
fn it_is_stopped_where_it_saves_nothing_and_resumed_where_it_does() {
    let mut source = XbzrleSource::new(64 << 20);
    let mut guest = vec![[0; PAGE]; 2048];
    let all_new = |page: &mut Page, at: u8| page.iter_mut().for_each(|byte| *byte = byte.wrapping_add(at | 1));
    let one_byte = |page: &mut Page, at: u8| page[usize::from(at)] ^= 1;
    let rounds = |source: &mut XbzrleSource, guest: &mut [Page], change: fn(&mut Page, u8), rounds: usize| {
        (0..rounds).map(|_| round(source, guest, change)).collect::<Vec<_>>()
    };
    // Never in the first round; the second fills the cache, the third shows that it saves nothing.
    assert_eq!(rounds(&mut source, &mut guest, all_new, 6), [0, 2048, 2048, 128, 128, 128]);
    let count = source.count();
    assert_eq!((count.pages, count.cache_miss, count.encoded), (2048 + 3 * 128, 2048, 0));
    assert_eq!((count.overflow, count.bytes), (count.pages, count.pages * 4096));
    // The sample shows that the pattern of writes has changed.
    assert_eq!(rounds(&mut source, &mut guest, one_byte, 4), [128, 2048, 2048, 2048]);
    source.begin_round();
    let count = source.count();
    assert_eq!(count.cache_miss_rate, 0.0);
    assert!((1.0 / count.encoding_rate - (3.0 + 4.0) / 4096.0).abs() < 0.0005, "{count:?}");
}

#[test]
fn the_last_stage_caches_nothing() {
    let mut source = XbzrleSource::new(1 << 20);
    source.begin_round();
    source.begin_round();
    let mut page = [1; PAGE];
    assert_eq!(source.delta(7, &page, true, changed_bytes), Delta::Whole);
    assert_eq!(source.delta(7, &page, false, changed_bytes), Delta::Kept);
    // Another page has the slot of page 7, which was used in this round.
    assert_eq!(source.delta(7 + 256, &page, false, changed_bytes), Delta::Whole);
    assert_eq!(source.delta(7, &page, true, changed_bytes), Delta::Nothing);
    page[1] = 5;
    assert_eq!(source.delta(7, &page, true, changed_bytes), Delta::Runs(&[1, 1, 5]));
    assert_eq!(source.delta(7, &page, true, changed_bytes), Delta::Runs(&[1, 1, 5]));
    assert_eq!((source.count().cache_miss, source.count().pages), (3, 3));
}
