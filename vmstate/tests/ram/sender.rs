//! Which of the pending pages a source sends, and in which order it checks, clears and reads; and page sets compared with a set
//! of page numbers.

use super::*;

/// A log that reports given pages once, and records the calls to clear.
#[derive(Default)]
struct Log {
    report: Vec<u64>,
    cleared: Vec<(usize, u64, u64)>,
}

impl DirtyLog for Log {
    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    fn sync(&mut self, block: usize, words: &mut [u64]) -> Result<()> {
        if block == 0 {
            for page in self.report.drain(..) {
                words[page as usize / 64] |= 1 << (page % 64);
            }
            // A hypervisor rounds its bitmap up; bits after the block belong to no page.
            *words.last_mut().unwrap() |= 0xff << 3;
        }
        Ok(())
    }

    fn clear(&mut self, block: usize, first: u64, count: u64) -> Result<()> {
        self.cleared.push((block, first, count));
        Ok(())
    }

    fn stop(&mut self) {}
}

#[test]
fn a_round_sends_what_is_pending_once_and_clears_before_it_reads() {
    let (ram, mut log) = (Ram::new(), Log { report: vec![2], ..Log::default() });
    let mut sender = RamSender::start(&ram, &mut log).unwrap();
    let mut out = Outbox::new();
    assert_eq!(sender.pending_pages(), 4);
    assert!(sender.put_pages(&mut out, u64::MAX).unwrap());
    let records: &[&[u8]] = &[
        b"\0\0\0\0\0\0\0\x02\x03low\0",
        b"\0\0\0\0\0\0\x10\x28",
        &[1; 4096],
        b"\0\0\0\0\0\0\x20\x22\0",
        b"\0\0\0\0\0\0\0\x02\x04high\0",
    ];
    assert_eq!(sent(&out, &ram), records.concat());
    assert_eq!((sender.pending_pages(), sender.sent().normal, sender.sent().zero), (0, 1, 3));
    assert_eq!(sender.sync().unwrap(), 1);
    out.clear();
    assert!(sender.put_pages(&mut out, u64::MAX).unwrap());
    assert_eq!(sent(&out, &ram), b"\0\0\0\0\0\0\x20\x02\x03low\0");
    drop(sender);
    assert_eq!(log.cleared, [(0, 0, 3), (1, 0, 1), (0, 0, 3)]);
}

#[test]
fn a_sample_of_the_pending_pages_is_spread_over_them() {
    let (ram, mut log) = (Ram::new(), Log { report: vec![1, 2], ..Log::default() });
    let mut sender = RamSender::start(&ram, &mut log).unwrap();
    // Page 1 of the first block is not zero, the three others are.
    for (wanted, normal, zero) in [(4, 1, 3), (100, 1, 3), (2, 1, 1), (1, 0, 1), (0, 0, 1)] {
        assert_eq!(sender.look(wanted).unwrap(), PageCount { normal, zero }, "of {wanted}");
    }
    assert_eq!(sender.pending_pages(), 4);
    sender.put_pages(&mut Outbox::new(), u64::MAX).unwrap();
    assert_eq!(sender.look(4).unwrap(), PageCount::default());
    sender.sync().unwrap();
    assert_eq!(sender.look(4).unwrap(), PageCount { normal: 1, zero: 1 });
}

/// Memory whose pages are mostly untouched, and must not be read there.
struct Sparse {
    blocks: Vec<RamBlock>,
    touched: [BTreeSet<u64>; 2],
    lookups: AtomicU64,
}

