//! Sections in parts and their peers: an older release, a hostile peer, one with another order, and a reader without the section.
//! The streams are written by hand.

use std::time::Duration;

use crate::pair::flash::{FLASH, Flash, RECORD};
use crate::pair::guest::Load;
use crate::pair::run::Setup;
use crate::pair::world::World;
use crate::toy::{HEAD, RAM, full, load, saved};
use vmstate::VmState;
use vmstate::codec::{Outbox, Reader, Strictness};

use vmstate::dump::{Dump, Part};
use vmstate::error::{ErrorKind, Result};
use vmstate::schema::Description;
use vmstate::schema::json::Schema;
use vmstate::section::{IterativeSection, Record, Sections};

/// START of a flash of two blocks, with this number in the stream, name, instance and version.
fn start(id: u8, name: &str, instance: u8, version: u8) -> Vec<u8> {
    let header =
        [&[1, 0, 0, 0, id, name.len() as u8], name.as_bytes(), &[0, 0, 0, instance, 0, 0, 0, version]].concat();
    [&header[..], &[0, 0, 0, 2], &footer(id)].concat()
}

/// PART (2) or END (3) with these blocks.
fn part(kind: u8, id: u8, blocks: &[(u8, &[u8; 16])]) -> Vec<u8> {
    let blocks = blocks.iter().flat_map(|(block, bytes)| [&[0, 0, 0, *block][..], &bytes[..]].concat());
    [&[kind, 0, 0, 0, id][..], &blocks.collect::<Vec<_>>(), &[0xff; 4], &footer(id)].concat()
}

fn footer(id: u8) -> [u8; 5] {
    [0x7e, 0, 0, 0, id]
}

/// Guest memory of a machine without any: START, and PART and END.
fn ram() -> (&'static [u8], &'static [u8]) {
    RAM.split_at(RAM.len() - 36)
}

fn stream(parts: &[&[u8]]) -> Vec<u8> {
    let (start, rest) = ram();
    [HEAD, start, &parts.concat(), rest, b"\0"].concat()
}

#[derive(VmState, Clone, Debug, Default, PartialEq)]
#[vmstate(name = "dev")]
struct Dev {
    on: u8,
}

/// A machine of a release that had a flash of that version, or none.
fn release(version: Option<u32>, name: &str) -> Schema {
    static NEWER: Description = Description::undescribed("flash", 3, 3);
    static OLDER: Description = Description::undescribed("flash", 1, 1);
    let mut flash = Flash::new(2);
    let mut sections = Sections::new();
    sections.add(Dev::default()).unwrap();
    if let Some(version) = version {
        flash.describe([&OLDER, &FLASH, &NEWER][version as usize - 1]);
        sections.register_iterative(name, 0, flash).unwrap();
    }
    sections.schema(Some("toy")).unwrap()
}

#[test]
fn an_older_release_gets_its_name_and_version_or_nothing() {
    let send = |release: Schema| {
        let flash = Flash::new(2);
        flash.write(1, *b"abcdefghijklmnop");
        let mut sections = Sections::new();
        sections.register_iterative("memory", 0, flash.clone()).unwrap();
        sections.add(Dev { on: 7 }).unwrap();
        sections.add_alias("memory", "flash").unwrap();
        sections.save_for(Some(release));
        (saved(&mut sections), flash)
    };
    let (sent, flash) = send(release(Some(2), "flash"));
    let sent = sent.unwrap();
    assert!(sent.windows(18).any(|window| window == &start(2, "flash", 0, 2)[..18]), "{}", sent.escape_ascii());
    let there = Flash::new(2);
    let mut sections = Sections::new();
    sections.add_iterative(there.clone()).unwrap();
    sections.add(Dev::default()).unwrap();
    load(&sent, Strictness::Strict, &mut sections).unwrap();
    assert_eq!(there.blocks(), flash.blocks());

    for (release, reason) in [
        (release(None, ""), "memory/0: this section is not known there"),
        (release(Some(1), "flash"), "memory/0: its version there is 1; it is sent at 2 only"),
        (release(Some(3), "flash"), "memory/0: its newest version is 2, the oldest that loads there is 3"),
    ] {
        let (sent, flash) = send(release);
        let error = sent.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected);
        let text = error.to_string();
        assert!(text.starts_with("the release for which it is saved cannot have this machine: "), "{text}");
        assert!(text.contains(reason), "{text}");
        assert_eq!(flash.state(), (false, 0), "it was set up");
    }
}

