//! A guest in a file in which each page has its place, QEMU's mapped-ram: the bytes are written by hand from the format
//! (docs/devel/migration/mapped-ram.rst, migration/ram.c).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmstate::channel::FileChannel;
use vmstate::codec::{Limits, Strictness};
use vmstate::error::{Error, ErrorKind, Result};
use vmstate::migrate::snapshot::{self, Beside, Saving};
use vmstate::migrate::{Control, Peer};
use vmstate::ram::{DirtyLog, GuestRam};
use vmstate::section::Sections;

use super::format::Ram;
use super::toy::Tape;

const MIB: u64 = 1 << 20;
/// Magic, version, configuration of machine "toy" with the capability "mapped-ram"; START 1 "ram" instance 0 version 4; 12 KiB with
/// MEM_SIZE; block "low" of 8 KiB and its header: version 1, pages of 4 KiB, bitmap at 128, pages at 1 MiB.
const HEAD: &[u8] = b"QEVM\0\0\0\x03\x07\0\0\0\x03toy\
    \x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0amapped-ram\
    \x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04\
    \0\0\0\0\0\0\x30\x04\
    \x03low\0\0\0\0\0\0\x20\0\
    \0\0\0\x01\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\x80\0\0\0\0\0\x10\0\0";
/// After the pages of "low", at 0x102000: block "high" of 4 KiB and its header, bitmap at 0x102029, pages at 2 MiB.
const HIGH: &[u8] = b"\x04high\0\0\0\0\0\0\x10\0\
    \0\0\0\x01\0\0\0\0\0\0\x10\0\0\0\0\0\0\x10\x20\x29\0\0\0\0\0\x20\0\0";
/// After the pages of "high", at 0x201000: EOS and footer; END 1, EOS and footer; the end.
const TAIL: &[u8] = b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01\x03\0\0\0\x01\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01\0";
/// Offsets of fields of the first header.
const VERSION: u64 = 100;
const PAGE_SIZE: u64 = 104;
const BITMAP: u64 = 112;
const PAGES: u64 = 120;

fn ram() -> Ram {
    Ram::new(&[("low", 8192), ("high", 4096)])
}

/// Page 1 of "low" has contents; so does the place of page 0, but they are stale.
fn by_hand(path: &Path) -> File {
    assert_eq!(HEAD.len(), 128);
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(2 * MIB + 0x1000).unwrap();
    for (at, bytes) in
        [(0, HEAD), (128, &[2]), (MIB, &[9; 4096]), (MIB + 4096, &[7; 4096]), (0x10_2000, HIGH), (0x20_1000, TAIL)]
    {
        file.write_all_at(bytes, at).unwrap();
    }
    file
}

fn load(path: &Path, ram: &Ram) -> Result<()> {
    let mut channel = FileChannel::open(path).unwrap();
    snapshot::load(&mut channel, "toy", Strictness::Strict, Limits::default(), &mut Sections::new(), ram)
}

fn bytes(ram: &Ram, block: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.read(block, 0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_file_written_by_hand_loads_and_a_page_whose_bit_is_clear_is_zero() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    by_hand(&path);
    let ram = ram();
    ram.write(0, 0, &[5; 4096]).unwrap();
    ram.write(1, 0, &[5; 4096]).unwrap();
    load(&path, &ram).unwrap();
    assert!(bytes(&ram, 0, 8192) == [[0; 4096], [7; 4096]].concat());
    assert!(bytes(&ram, 1, 4096) == [0; 4096]);
}

/// The guest writes while it is saved: page 1 of "low" is 3 at first, then 8, then 7 when the guest is paused; page 0 is 9, then
/// zero.
struct Writes<'a> {
    ram: &'a Ram,
    syncs: usize,
}

impl DirtyLog for Writes<'_> {
    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    fn sync(&mut self, block: usize, words: &mut [u64]) -> Result<()> {
        if block == 0 {
            self.syncs += 1;
            // The first write is before the first round.
            let written = [(0, 9, 3), (3, 0, 8), (2, 0, 7)].get(self.syncs - 1).copied();
            if let Some((dirty, first, second)) = written {
                self.ram.write(0, 0, &[[first; 4096], [second; 4096]].concat())?;
                words[0] |= dirty;
            }
        }
        Ok(())
    }

    fn clear(&mut self, _block: usize, _first: u64, _count: u64) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}
}

