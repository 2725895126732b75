//! RAM records, valid and hostile, and their effect on a source.
#![cfg(feature = "engine")]

#[cfg(feature = "vm-memory")]
mod guest_memory;
mod packets;
mod sender;
mod xbzrle;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;
use vmstate::codec::{Limits, Outbox, Piece, Reader, Strictness};
use vmstate::error::{Error, ErrorKind, Result};
use vmstate::ram::{DirtyLog, GuestRam, PAGE_SIZE, PageCount, RamBlock};
use vmstate::raw::ram::{PageSet, RamReceiver, RamRecord, RamSender};

/// Memory that records writes, and must never be accessed outside of its blocks.
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

/// Memory that also adopts blocks called `rom…`, of 8 KiB together at most, and refuses such a block that does not fit.
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

/// The bytes that `out` sends.
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
    // Whether page channels exist is checked by the reader of the section.
    assert_eq!(record(b"\0\0\0\0\0\0\x02\0"), RamRecord::Flush);
    assert_eq!(record(b"\0\0\0\0\0\0\0\x10"), RamRecord::End);
    let written = [(0, 0x2000, 0), (0, 0x1000, 7), (1, 0, 0), (1, 0, 0), (0, 0x1000, 9), (0, 0x1000, 1)];
    assert_eq!(*ram.writes.lock().unwrap(), written);
    assert_eq!((receiver.received().normal, receiver.received().zero), (3, 3));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// However the stream is divided, the pages are written in the order of the records, as if read one by one.
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
fn pages_before_a_bad_record_are_in_memory() {
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
        // A flush is a record of its own: it has neither a page nor CONTINUE.
        (b"\0\0\0\0\0\0\x12\0", "flags 0x200"),
        (b"\0\0\0\0\0\0\x02\x20", "flags 0x220"),
        (b"\0\0\0\0\0\0\0\x80", "flag HOOK"),
    ];
    for (bytes, expected) in cases {
        let error = refusal(bytes);
        assert!(error.to_string().contains(expected), "{bytes:x?}: {error}");
        assert!(matches!(error.kind(), ErrorKind::Malformed | ErrorKind::Incompatible), "{error:?}");
    }
    // A name of the greatest length, with its last byte missing.
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

/// The list has the machine's own blocks last, which shows that the order of the list does not determine the index of a local
/// block.
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
