//! Sections in parts on the wire: the stream as the format defines it, and the message of each refusal.

use std::sync::{Arc, Mutex, RwLock};

use crate::pair::flash::Flash;
use crate::toy::{HEAD, RAM, full, load, saved};
use vmstate::VmState;
use vmstate::codec::{Outbox, Reader, Strictness};
use vmstate::error::{Error, ErrorKind, Result};
use vmstate::schema::Description;
use vmstate::section::{IterativeSection, Record, Sections};

#[derive(VmState, Clone, Debug, Default, PartialEq)]
#[vmstate(name = "dev")]
struct Dev {
    on: u8,
}

/// RAM of a machine without memory, in its three pieces.
fn ram() -> (&'static [u8], &'static [u8], &'static [u8]) {
    let (start, rest) = RAM.split_at(RAM.len() - 36);
    let (part, end) = rest.split_at(18);
    assert!(part.starts_with(b"\x02\0\0\0\x01") && end.starts_with(b"\x03\0\0\0\x01"));
    (start, part, end)
}

const START: &[u8] = b"\x01\0\0\0\x02\x05flash\0\0\0\0\0\0\0\x02\0\0\0\x02\x7e\0\0\0\x02";
const PART: &[u8] = b"\x02\0\0\0\x02\
    \0\0\0\0ABCDEFGHIJKLMNOP\
    \0\0\0\x01abcdefghijklmnop\
    \xff\xff\xff\xff\x7e\0\0\0\x02";
const END: &[u8] = b"\x03\0\0\0\x02\xff\xff\xff\xff\x7e\0\0\0\x02";

fn stream(parts: &[&[u8]]) -> Vec<u8> {
    let (start, part, end) = ram();
    let mut stream = [HEAD, start].concat();
    parts.iter().for_each(|bytes| stream.extend_from_slice(bytes));
    stream.extend_from_slice(&[part, end].concat());
    stream
}

fn loaded(stream: &[u8], strictness: Strictness) -> Result<Flash> {
    let flash = Flash::new(2);
    let mut sections = Sections::new();
    sections.add_iterative(flash.clone()).unwrap();
    sections.add(Dev::default()).unwrap().optional();
    load(stream, strictness, &mut sections)?;
    Ok(flash)
}

#[test]
fn the_stream_is_what_is_written_by_hand() {
    let flash = Flash::new(2);
    flash.write(0, *b"ABCDEFGHIJKLMNOP");
    flash.write(1, *b"abcdefghijklmnop");
    let mut sections = Sections::new();
    // A section that is sent whole comes after those in parts, wherever it is registered.
    sections.add(Dev { on: 7 }).unwrap();
    sections.add_iterative(flash.clone()).unwrap();
    let bytes = saved(&mut sections).unwrap();
    let (start, part, end) = ram();
    let expected = [HEAD, start, START, part, PART, end, END, &full(3, "dev", 0, 7), b"\0\x06"].concat();
    assert_eq!(bytes[..expected.len()], expected[..]);
    assert_eq!(flash.state(), (false, 1), "recording, cleaned up");

    let there = loaded(&bytes, Strictness::Strict).unwrap();
    assert_eq!(there.blocks(), flash.blocks());
    assert_eq!(there.state().1, 1, "cleaned up");
}

/// QEMU treats FULL and START alike.
#[test]
fn qemu_takes_what_a_strict_load_refuses() {
    let whole = [b"\x04", &START[1..]].concat();
    let device = [b"\x01", &full(3, "dev", 0, 7)[1..]].concat();
    let other = [START, PART, END].concat();
    let rows: [(&str, Vec<u8>, &str); 5] = [
        ("whole", stream(&[&whole, PART, END]), "flash/0 at 0x36: came whole; here it comes in parts"),
        ("a device in parts", stream(&[&device, &other]), "dev/0 at 0x36: came in parts; here it comes whole"),
        ("twice", stream(&[START, START, PART, END]), "flash/0 at 0x52: came twice"),
        ("a part after its end", stream(&[START, END, PART]), "flash/0 at 0x60: a part after the last one"),
        ("its end twice", stream(&[START, PART, END, END]), "flash/0 at 0x96: its last part came twice"),
    ];
    for (what, mut bytes, refusal) in rows {
        bytes.push(0);
        assert!(loaded(&bytes, Strictness::QemuCompatible).is_ok(), "{what}");
        assert_eq!(loaded(&bytes, Strictness::Strict).unwrap_err().to_string(), refusal, "{what}");
    }
    // In both modes, the destination decides which sections it requires.
    let none = stream(&[&[]]);
    let error = loaded(&[&none[..], b"\0"].concat(), Strictness::Strict).unwrap_err();
    assert_eq!(error.to_string(), "required sections did not arrive: flash/0");
    loaded(&[&none[..], b"\0"].concat(), Strictness::QemuCompatible).unwrap();
}

