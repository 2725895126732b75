//! RAM records, good and hostile, and the bitmap against a set of page numbers.
#![cfg(feature = "engine")]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;
use vmstate::codec::{Limits, Outbox, Piece, Reader, Strictness};
use vmstate::error::{Error, ErrorKind, Result};
use vmstate::ram::{DirtyLog, GuestRam, PAGE_SIZE, PageCount, RamBlock};
use vmstate::raw::ram::{PageSet, RamReceiver, RamRecord, RamSender};

/// Remembers what was written, and must never be asked for what it does not have.
struct Ram {
    blocks: Vec<RamBlock>,
    writes: Mutex<Vec<(usize, u64, u8)>>,
}

impl Ram {
    fn new() -> Self {
        let block = |name: &str, len| RamBlock { name: name.to_owned(), len };
        Self { blocks: vec![block("low", 0x3000), block("high", 0x1000)], writes: Mutex::default() }
    }
}

impl GuestRam for Ram {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn read(&self, _block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        // Page 1 is not zero.
        for (at, byte) in (offset..).zip(into) {
            *byte = u8::from(at / PAGE_SIZE == 1);
        }
        Ok(())
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        assert!(from.len() == 4096 && offset.is_multiple_of(4096) && offset < self.blocks[block].len);
        self.writes.lock().unwrap().push((block, offset, from[0]));
        Ok(())
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        self.write(block, offset, &[0; 4096])
    }
}

/// Keeps blocks called `rom…` besides, of 8 KiB together at most, and refuses one that is called so and does not fit.
struct Keeping {
    ram: Ram,
    kept: Mutex<Vec<u64>>,
}

impl GuestRam for Keeping {
    fn blocks(&self) -> &[RamBlock] {
        self.ram.blocks()
    }

    fn adopt(&self, name: &str, len: u64) -> Result<bool> {
        let mut kept = self.kept.lock().unwrap();
        match name.starts_with("rom") {
            true if kept.iter().sum::<u64>() + len > 0x2000 => Err(Error::new(ErrorKind::Incompatible, "too long")),
            rom => {
                kept.extend(rom.then_some(len));
                Ok(rom)
            }
        }
    }

    fn read(&self, _block: usize, _offset: u64, _into: &mut [u8]) -> Result<()> {
        unreachable!("a destination reads nothing")
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        self.ram.writes.lock().unwrap().push((block, offset, from[0]));
        Ok(())
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        self.write(block, offset, &[0; 4096])
    }
}

fn reader(bytes: &[u8]) -> Reader<'_> {
    Reader::new(bytes, 0, Strictness::QemuCompatible, Limits::default())
}

/// The bytes that `out` stands for.
fn sent(out: &Outbox, ram: &Ram) -> Vec<u8> {
    let mut sent = Vec::new();
    for piece in out.pieces() {
        match piece {
            Piece::Bytes(bytes) => sent.extend_from_slice(bytes),
            Piece::Pages(run) => {
                let mut pages = vec![9; run.len as usize];
                ram.read(run.block, run.offset, &mut pages).unwrap();
                sent.extend(pages);
            }
        }
    }
    assert_eq!(sent.len() as u64, out.len());
    sent
}

fn refusal(bytes: &[u8]) -> Error {
    let ram = Ram::new();
    let mut receiver = RamReceiver::new(&ram);
    let error = receiver.read_records(&mut reader(bytes)).unwrap_err();
    assert!(ram.writes.lock().unwrap().is_empty());
    error
}