#[test]
fn a_running_guest_is_saved_as_it_is_when_paused() {
    let directory = tempfile::tempdir().unwrap();
    let [path, expected] = ["guest", "expected"].map(|name| directory.path().join(name));
    let ram = ram();
    let mut channel = FileChannel::create(&path).unwrap();
    let (mut log, mut sections, mut pauses) = (Writes { ram: &ram, syncs: 0 }, Sections::new(), 0);
    let (channel, sections) = (&mut channel, &mut sections);
    let saving = Saving {
        channel,
        machine_type: "toy",
        sections,
        ram: &ram,
        log: &mut log,
        reader: Peer::Vmstate,
        threads: None,
        beside: None,
    };
    let mut pause = || {
        pauses += 1;
        Ok(())
    };
    snapshot::save_in_place(saving, &Control::default(), &mut pause).unwrap();
    assert_eq!((pauses, log.syncs), (1, 3));
    by_hand(&expected);
    let (written, expected) = (fs::read(&path).unwrap(), fs::read(&expected).unwrap());
    // There is no PART before the END, since pages with places need no record; after the end comes the description, which is
    // empty.
    assert!(written[..expected.len()] == expected);
    let again = self::ram();
    load(&path, &again).unwrap();
    assert!((0..2).all(|block| bytes(&again, block, 4096) == bytes(&ram, block, 4096)));
}

/// A disk of 8 blocks of 1 MiB, of which the guest writes one in each round, and its copy.
#[derive(Default)]
struct Blocks {
    disk: [u64; 8],
    copy: [u64; 8],
    written: BTreeSet<usize>,
    pending: BTreeSet<usize>,
    copied: u64,
    calls: Vec<&'static str>,
    fails: bool,
}

impl Blocks {
    fn write(&mut self, block: usize) {
        self.disk[block] += 1;
        self.written.insert(block);
    }

    /// True if nothing is left.
    fn copy(&mut self) -> bool {
        if let Some(block) = self.pending.pop_first() {
            self.copy[block] = self.disk[block];
            self.copied += MIB;
        }
        self.pending.is_empty()
    }
}

struct Disk<'a>(&'a RefCell<Blocks>);

impl Beside for Disk<'_> {
    fn sync(&mut self) -> Result<()> {
        let blocks = &mut *self.0.borrow_mut();
        blocks.calls.push("sync");
        blocks.pending.append(&mut blocks.written);
        Ok(())
    }

    fn iterate(&mut self, budget: u64) -> Result<bool> {
        assert!(budget > 0);
        let blocks = &mut *self.0.borrow_mut();
        if blocks.fails {
            return Err(Error::new(ErrorKind::Io, "the disk failed"));
        }
        blocks.write(7);
        Ok(blocks.copy())
    }

    fn complete(&mut self) -> Result<()> {
        let blocks = &mut *self.0.borrow_mut();
        blocks.calls.push("complete");
        while !blocks.copy() {}
        Ok(())
    }

    fn pending(&self) -> u64 {
        let blocks = self.0.borrow();
        blocks.pending.union(&blocks.written).count() as u64 * MIB
    }

    fn copied(&self) -> u64 {
        self.0.borrow().copied
    }
}

#[test]
fn a_disk_is_copied_beside_the_file_as_it_is_when_the_guest_is_paused() {
    for (limit, fails) in [(None, false), (NonZeroU64::new(40 * MIB), false), (None, true)] {
        let directory = tempfile::tempdir().unwrap();
        let (ram, blocks) = (ram(), RefCell::new(Blocks { fails, ..Blocks::default() }));
        (0..8).for_each(|block| blocks.borrow_mut().write(block));
        let control = Control::default();
        let mut parameters = control.parameters();
        parameters.max_bandwidth = limit;
        control.set_parameters(parameters).unwrap();
        let saving = Saving {
            channel: &mut FileChannel::create(directory.path().join("guest")).unwrap(),
            machine_type: "toy",
            sections: &mut Sections::new(),
            ram: &ram,
            log: &mut Writes { ram: &ram, syncs: 0 },
            reader: Peer::Vmstate,
            threads: None,
            beside: Some(&mut Disk(&blocks)),
        };
        // The last writes of a guest that stops.
        let mut pause = || {
            let blocks = &mut *blocks.borrow_mut();
            blocks.calls.push("pause");
            [0, 3, 7].into_iter().for_each(|block| blocks.write(block));
            Ok(())
        };
        let saved = snapshot::save_in_place(saving, &control, &mut pause);
        let blocks = blocks.into_inner();
        if fails {
            assert_eq!(saved.unwrap_err().to_string(), "the disk failed");
            assert_eq!(blocks.calls, ["sync"], "the guest runs on");
            continue;
        }
        saved.unwrap();
        assert_eq!(blocks.copy, blocks.disk);
        assert!(blocks.calls.ends_with(&["pause", "sync", "complete"]), "{:?}", blocks.calls);
        let progress = control.progress();
        assert_eq!(blocks.calls.iter().filter(|call| **call == "sync").count() as u32, progress.rounds + 2);
        assert_eq!(progress.bytes, progress.normal_pages * 4096 + blocks.copied);
        assert_eq!(progress.remaining_section_bytes, 0);
    }
}