#[test]
fn everything_else_is_refused_by_name_in_both() {
    let changed = |from: &[u8], to: &[u8]| {
        let bytes = stream(&[START, PART, END]);
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        [&bytes[..at], to, &bytes[at + from.len()..]].concat()
    };
    let number = b"\x02\x05flash";
    let rows: [(Vec<u8>, ErrorKind, &str); 11] = [
        (
            changed(b"flash\0\0\0\0", b"flash\0\0\0\x01"),
            ErrorKind::Incompatible,
            "flash/1 at 0x49: this machine has no such instance: ",
        ),
        (
            changed(b"\x05flash", b"\x05flosh"),
            ErrorKind::Incompatible,
            "flosh/0 at 0x49: this machine has no such section: ",
        ),
        (
            changed(b"\0\0\0\x02\0\0\0\x02\x7e", b"\0\0\0\x03\0\0\0\x02\x7e"),
            ErrorKind::Incompatible,
            "flash/0 at 0x36: version 3 is newer than 2",
        ),
        (
            changed(b"\0\0\0\x02\0\0\0\x02\x7e", b"\0\0\0\0\0\0\0\x02\x7e"),
            ErrorKind::Incompatible,
            "flash/0 at 0x36: version 0 is older than 1",
        ),
        (
            changed(b"\0\0\0\x02\x7e", b"\0\0\0\x03\x7e"),
            ErrorKind::Malformed,
            "flash/0 at 0x4d: the source has 3 blocks, this machine 2",
        ),
        (changed(b"\0\0\0\x01abcd", b"\0\0\0\x02abcd"), ErrorKind::Malformed, "flash/0 at 0x7f: there is no block 2"),
        (
            changed(b"mnop\xff\xff\xff\xff\x7e\0\0\0\x02", b"mnop\xff\xff\xff\xff\x7e\0\0\0\x03"),
            ErrorKind::Malformed,
            "flash/0 at 0x83: footer of section number 2 expected, got number 3",
        ),
        (
            changed(b"mnop\xff\xff\xff\xff\x7e", b"mnop\xff\xff\xff\xff\x7f"),
            ErrorKind::Malformed,
            "flash/0 at 0x83: the section's footer 0x7e expected",
        ),
        (stream(&[PART, START, END]), ErrorKind::Malformed, "at 0x36: part of section number 2, which has not started"),
        (stream(&[END, START]), ErrorKind::Malformed, "at 0x36: part of section number 2, which has not started"),
        (stream(&[START, PART]), ErrorKind::Malformed, "flash/0: its last part did not arrive"),
    ];
    assert!(START.windows(number.len()).any(|window| window == number));
    for (mut bytes, kind, text) in rows {
        bytes.push(0);
        for strictness in [Strictness::Strict, Strictness::QemuCompatible] {
            let error = loaded(&bytes, strictness).map(|_| text).unwrap_err();
            assert!(error.to_string().starts_with(text), "{error} is not {text}");
            assert_eq!(error.kind(), kind, "{error}");
        }
    }
    // The number of another section, here of guest memory.
    let taken = changed(number, b"\x01\x05flash");
    let error = loaded(&taken, Strictness::Strict).unwrap_err();
    assert_eq!(error.to_string(), "flash/0 at 0x36: has number 1, as ram/0 has");
}

/// The parts begin only after every required section has begun.
#[test]
fn a_required_section_is_missed_at_the_first_part_already() {
    let mut sections = Sections::new();
    sections.add_iterative(Flash::new(2)).unwrap();
    let (start, part, _) = ram();
    let error = load(&[HEAD, start, part, b"?"].concat(), Strictness::Strict, &mut sections).unwrap_err();
    assert_eq!(error.to_string(), "required sections did not arrive: flash/0");
}