impl GuestRam for Sparse {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        for (page, bytes) in (offset / PAGE_SIZE..).zip(into.chunks_mut(4096)) {
            assert!(self.touched[block].contains(&page), "page {page} of {block} is read");
            bytes.fill((page % 3) as u8);
        }
        Ok(())
    }

    fn untouched(&self, block: usize, offset: u64, words: &mut [u64]) -> Result<()> {
        self.lookups.fetch_add(1, Relaxed);
        for bit in 0..words.len() * 64 {
            let page = offset / PAGE_SIZE + bit as u64;
            if page * PAGE_SIZE < self.blocks[block].len && !self.touched[block].contains(&page) {
                words[bit / 64] |= 1 << (bit % 64);
            }
        }
        Ok(())
    }

    fn write(&self, _block: usize, _offset: u64, _from: &[u8]) -> Result<()> {
        unreachable!("a source writes nothing")
    }

    fn zero_page(&self, _block: usize, _offset: u64) -> Result<()> {
        unreachable!("a source writes nothing")
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn untouched_pages_are_sent_as_zero_and_not_read(
        touched in [prop::collection::btree_set(0..9000_u64, 0..60), prop::collection::btree_set(0..70_u64, 0..60)],
        wanted in prop_oneof![1..5000_u64, Just(u64::MAX)],
    ) {
        let sizes = [9000, 70];
        let blocks = ["low", "high"].into_iter().zip(sizes);
        let blocks = blocks.map(|(name, pages)| RamBlock { name: name.into(), len: pages * PAGE_SIZE }).collect();
        let (ram, mut log) = (Sparse { blocks, touched, lookups: AtomicU64::new(0) }, Log::default());
        let mut sender = RamSender::start(&ram, &mut log).unwrap();
        let looked_at = sender.look(500).unwrap();
        prop_assert!(looked_at.total() >= 450);
        let mut whole: [Vec<u64>; 2] = Default::default();
        let mut out = Outbox::new();
        loop {
            let over = sender.put_pages(&mut out, wanted).unwrap();
            for piece in out.pieces() {
                if let Piece::Pages(run) = piece {
                    whole[run.block].extend(run.offset / PAGE_SIZE..(run.offset + run.len) / PAGE_SIZE);
                }
            }
            out.clear();
            if over {
                break;
            }
        }
        let normal = whole.iter().map(|pages| pages.len() as u64).sum::<u64>();
        prop_assert_eq!(sender.sent(), PageCount { normal, zero: 9070 - normal });
        for (whole, touched) in whole.iter().zip(&ram.touched) {
            prop_assert!(whole.iter().eq(touched.iter().filter(|page| *page % 3 != 0)));
        }
    }
}

/// In post-copy the guest is paused for good, and jumps between its pages: neither needs the log, and pages of one range are
/// looked up once.
#[test]
fn requested_pages_of_one_range_are_looked_up_once_and_nothing_is_cleared() {
    let blocks =
        [RamBlock { name: "low".into(), len: 9000 * PAGE_SIZE }, RamBlock { name: "high".into(), len: PAGE_SIZE }];
    let touched = [[100, 200, 4095, 5000].into(), BTreeSet::new()];
    let (ram, mut log) = (Sparse { blocks: blocks.into(), touched, lookups: AtomicU64::new(0) }, Log::default());
    let mut sender = RamSender::start(&ram, &mut log).unwrap();
    sender.begin_last_stage();
    let requested =
        [(0, 200, 1), (0, 100, 1), (0, 4095, 1), (0, 5000, 2), (0, 8192, 3), (0, 4097, 4), (1, 0, 5), (0, 1, 6)];
    for (block, page, lookups) in requested {
        assert!(sender.go_to(block, page), "{page} of {block}");
        sender.put_pages(&mut Outbox::new(), 0).unwrap();
        assert_eq!(ram.lookups.load(Relaxed), lookups, "{page} of {block}");
    }
    drop(sender);
    assert_eq!(log.cleared, []);
}

/// Memory without zero pages that counts the pages read.
struct Counted {
    blocks: [RamBlock; 2],
    looked_at: AtomicU64,
}

impl GuestRam for Counted {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn read(&self, _block: usize, _offset: u64, _into: &mut [u8]) -> Result<()> {
        unreachable!("nothing is sent")
    }

    fn zero_pages(&self, _block: usize, _offset: u64, pages: u32) -> Result<u64> {
        self.looked_at.fetch_add(pages.into(), Relaxed);
        Ok(0)
    }

    fn write(&self, _block: usize, _offset: u64, _from: &[u8]) -> Result<()> {
        unreachable!("a source writes nothing")
    }

    fn zero_page(&self, _block: usize, _offset: u64) -> Result<()> {
        unreachable!("a source writes nothing")
    }
}

/// Reports these pages of both blocks, again and again, and counts the windows that are cleared.
struct Reports<'a> {
    pages: [&'a BTreeSet<u64>; 2],
    cleared: &'a AtomicU64,
}