#[test]
fn good_records() {
    let ram = Ram::new();
    let mut receiver = RamReceiver::new(&ram);
    let mut record = |bytes: &[u8]| receiver.read_records(&mut reader(bytes)).unwrap();
    assert_eq!(record(b"\0\0\0\0\0\0\x20\x02\x03low\0"), RamRecord::Page);
    assert_eq!(record(&[b"\0\0\0\0\0\0\x10\x28" as &[u8], &[7; 4096]].concat()), RamRecord::Page);
    assert_eq!(record(b"\0\0\0\0\0\0\0\x02\x04high\0"), RamRecord::Page);
    assert_eq!(record(b"\0\0\0\0\0\0\0\x22\0"), RamRecord::Page);
    // XBZRLE: 0 equal bytes, 1 changed. No runs at all: the page is as it was.
    assert_eq!(record(b"\0\0\0\0\0\0\x10\x40\x03low\x01\0\x03\x00\x01\x09"), RamRecord::Page);
    assert_eq!(record(b"\0\0\0\0\0\0\x10\x60\x01\0\0"), RamRecord::Page);
    // Whether page channels are there for it is asked by who reads the section.
    assert_eq!(record(b"\0\0\0\0\0\0\x02\0"), RamRecord::Flush);
    assert_eq!(record(b"\0\0\0\0\0\0\0\x10"), RamRecord::End);
    let written = [(0, 0x2000, 0), (0, 0x1000, 7), (1, 0, 0), (1, 0, 0), (0, 0x1000, 9), (0, 0x1000, 1)];
    assert_eq!(*ram.writes.lock().unwrap(), written);
    assert_eq!((receiver.received().normal, receiver.received().zero), (3, 3));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// However the bytes are cut on their way: what is written, and in which order, is what the records say one by one.
    #[test]
    fn each_record_is_written_once_and_in_its_turn(
        records in prop::collection::vec((0..4_u64, prop::option::of(1..9_u8), any::<bool>()), 1..150),
        cuts in prop::collection::vec(1..40_000_usize, 1..8),
    ) {
        let (mut stream, mut expected, mut last) = (Vec::new(), Vec::new(), None);
        for &(page, contents, is_named) in &records {
            let (block, name, offset) = if page < 3 { (0, "low", page << 12) } else { (1, "high", 0) };
            let continues = last.replace(block) == Some(block) && !is_named;
            let flags = if contents.is_some() { 0x08 } else { 0x02 } | if continues { 0x20 } else { 0 };
            stream.extend((offset | flags).to_be_bytes());
            if !continues {
                stream.push(name.len() as u8);
                stream.extend(name.bytes());
            }
            stream.extend(vec![contents.unwrap_or_default(); if contents.is_some() { 4096 } else { 1 }]);
            expected.push((block, offset, contents.unwrap_or_default()));
        }
        stream.extend(0x10_u64.to_be_bytes());
        let ram = Ram::new();
        let mut receiver = RamReceiver::new(&ram);
        let (mut begin, mut end, mut cuts) = (0, 0, cuts.iter().cycle());
        loop {
            let mut reader = reader(&stream[begin..end]);
            let read = receiver.read_records(&mut reader);
            begin += if read.is_ok() { reader.consumed() } else { 0 };
            match read {
                Ok(RamRecord::End) => break,
                Ok(record) => prop_assert_eq!(record, RamRecord::Page),
                Err(error) => {
                    prop_assert!(error.is_incomplete() && end < stream.len(), "{}", error);
                    end = stream.len().min(end + cuts.next().unwrap());
                }
            }
        }
        prop_assert_eq!(begin, stream.len());
        prop_assert_eq!(&*ram.writes.lock().unwrap(), &expected);
        let zero = records.iter().filter(|(_, contents, _)| contents.is_none()).count() as u64;
        prop_assert_eq!(receiver.received(), PageCount { normal: records.len() as u64 - zero, zero });
    }
}

#[test]
fn what_came_before_a_bad_record_is_in_memory() {
    let bytes =
        [b"\0\0\0\0\0\0\x10\x08\x03low" as &[u8], &[7; 4096], b"\0\0\0\0\0\0\x20\x22\0\0\0\0\0\0\0\x30\x22\0"].concat();
    let ram = Ram::new();
    let error = RamReceiver::new(&ram).read_records(&mut reader(&bytes)).unwrap_err();
    assert_eq!(error.to_string(), "at 0x1015: page at 0x3000 of RAM block low, which has 0x3000 bytes");
    assert_eq!(*ram.writes.lock().unwrap(), [(0, 0x1000, 7), (0, 0x2000, 0)]);
}