/// A section whose START is all of it.
#[derive(Clone, Debug, Default)]
struct Empty(Arc<Mutex<u32>>);

impl IterativeSection for Empty {
    fn description(&self) -> &'static Description {
        static EMPTY: Description = Description::undescribed("empty", 1, 1);
        &EMPTY
    }

    fn setup(&mut self, _: &mut Outbox) -> Result<()> {
        unreachable!("not sent")
    }

    fn pending(&mut self) -> u64 {
        unreachable!("not sent")
    }

    fn sync(&mut self) -> Result<()> {
        unreachable!("not sent")
    }

    fn iterate(&mut self, _: &mut Outbox, _: u64) -> Result<bool> {
        unreachable!("not sent")
    }

    fn complete(&mut self, _: &mut Outbox) -> Result<()> {
        unreachable!("not sent")
    }

    fn load_start(&mut self, input: &mut Reader<'_>, _: u32) -> Result<Record> {
        *self.0.lock().unwrap() += u32::from(input.u8()?);
        Ok(Record::Whole)
    }

    fn load_part(&mut self, _: &mut Reader<'_>, _: u32) -> Result<Record> {
        unreachable!("no part belongs to the section")
    }
}

/// QEMU's `dirty-bitmap` of a guest without bitmaps is such a section.
#[test]
fn a_section_may_end_with_its_start() {
    const WHOLE: &[u8] = b"\x01\0\0\0\x02\x05empty\0\0\0\0\0\0\0\x01\x05\x7e\0\0\0\x02";
    let loaded = |parts: &[&[u8]]| {
        let empty = Empty::default();
        let mut sections = Sections::new();
        sections.add_iterative(empty.clone()).unwrap();
        let stream = [&stream(parts)[..], b"\0"].concat();
        load(&stream, Strictness::Strict, &mut sections).map(|_| *empty.0.lock().unwrap())
    };
    assert_eq!(loaded(&[WHOLE]).unwrap(), 5);
    let refused = |parts: &[&[u8]]| loaded(parts).unwrap_err().to_string();
    assert_eq!(refused(&[WHOLE, WHOLE]), "empty/0 at 0x4f: came twice");
    assert_eq!(refused(&[WHOLE, PART]), "at 0x4f: part of section number 2, which has not started");
    assert_eq!(refused(&[WHOLE, END]), "at 0x4f: part of section number 2, which has not started");
    assert_eq!(refused(&[]), "required sections did not arrive: empty/0");
}

#[test]
fn each_cut_is_the_end_of_a_file_and_no_other_error() {
    let bytes = [&stream(&[START, PART, END])[..], b"\0"].concat();
    loaded(&bytes, Strictness::Strict).unwrap();
    for length in 0..bytes.len() {
        let error = loaded(&bytes[..length], Strictness::Strict).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{length}: {error}");
    }
}

#[test]
fn older_names_numbers_and_versions_load_and_an_optional_one_may_be_missing() {
    let flash = Flash::new(2);
    let mut sections = Sections::new();
    sections.register_iterative("memory", 3, flash.clone()).unwrap();
    sections.add_alias("memory", "flash").unwrap();
    let mut bytes = stream(&[START, PART, END]);
    bytes.push(0);
    let at = bytes.windows(9).position(|window| window == b"flash\0\0\0\0").unwrap();
    bytes[at + 8] = 3;
    bytes[at + 12] = 1;
    load(&bytes, Strictness::Strict, &mut sections).unwrap();
    assert_eq!(flash.blocks()[1], *b"abcdefghijklmnop");

    let mut sections = Sections::new();
    sections.add_iterative(Flash::new(2)).unwrap().optional();
    load(&[HEAD, RAM, b"\0"].concat(), Strictness::Strict, &mut sections).unwrap();
}

#[test]
fn a_name_is_one_sections_whole_or_in_parts() {
    let mut sections = Sections::new();
    sections.add_iterative(Flash::new(1)).unwrap();
    assert_eq!(sections.add_iterative(Flash::new(1)).unwrap().instance(), 1);
    let error = sections.register("flash", 1, Dev::default()).unwrap_err();
    assert!(error.to_string().contains("registered twice"), "{error}");
    assert!(sections.in_order().is_empty(), "they are not sent whole");
}