impl DirtyLog for Reports<'_> {
    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    fn sync(&mut self, block: usize, words: &mut [u64]) -> Result<()> {
        self.pages[block].iter().for_each(|page| words[*page as usize / 64] |= 1 << (page % 64));
        Ok(())
    }

    fn clear(&mut self, _block: usize, _first: u64, count: u64) -> Result<()> {
        assert!(count <= 4096);
        self.cleared.fetch_add(1, Relaxed);
        Ok(())
    }

    fn stop(&mut self) {}
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// The work of a round is proportional to its dirty pages: each is read and sent once, and no window without one is cleared.
    #[test]
    fn clean_pages_are_neither_read_nor_cleared_nor_sent(
        dirty in [prop::collection::btree_set(0..20_000_u64, 0..100), prop::collection::btree_set(0..5000_u64, 0..9)],
        wanted in prop_oneof![1..100_000_u64, Just(u64::MAX)],
    ) {
        let block = |name: &str, pages: u64| RamBlock { name: name.into(), len: pages * PAGE_SIZE };
        let ram = Counted { blocks: [block("low", 20_000), block("high", 5000)], looked_at: AtomicU64::new(0) };
        let cleared = AtomicU64::new(0);
        let mut log = Reports { pages: dirty.each_ref(), cleared: &cleared };
        let mut sender = RamSender::start(&ram, &mut log).unwrap();
        let mut out = Outbox::new();
        while !sender.put_pages(&mut out, u64::MAX).unwrap() {}
        prop_assert_eq!((ram.looked_at.swap(0, Relaxed), cleared.swap(0, Relaxed)), (25_000, 5 + 2));
        let all: u64 = dirty.iter().map(|pages| pages.len() as u64).sum();
        for _ in 0..2 {
            prop_assert_eq!(sender.sync().unwrap(), all);
            let mut sent = [const { Vec::new() }; 2];
            loop {
                out.clear();
                let over = sender.put_pages(&mut out, wanted).unwrap();
                for piece in out.pieces() {
                    if let Piece::Pages(run) = piece {
                        sent[run.block].extend(run.offset / PAGE_SIZE..(run.offset + run.len) / PAGE_SIZE);
                    }
                }
                if over {
                    break;
                }
            }
            let windows = dirty.iter().map(|pages| pages.iter().map(|page| page / 4096).collect::<BTreeSet<_>>().len() as u64);
            prop_assert_eq!((ram.looked_at.swap(0, Relaxed), cleared.swap(0, Relaxed)), (all, windows.sum()));
            for (sent, dirty) in sent.iter().zip(&dirty) {
                prop_assert!(sent.iter().eq(dirty));
            }
        }
    }
}

#[test]
fn one_page_is_sent_even_if_no_byte_is_wanted() {
    let (ram, mut log) = (Ram::new(), Log::default());
    let mut sender = RamSender::start(&ram, &mut log).unwrap();
    for left in [3, 2, 1] {
        let mut out = Outbox::new();
        out.put(&[0xff]);
        assert!(!sender.put_pages(&mut out, 1).unwrap());
        assert_eq!(sender.pending_pages(), left);
    }
}

proptest! {
    #[test]
    fn runs_of_a_bitmap_are_those_of_a_set_of_pages(
        pages in 0_u64..300,
        set in prop::collection::btree_set(0_u64..300, 0..200),
        removed in prop::collection::vec((0_u64..300, 0_u64..150), 0..6),
        longest in 1_u64..100,
    ) {
        let mut bitmap = PageSet::empty(pages);
        bitmap.edit(|words| set.iter().for_each(|page| {
            if let Some(word) = words.get_mut(*page as usize / 64) {
                *word |= 1 << (page % 64);
            }
        }));
        let mut model: BTreeSet<u64> = set.into_iter().filter(|page| *page < pages).collect();
        for (first, count) in removed {
            let end = (first + count).min(pages);
            bitmap.remove(first.min(end)..end);
            model.retain(|page| !(first..end).contains(page));
        }
        prop_assert_eq!(bitmap.count(), model.len() as u64);
        let skipped = longest / 3;
        let mut sampled = Vec::new();
        let rest = bitmap.every(skipped, longest, |page| {
            sampled.push(page);
            Ok::<_, ()>(())
        });
        let rest = rest.unwrap();
        let expected = model.iter().copied().skip(skipped as usize).step_by(longest as usize);
        prop_assert!(sampled.iter().copied().eq(expected), "{:?}", sampled);
        prop_assert_eq!(rest, skipped + sampled.len() as u64 * longest - model.len() as u64);
        let mut walked = BTreeSet::new();
        let mut from = 0;
        while let Some(run) = bitmap.run(from, longest) {
            prop_assert!(run.start >= from && run.end > run.start && run.end - run.start <= longest);
            prop_assert!(run.end - run.start == longest || !model.contains(&run.end), "{:?} is cut too short", run);
            from = run.end;
            walked.extend(run);
        }
        prop_assert_eq!(&walked, &model);
        for page in 0..pages {
            prop_assert_eq!(bitmap.contains(page), model.contains(&page));
        }
    }
}

#[test]
fn a_full_bitmap_has_each_page_once() {
    for pages in [0, 1, 63, 64, 65, 1000] {
        let bitmap = PageSet::full(pages);
        assert_eq!(bitmap.count(), pages);
        assert_eq!(bitmap.run(0, u64::MAX), (pages > 0).then_some(0..pages));
    }
}