#[test]
fn hostile_records_write_nothing() {
    let cases: [(&[u8], &str); 19] = [
        (b"\0\0\0\0\0\0\x30\x02\x03low\0", "page at 0x3000 of RAM block low, which has 0x3000 bytes"),
        (b"\xff\xff\xff\xff\xff\xff\xf0\x02\x03low\0", "page at 0xfffffffffffff000 of RAM block low"),
        (b"\0\0\0\0\0\0\x10\x02\x04high\0", "page at 0x1000 of RAM block high"),
        (b"\0\0\0\0\0\0\0\x02\x03lox\0", "RAM block lox, which does not exist here"),
        (b"\0\0\0\0\0\0\0\x02\x00\0", "empty"),
        (b"\0\0\0\0\0\0\0\x02\x02\xff\xfe\0", "not UTF-8"),
        (b"\0\0\0\0\0\0\0\x22\0", "before any block was named"),
        (b"\0\0\0\0\0\0\0\x02\x03low\x01", "filled with 0x01"),
        (b"\0\0\0\0\0\0\0\x0a\x03low\0", "flags 0xa"),
        (b"\0\0\0\0\0\0\0\0", "flags 0x0"),
        (b"\0\0\0\0\0\0\x04\x08\x03low", "flags 0x408"),
        (b"\0\0\0\0\0\0\x30\x40\x03low\x01\0\0", "page at 0x3000 of RAM block low, which has 0x3000 bytes"),
        (b"\0\0\0\0\0\0\0\x40\x03low\x02\0\0", "encoding 0x02, of which only 0x01 exists"),
        (b"\0\0\0\0\0\0\0\x40\x03low\x01\x10\x01", "4097 bytes, more than the page has"),
        (
            b"\0\0\0\0\0\0\0\x40\x03low\x01\0\x06\x00\x01\x05\x01\x00\x05",
            "at 0x12: XBZRLE page: a run of changed bytes is empty",
        ),
        (
            b"\0\0\0\0\0\0\0\x40\x03low\x01\0\x05\xff\x1f\x02\x05\x05",
            "at 0xf: XBZRLE page: a run ends at byte 4097 of 4096",
        ),
        // A flush stands alone: no page, and none that continues.
        (b"\0\0\0\0\0\0\x12\0", "flags 0x200"),
        (b"\0\0\0\0\0\0\x02\x20", "flags 0x220"),
        (b"\0\0\0\0\0\0\0\x80", "flag HOOK"),
    ];
    for (bytes, expected) in cases {
        let error = refusal(bytes);
        assert!(error.to_string().contains(expected), "{bytes:x?}: {error}");
        assert!(matches!(error.kind(), ErrorKind::Malformed | ErrorKind::Incompatible), "{error:?}");
    }
    // A name as long as a name can be, of which one byte is missing.
    let mut long = b"\0\0\0\0\0\0\0\x02\xff".to_vec();
    long.extend([b'a'; 254]);
    assert!(refusal(&long).is_incomplete());
    // One byte short of a page.
    assert!(refusal(&[b"\0\0\0\0\0\0\0\x08\x03low" as &[u8], &[7; 4095]].concat()).is_incomplete());
}

#[test]
fn block_lists() {
    let list = |total: &[u8; 8], blocks: &[&[u8]], strictness| {
        let bytes = [total as &[u8], &blocks.concat(), b"\0\0\0\0\0\0\0\x10"].concat();
        let ram = Ram::new();
        let mut reader = Reader::new(&bytes, 0, strictness, Limits::default());
        RamReceiver::new(&ram).read_blocks(&mut reader).map_err(|error| error.to_string())
    };
    let low: &[u8] = b"\x03low\0\0\0\0\0\0\x30\0";
    let high: &[u8] = b"\x04high\0\0\0\0\0\0\x10\0";
    for strictness in [Strictness::Strict, Strictness::QemuCompatible] {
        list(b"\0\0\0\0\0\0\x40\x04", &[low, high], strictness).unwrap();
        list(b"\0\0\0\0\0\0\x40\x04", &[high, low], strictness).unwrap();
        let refusal = |total, blocks: &[&[u8]]| list(total, blocks, strictness).unwrap_err();
        assert!(refusal(b"\0\0\0\0\0\0\x40\x08", &[low, high]).contains("the list of RAM blocks expected"));
        assert!(refusal(b"\0\0\0\0\0\0\x50\x04", &[high, high]).contains("does not fit the announced total"));
        assert!(refusal(b"\0\0\0\0\0\0\x20\x04", &[low]).contains("does not fit the announced total"));
        let other: &[u8] = b"\x03rom\0\0\0\0\0\0\x10\0";
        assert!(refusal(b"\0\0\0\0\0\0\x40\x04", &[low, other]).contains("RAM block rom does not exist here"));
        let longer: &[u8] = b"\x04high\0\0\0\0\0\0\x20\0";
        let error = refusal(b"\0\0\0\0\0\0\x50\x04", &[low, longer]);
        assert!(error.contains("high has 8192 bytes at the source and 4096 here"), "{error}");
        assert!(refusal(b"\0\0\0\0\0\0\x40\x04", &[low, high, b"\0\0\0\0\0\0\0\x22\0"]).contains("before any block"));
    }
    list(b"\0\0\0\0\0\0\x30\x04", &[low], Strictness::QemuCompatible).unwrap();
    let error = list(b"\0\0\0\0\0\0\x30\x04", &[low], Strictness::Strict).unwrap_err();
    assert!(error.contains("high is not sent"), "{error}");
}