/// QEMU sends the parts of several sections in turn, and any number of parts may be missing or empty.
#[test]
fn parts_of_two_sections_come_in_any_turn() {
    let (a, b, z) = (b"aaaaaaaaaaaaaaaa", b"bbbbbbbbbbbbbbbb", b"zzzzzzzzzzzzzzzz");
    let two = [start(2, "flash", 0, 2), start(3, "flash", 1, 2)].concat();
    for parts in [
        vec![
            part(2, 2, &[(0, z)]),
            part(2, 3, &[(1, z)]),
            part(2, 2, &[(0, a)]),
            part(3, 2, &[]),
            part(3, 3, &[(1, b)]),
        ],
        vec![part(2, 3, &[(1, b)]), part(3, 3, &[]), part(2, 2, &[]), part(2, 2, &[(0, z)]), part(3, 2, &[(0, a)])],
        vec![part(3, 3, &[(1, z), (1, b)]), part(3, 2, &[(0, a)])],
    ] {
        let flashes = [Flash::new(2), Flash::new(2)];
        let mut sections = Sections::new();
        for flash in &flashes {
            sections.add_iterative(flash.clone()).unwrap();
        }
        load(&stream(&[&two, &parts.concat()]), Strictness::Strict, &mut sections).unwrap();
        assert_eq!((flashes[0].blocks()[0], flashes[1].blocks()[1]), (*a, *b));
        assert_eq!((flashes[0].blocks()[1], flashes[1].blocks()[0]), ([0; 16], [0; 16]));
    }
}

/// After a section that came whole, its number belongs to no section in parts.
#[test]
fn a_part_of_a_section_that_came_whole_is_refused() {
    let sections = || {
        let mut sections = Sections::new();
        sections.add(Dev::default()).unwrap();
        sections.add_iterative(Flash::new(2)).unwrap();
        sections
    };
    let whole = full(3, "dev", 0, 7);
    let flash = [start(2, "flash", 0, 2), part(3, 2, &[])].concat();
    for kind in [2, 3] {
        let bytes = stream(&[&flash, &whole, &part(kind, 3, &[])]);
        for strictness in [Strictness::Strict, Strictness::QemuCompatible] {
            let error = load(&bytes, strictness, &mut sections()).unwrap_err();
            let at = HEAD.len() + ram().0.len() + flash.len() + whole.len();
            assert_eq!(error.to_string(), format!("at {at:#x}: part of section number 3, which has not started"));
        }
    }
}

/// A section whose records contain their own length.
struct Counted(usize);

impl IterativeSection for Counted {
    fn description(&self) -> &'static Description {
        static COUNTED: Description = Description::undescribed("counted", 1, 1);
        &COUNTED
    }

    fn setup(&mut self, _out: &mut Outbox) -> Result<()> {
        Ok(())
    }

    fn pending(&mut self) -> u64 {
        0
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    fn iterate(&mut self, _out: &mut Outbox, _budget: u64) -> Result<bool> {
        Ok(true)
    }

    fn complete(&mut self, _out: &mut Outbox) -> Result<()> {
        Ok(())
    }

    fn load_start(&mut self, _input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        Ok(Record::Last)
    }

    fn load_part(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        let length = input.u32()? as usize;
        self.0 += input.take(length)?.len();
        Ok(Record::Last)
    }

    fn load_end(&mut self, _input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        Ok(Record::Last)
    }
}