#[test]
fn a_header_that_cannot_be_is_refused_before_memory_changes() {
    let directory = tempfile::tempdir().unwrap();
    let cases: [(u64, &[u8], &str); 12] = [
        (VERSION, &[0, 0, 0, 2], "its mapped-ram header has version 2, not 1"),
        (VERSION, &[0, 0, 0, 0], "its mapped-ram header has version 0, not 1"),
        (PAGE_SIZE + 5, &[2], "its pages have 135168 bytes in the file"),
        (PAGES + 6, &[1], "its pages begin at 0x100100, which is no whole page"),
        (PAGES, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xf0], "is not between its header and its pages"),
        (BITMAP + 7, &[0x7f], "its bitmap at 0x7f is not between its header and its pages"),
        (BITMAP, &[0xff; 8], "is not between its header and its pages"),
        (BITMAP + 5, &[0x10, 0, 0], "its bitmap at 0x100000 is not between its header"),
        (PAGES + 5, &[0, 0, 0], "is not between its header and its pages at 0x0"),
        (PAGES + 4, &[0x40, 0, 0], "and the file at 0x201020: it was not written whole"),
        // This place overlaps the list's next entry, so that another entry is read there.
        (PAGES + 5, &[0x10, 0x10], "ram/0"),
        (128, &[6], "the bitmap has pages behind the block's last one"),
    ];
    for (number, (at, bytes_there, why)) in cases.into_iter().enumerate() {
        let path = directory.path().join(number.to_string());
        by_hand(&path).write_all_at(bytes_there, at).unwrap();
        let ram = ram();
        ram.write(0, 0, &[5; 8192]).unwrap();
        let error = load(&path, &ram).unwrap_err().to_string();
        assert!(error.contains(why), "{number}: {error}");
        assert!(bytes(&ram, 0, 8192) == [5; 8192], "{number}");
    }
}

#[test]
fn a_file_that_was_cut_is_refused_before_memory_changes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    let whole = by_hand(&path).metadata().unwrap().len();
    for len in
        (0..128).chain([128, 129, MIB, MIB + 4096, 0x10_2000, 0x10_2030, 2 * MIB, 0x20_1000]).chain(0x20_1000..whole)
    {
        File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        let ram = ram();
        ram.write(0, 0, &[5; 8192]).unwrap();
        load(&path, &ram).unwrap_err();
        // Everything but the end is present: the memory is complete.
        assert!(len + 6 >= whole || bytes(&ram, 0, 8192) == [5; 8192], "{len:#x}");
        fs::remove_file(&path).unwrap();
        by_hand(&path);
    }
}

#[cfg(feature = "tools")]
#[test]
fn a_file_is_inspected_with_its_pages_by_block() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    by_hand(&path);
    let dump = vmstate::dump::Dump::read(&fs::read(&path).unwrap());
    assert!(dump.damage.is_none(), "{:?}", dump.damage);
    let blocks: Vec<_> = dump.ram.blocks().iter().map(|b| (b.name.as_str(), b.pages.normal, b.pages.zero)).collect();
    assert_eq!(blocks, [("low", 1, 1), ("high", 0, 1)]);
}

#[test]
fn a_pipe_has_no_places() {
    let mut sections = Sections::new();
    let ram = ram();
    let mut tape = Tape::of(HEAD);
    let error =
        snapshot::load(&mut tape, "toy", Strictness::Strict, Limits::default(), &mut sections, &ram).unwrap_err();
    assert!(error.to_string().contains("capability mapped-ram), and this is a connection or a pipe"), "{error}");
    let mut log = Writes { ram: &ram, syncs: 0 };
    let saving = Saving {
        channel: &mut tape,
        machine_type: "toy",
        sections: &mut sections,
        ram: &ram,
        log: &mut log,
        reader: Peer::Vmstate,
        threads: None,
        beside: None,
    };
    let error = snapshot::save_in_place(saving, &Control::default(), &mut || Ok(())).unwrap_err();
    assert!(error.to_string().contains("pages have fixed places only in a file"), "{error}");
}