/// The list names the machine's own blocks last, to show that the order of the list gives no index to a block that is here.
#[test]
fn blocks_that_are_kept_come_behind_those_that_are_here() {
    let own: &[u8] = b"\x04high\0\0\0\0\0\0\x10\0\x03low\0\0\0\0\0\0\x30\0";
    let end: &[u8] = b"\0\0\0\0\0\0\0\x10";
    let list = |total: &[u8; 8], kept: &[u8]| [total as &[u8], kept, own, end].concat();
    let keeping = || Keeping { ram: Ram::new(), kept: Mutex::default() };

    let ram = keeping();
    let mut receiver = RamReceiver::new(&ram);
    let good = list(b"\0\0\0\0\0\0\x60\x04", b"\x05rom/b\0\0\0\0\0\0\x10\0\x05rom/a\0\0\0\0\0\0\x10\0");
    receiver.read_blocks(&mut Reader::new(&good, 0, Strictness::Strict, Limits::default())).unwrap();
    let mut record =
        |bytes: &[u8]| receiver.read_records(&mut reader(bytes)).map(|_| ()).map_err(|error| error.to_string());
    record(&[b"\0\0\0\0\0\0\0\x08\x05rom/a" as &[u8], &[7; 4096]].concat()).unwrap();
    record(b"\0\0\0\0\0\0\0\x22\0").unwrap();
    record(b"\0\0\0\0\0\0\0\x02\x05rom/b\0").unwrap();
    record(b"\0\0\0\0\0\0\0\x02\x04high\0").unwrap();
    let outside = record(b"\0\0\0\0\0\0\x10\x02\x05rom/a\0").unwrap_err();
    assert!(outside.contains("page at 0x1000 of RAM block rom/a, which has 0x1000 bytes"), "{outside}");
    assert_eq!(*ram.ram.writes.lock().unwrap(), [(3, 0, 7), (3, 0, 0), (2, 0, 0), (1, 0, 0)]);

    let refusals: [(&[u8; 8], &[u8], &str); 4] = [
        (b"\0\0\0\0\0\0\x70\x04", b"\x03rom\0\0\0\0\0\0\x30\0", "at 0x8: too long"),
        (b"\0\0\0\0\0\0\x50\x04", b"\x04bios\0\0\0\0\0\0\x10\0", "RAM block bios does not exist here"),
        (
            b"\0\0\0\0\0\0\x60\x04",
            b"\x03rom\0\0\0\0\0\0\x10\0\x03rom\0\0\0\0\0\0\x10\0",
            "at 0x14: RAM block rom comes twice",
        ),
        (
            b"\0\0\0\0\0\0\x50\x04",
            b"\x04rom1\0\0\0\0\0\0\x08\0\x04rom2\0\0\0\0\0\0\x08\0",
            "at 0x8: RAM block rom1 has 2048 bytes, which are no whole pages",
        ),
    ];
    for (total, kept, expected) in refusals {
        let (ram, bytes) = (keeping(), list(total, kept));
        let error = RamReceiver::new(&ram).read_blocks(&mut reader(&bytes)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// A log that reports what the test says, once, and notes what it is asked to clear.
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
            // A hypervisor rounds its bitmap up; what lies behind the block is nobody's page.
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
fn a_look_at_the_pending_pages_is_spread_over_them() {
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

/// Memory of which nobody has touched most, and that must not be looked at there.
struct Sparse {
    blocks: Vec<RamBlock>,
    touched: [BTreeSet<u64>; 2],
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
    fn what_nobody_touched_is_sent_as_zero_and_not_looked_at(
        touched in [prop::collection::btree_set(0..9000_u64, 0..60), prop::collection::btree_set(0..70_u64, 0..60)],
        wanted in prop_oneof![1..5000_u64, Just(u64::MAX)],
    ) {
        let sizes = [9000, 70];
        let blocks = ["low", "high"].into_iter().zip(sizes);
        let blocks = blocks.map(|(name, pages)| RamBlock { name: name.into(), len: pages * PAGE_SIZE }).collect();
        let (ram, mut log) = (Sparse { blocks, touched }, Log::default());
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

/// Memory in which nothing is zero, and that counts the pages looked at.
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

    /// A round's work is that of its dirty pages: each is looked at and sent once, and no window without one is cleared.
    #[test]
    fn clean_pages_are_neither_looked_at_nor_cleared_nor_sent(
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
fn one_page_goes_though_no_byte_is_wanted() {
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