/// The source decides the length of a record, but the destination does not buffer one that exceeds the limit.
#[test]
fn a_record_is_not_waited_for_without_end() {
    let begins = b"\x01\0\0\0\x02\x07counted\0\0\0\0\0\0\0\x01\x7e\0\0\0\x02\x02\0\0\0\x02";
    let try_to = |length: u32, body: &[u8]| {
        let mut sections = Sections::new();
        sections.add_iterative(Counted(0)).unwrap();
        let end = [&footer(2)[..], b"\x03\0\0\0\x02", &footer(2)].concat();
        load(&stream(&[begins, &length.to_be_bytes(), body, &end]), Strictness::Strict, &mut sections)
    };
    try_to(3, b"abc").unwrap();
    let error = try_to(u32::MAX, &vec![0; 32 << 20]).unwrap_err();
    assert_eq!((error.kind(), error.section()), (ErrorKind::Malformed, Some("counted/0")));
    assert!(error.to_string().ends_with("longer than 33554432 bytes"), "{error}");
}

/// For each part, its kind, its section and the length of its body; with a schema that only has its name, and without one.
#[test]
fn a_dump_shows_the_parts_of_a_section_that_nobody_described() {
    let block = b"abcdefghijklmnop";
    let parts = [start(2, "flash", 0, 2), part(2, 2, &[(0, block), (1, block)]), part(3, 2, &[])];
    let bytes = [&stream(&[&parts.concat()])[..], b"\x06\0\0\0\x0e{\"devices\":[]}"].concat();
    for dump in [Dump::read(&bytes), Dump::read_with(&bytes, &release(Some(2), "flash"))] {
        assert!(dump.damage.is_none(), "{:?}", dump.damage);
        let found = dump.sections().filter(|section| section.header.idstr == "flash");
        let found: Vec<_> = found.map(|section| (section.part, section.header.version, section.size)).collect();
        assert_eq!(found, [(Part::Start, 2, 4), (Part::Part, 2, 2 * RECORD + 4), (Part::End, 2, 4)]);
        let places: Vec<_> = dump.sections().map(|section| bytes[section.offset as usize]).collect();
        assert_eq!(places, [1, 1, 2, 3, 2, 3]);
    }
}

/// Two devices on a wire of 2 MB/s, of 6000 and 3000 blocks of 20 bytes, written 300,000 and 30,000 times a second. A round that takes
/// `t` seconds leaves `6000 * (1 - exp(-50 t))` and `3000 * (1 - exp(-10 t))` blocks, which the pause would have to send.
#[test]
fn what_a_second_section_has_pending_is_in_the_forecast() {
    let ms = Duration::from_millis(1);
    let mut setup = Setup::with(&[("main.ram", 1)], World::new(None, Some(2e6), ms), Load::default());
    for (blocks, writes) in [(6000, 300_000.0), (3000, 30_000.0)] {
        setup.source_flashes.push(Flash::new(blocks).written_by(&setup.source.guest, writes));
        setup.destination_flashes.push(Flash::new(blocks));
    }
    setup.source_options.switch_over_cost = Duration::ZERO;
    setup.source_control.set_downtime_limit(10 * ms);
    setup.set_max_rounds(Some(6));
    let control = setup.source_control.clone();
    let outcome = setup.run();
    let error = outcome.departure.error.unwrap().to_string();
    assert!(error.starts_with("gave up: the limit of rounds"), "{error}");
    // A round and its answer, repeated until the number no longer changes. Then the pause: those blocks, and two round trips.
    let seconds = |blocks: f64| blocks * RECORD as f64 / 2e6;
    let left = |t: f64| (6000.0 * (1.0 - (-50.0 * t).exp()), 3000.0 * (1.0 - (-10.0 * t).exp()));
    let (first, second) = (0..50).fold((6000.0, 3000.0), |(first, second), _| left(seconds(first + second) + 0.002));
    let (alone, both) = (seconds(first) + 0.004, seconds(first + second) + 0.004);
    let expected = control.progress().expected_downtime.unwrap().as_secs_f64();
    assert!(
        (both * 0.95..both * 1.05).contains(&expected),
        "{expected} s, of both {both} s, of the first alone {alone} s"
    );
    assert!(alone < both * 0.9);
}