#[test]
fn each_form_is_the_device() {
    let plain = Flash::new(2);
    plain.write(1, *b"abcdefghijklmnop");
    let expected = {
        let mut sections = Sections::new();
        sections.add_iterative(plain.clone()).unwrap();
        saved(&mut sections).unwrap()
    };
    let mut kept = plain.clone();
    let mut forms: Vec<Sections<'_>> = (0..5).map(|_| Sections::new()).collect();
    forms[0].add_iterative(&mut kept).unwrap();
    forms[1].add_iterative(Box::new(plain.clone()) as Box<dyn IterativeSection + Send>).unwrap();
    forms[2].add_iterative(Arc::new(Mutex::new(plain.clone())) as Arc<Mutex<dyn IterativeSection + Send>>).unwrap();
    forms[3].add_iterative(Arc::new(RwLock::new(plain.clone()))).unwrap();
    let there = Flash::new(2);
    forms[4].add_iterative(Arc::new(Mutex::new(there.clone()))).unwrap();
    load(&expected, Strictness::Strict, &mut forms[4]).unwrap();
    assert_eq!(there.blocks(), plain.blocks());
    forms.pop();
    for sections in &mut forms {
        assert_eq!(saved(sections).unwrap(), expected);
    }
    assert_eq!(plain.state(), (false, 5));
}

/// The mistake of the section's author.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    NeverEnds,
    ReadsNothing,
    RefusesSetup,
    RefusesEnd,
}

struct Odd(Wrong, Arc<Mutex<u32>>);

impl IterativeSection for Odd {
    fn description(&self) -> &'static Description {
        static ODD: Description = Description::undescribed("odd", 1, 1);
        &ODD
    }

    fn setup(&mut self, _out: &mut Outbox) -> Result<()> {
        match self.0 {
            Wrong::RefusesSetup => Err(Error::new(ErrorKind::Rejected, "not now")),
            _ => Ok(()),
        }
    }

    fn pending(&mut self) -> u64 {
        0
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    fn iterate(&mut self, _out: &mut Outbox, _budget: u64) -> Result<bool> {
        Ok(self.0 != Wrong::NeverEnds)
    }

    fn complete(&mut self, _out: &mut Outbox) -> Result<()> {
        Ok(())
    }

    fn load_start(&mut self, _input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        Ok(Record::Last)
    }

    fn load_part(&mut self, _input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        Ok(if self.0 == Wrong::ReadsNothing { Record::More } else { Record::Last })
    }

    fn load_end(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        match self.0 {
            Wrong::RefusesEnd => Err(input.malformed("half of it is missing")),
            _ => Ok(Record::Last),
        }
    }

    fn cleanup(&mut self) {
        *self.1.lock().unwrap() += 1;
    }
}

#[test]
fn an_authors_mistake_is_an_error_and_no_hang() {
    let of = |wrong| {
        let cleanups = Arc::new(Mutex::new(0));
        let mut sections = Sections::new();
        sections.add_iterative(Odd(wrong, Arc::clone(&cleanups))).unwrap();
        (sections, cleanups)
    };
    let (mut good, _) = of(Wrong::RefusesEnd);
    let bytes = saved(&mut good).unwrap();
    for (wrong, saves, text) in [
        (Wrong::NeverEnds, true, "odd/0: reports that more is left to be sent, but appends nothing"),
        (Wrong::RefusesSetup, true, "odd/0: not now"),
        (Wrong::ReadsNothing, false, "odd/0 at 0x63: a record without bytes was read"),
        (Wrong::RefusesEnd, false, "odd/0 at 0x7f: half of it is missing"),
    ] {
        let (mut sections, cleanups) = of(wrong);
        let error = match saves {
            true => saved(&mut sections).unwrap_err(),
            false => load(&bytes, Strictness::Strict, &mut sections).unwrap_err(),
        };
        assert_eq!(error.to_string(), text);
        assert_eq!(*cleanups.lock().unwrap(), 1, "{text}");
    }
}
