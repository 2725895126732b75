//! Streams written by hand from the tables of the format, and the errors of wrong ones.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::toy::Tape;
use vmstate::VmState;
use vmstate::channel::{Channel, FileChannel};
use vmstate::codec::{Limits, Reader, Strictness};
use vmstate::error::{Error, ErrorKind, Result};
use vmstate::migrate::{Control, snapshot};
use vmstate::ram::{GuestRam, RamBlock};
use vmstate::raw::stream::{
    Command, Configuration, Element, Reply, Terms, put_reason, put_times, read_reason, read_times,
};
use vmstate::section::{Section, Sections};

pub(crate) struct Ram {
    blocks: Vec<RamBlock>,
    bytes: Mutex<Vec<Vec<u8>>>,
}

impl Ram {
    pub(crate) fn new(blocks: &[(&str, u64)]) -> Self {
        let blocks: Vec<_> = blocks.iter().map(|&(name, len)| RamBlock { name: name.into(), len }).collect();
        let bytes = blocks.iter().map(|block| vec![0; block.len as usize]).collect();
        Self { blocks, bytes: Mutex::new(bytes) }
    }
}

impl GuestRam for Ram {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(&self.bytes.lock().unwrap()[block][offset as usize..][..into.len()]);
        Ok(())
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        self.bytes.lock().unwrap()[block][offset as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        self.write(block, offset, &[0; 4096])
    }
}

#[derive(VmState, Debug, Default, PartialEq)]
#[vmstate(name = "gadget", version = 3, minimum_version = 2)]
struct Gadget {
    control: u16,
    on: bool,
}

fn bytes(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn page() -> Vec<u8> {
    let mut page = vec![0; 4096];
    (page[0], page[4095]) = (0xaa, 0x55);
    page
}

/// Magic, version, configuration of machine "toy".
const HEAD: &[u8] = b"QEVM\0\0\0\x03\x07\0\0\0\x03toy";
/// START 1 "ram" instance 0 version 4; 12 KiB with MEM_SIZE; two blocks; EOS; footer.
const RAM_START: &[u8] = b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04\
    \0\0\0\0\0\0\x30\x04\
    \x03low\0\0\0\0\0\0\x20\0\
    \x04high\0\0\0\0\0\0\x10\0\
    \0\0\0\0\0\0\0\x10\
    \x7e\0\0\0\x01";
/// END 1: page 0 of "low" zero, page 1 normal and continued; page 0 of "high" zero; EOS; footer.
fn ram_end() -> Vec<u8> {
    bytes(&[
        b"\x03\0\0\0\x01",
        b"\0\0\0\0\0\0\0\x02\x03low\0",
        b"\0\0\0\0\0\0\x10\x28",
        &page(),
        b"\0\0\0\0\0\0\0\x02\x04high\0",
        b"\0\0\0\0\0\0\0\x10",
        b"\x7e\0\0\0\x01",
    ])
}
/// FULL 2 "gadget" instance 0 version 3; its three bytes; footer.
const GADGET: &[u8] = b"\x04\0\0\0\x02\x06gadget\0\0\0\0\0\0\0\x03\x12\x34\x01\x7e\0\0\0\x02";

fn whole() -> Vec<u8> {
    bytes(&[HEAD, RAM_START, &ram_end(), GADGET, b"\0"])
}

fn ram() -> Ram {
    Ram::new(&[("low", 8192), ("high", 4096)])
}

fn load_into(stream: &[u8], strictness: Strictness, at_once: usize, gadget: &mut Gadget, ram: &Ram) -> Result<()> {
    let mut sections = Sections::new();
    sections.register("gadget", 0, gadget as &mut dyn Section).unwrap();
    let mut tape = Tape { at_once, ..Tape::of(stream) };
    snapshot::load(&mut tape, "toy", strictness, Limits::default(), &mut sections, ram)
}

fn load(stream: &[u8], strictness: Strictness) -> Result<()> {
    load_into(stream, strictness, usize::MAX, &mut Gadget::default(), &ram())
}

/// The error of a strict load; checks that a QEMU-compatible load returns the same.
fn refusal(stream: &[u8]) -> Error {
    let strict = load(stream, Strictness::Strict).unwrap_err();
    let compatible = load(stream, Strictness::QemuCompatible).unwrap_err();
    assert_eq!(strict.to_string(), compatible.to_string());
    strict
}

/// The write end of a pipe cannot be read (read(2), EBADF), so the engine must not try to read an answer there.
#[test]
fn a_stream_goes_into_a_pipe_that_is_read_late() {
    let saved = |channel: &mut dyn Channel| {
        let mut gadget = Gadget { control: 0x1234, on: true };
        let mut sections = Sections::new();
        sections.register("gadget", 0, &mut gadget as &mut dyn Section).unwrap();
        snapshot::save(channel, "toy", &mut sections, &ram())
    };
    let mut tape = Tape::of(&[]);
    saved(&mut tape).unwrap();
    let (mut input, mut out) = std::io::pipe().unwrap();
    let full = fcntl(&out, FcntlArg::F_GETPIPE_SZ).unwrap() as usize;
    out.write_all(&vec![7; full]).unwrap();
    fcntl(&out, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        let mut came = Vec::new();
        input.read_to_end(&mut came).map(|_| came.split_off(full))
    });
    saved(&mut FileChannel::from(File::from(OwnedFd::from(out)))).unwrap();
    assert!(reader.join().unwrap().unwrap() == tape.bytes);
}

#[test]
fn a_stream_written_by_hand_equals_the_saved_one_and_loads() {
    let source = ram();
    source.write(0, 4096, &page()).unwrap();
    let mut gadget = Gadget { control: 0x1234, on: true };
    let mut tape = Tape::of(&[]);
    let mut sections = Sections::new();
    sections.register("gadget", 0, &mut gadget as &mut dyn Section).unwrap();
    snapshot::save(&mut tape, "toy", &mut sections, &source).unwrap();
    let (control, mut again) = (Control::default(), Tape::of(&[]));
    snapshot::save_with(&mut again, "toy", &mut sections, &source, &control).unwrap();
    let progress = control.progress();
    assert!(again.bytes == tape.bytes);
    assert_eq!((progress.bytes, progress.normal_pages, progress.remaining_bytes), (tape.bytes.len() as u64, 1, 0));
    assert!(control.cancel());
    let error = snapshot::save_with(&mut again, "toy", &mut sections, &source, &control).unwrap_err();
    assert_eq!((error.kind(), again.bytes.len()), (ErrorKind::Cancelled, tape.bytes.len()));
    drop(sections);
    let described: &[u8] = br#"{"configuration": {"vmsd_name": "configuration", "version": 1, "fields": [{"name": "len", "type": "uint32", "size": 4}, {"name": "name", "type": "buffer", "size": 3}]}, "page_size": 4096, "devices": [{"name": "gadget", "instance_id": 0, "vmsd_name": "gadget", "version": 3, "fields": [{"name": "control", "type": "uint16", "size": 2}, {"name": "on", "type": "bool", "size": 1}]}]}"#;
    // If everything fits, all pages are sent in one section: first a part, then an empty end.
    let mut part = ram_end();
    part[0] = 0x02;
    let end: &[u8] = b"\x03\0\0\0\x01\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01";
    let length = u32::try_from(described.len()).unwrap().to_be_bytes();
    let expected = bytes(&[HEAD, RAM_START, &part, end, GADGET, b"\0\x06", &length, described]);
    assert_eq!(tape.bytes.escape_ascii().to_string(), expected.escape_ascii().to_string());

    for stream in [tape.bytes, whole()] {
        for at_once in [1, 7, 4096, usize::MAX] {
            let (target, mut loaded) = (ram(), Gadget::default());
            target.write(1, 0, &page()).unwrap();
            load_into(&stream, Strictness::Strict, at_once, &mut loaded, &target).unwrap();
            assert_eq!(loaded, gadget);
            assert_eq!(*target.bytes.lock().unwrap(), *source.bytes.lock().unwrap());
        }
    }
}

#[test]
fn every_truncation_is_an_error_and_leaves_the_device_as_it_was() {
    let stream = whole();
    for length in 0..stream.len() {
        for strictness in [Strictness::Strict, Strictness::QemuCompatible] {
            let mut gadget = Gadget::default();
            let error = load_into(&stream[..length], strictness, usize::MAX, &mut gadget, &ram()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{length}: {error}");
            assert_eq!(error.offset(), Some(length as u64), "{error}");
            assert!(error.message().starts_with("the file ends here, before the end of its stream: "), "{error}");
            if length < stream.len() - 6 {
                assert_eq!(gadget, Gadget::default());
            }
        }
    }
}

#[test]
fn every_changed_bit_is_an_error_or_a_load_but_never_a_panic() {
    let stream = whole();
    // The bytes of the normal page are data.
    for at in (0..120).chain(stream.len() - 120..stream.len()) {
        for bit in 0..8 {
            let mut stream = stream.clone();
            stream[at] ^= 1 << bit;
            let _ = load(&stream, Strictness::Strict);
            let _ = load(&stream, Strictness::QemuCompatible);
        }
    }
}

#[derive(VmState, Default)]
#[vmstate(name = "blob", version = 1)]
struct Blob {
    count: u32,
    #[vmstate(len = count, max = 0x400_0000, buffer)]
    bytes: Vec<u8>,
}

/// Loads a section of `count` bytes with an endless rest: the result, how much was read, and how much is loaded then.
fn load_blob(count: u32) -> (Result<()>, usize, usize) {
    let head = bytes(&[HEAD, b"\x04\0\0\0\x02\x04blob\0\0\0\0\0\0\0\x01", &count.to_be_bytes()]);
    let stream = bytes(&[&head, &vec![0; count as usize], b"\x7e\0\0\0\x02\0", &vec![0; 80 << 20]]);
    let mut tape = Tape { bytes: stream, read: 0, at_once: 1 << 20 };
    let mut blob = Blob::default();
    let mut sections = Sections::new();
    sections.register("blob", 0, &mut blob as &mut dyn Section).unwrap();
    let limits = Limits::default();
    let loaded = snapshot::load(&mut tape, "toy", Strictness::Strict, limits, &mut sections, &Ram::new(&[]));
    drop(sections);
    (loaded, tape.read, blob.bytes.len())
}

/// `LONGEST` in migrate/wire.rs: the section would fit its budget of 64 MiB, but is not read.
#[test]
fn an_element_of_more_than_32_mib_is_refused_and_not_held() {
    let longest = 32 << 20;
    let (loaded, _, length) = load_blob(longest - 4);
    loaded.unwrap();
    assert_eq!(length, longest as usize - 4);

    let (loaded, taken, length) = load_blob(longest + (2 << 20));
    let error = loaded.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert_eq!(error.to_string(), "blob/0 at 0x22: longer than 33554432 bytes");
    assert_eq!(length, 0);
    assert!(taken <= longest as usize + (2 << 20), "{taken} bytes were taken");
}

/// MULTIFD_FLUSH after the list of blocks, and before a page.
#[test]
fn a_flush_without_page_channels_is_refused() {
    const FLUSH: &[u8] = b"\0\0\0\0\0\0\x02\0";
    let (list, list_end) = RAM_START.split_at(RAM_START.len() - 13);
    let (part, pages) = (&ram_end()[..5], &ram_end()[5..]);
    for stream in [bytes(&[HEAD, list, FLUSH, list_end]), bytes(&[HEAD, RAM_START, part, FLUSH, pages])] {
        let error = refusal(&stream);
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(error.to_string().contains("turn capability multifd off there"), "{error}");
    }
}

#[test]
fn wrong_framing_is_named() {
    let cases: [(Vec<u8>, &str); 13] = [
        (
            b"QEVN\0\0\0\x03".to_vec(),
            "at 0x0: not a migration stream: it begins with 0x5145564e, not 0x5145564d (QEVM)",
        ),
        (b"QEVM\0\0\0\x02".to_vec(), "at 0x0: stream version 2: only version 3 is supported"),
        (b"QEVM\0\0\0\x03\x01".to_vec(), "at 0x8: the configuration 0x07 expected, got 0x01"),
        (
            b"QEVM\0\0\0\x03\x07\xff\xff\xff\xf0".to_vec(),
            "at 0xd: the machine's name has 4294967280 bytes, at most 255 are allowed",
        ),
        (bytes(&[HEAD, b"\x05"]), ""),
        (bytes(&[HEAD, b"\x09"]), "at 0x10: section type 0x09 does not exist"),
        (bytes(&[HEAD, b"\x06"]), "at 0x10: a self-description before the end of the stream"),
        (bytes(&[HEAD, b"\x02\0\0\0\x07"]), "at 0x10: part of section number 7, which has not started"),
        (bytes(&[HEAD, b"\x08\0\x0c\0\0"]), "at 0x11: command 12 does not exist"),
        (bytes(&[HEAD, b"\x08\0\x02\0\x03"]), "at 0x11: command PING has 4 bytes, got 3"),
        (
            bytes(&[HEAD, b"\x08\0\x04\0\0"]),
            "at 0x10: command POSTCOPY_LISTEN is not supported: turn its capability off at the source",
        ),
        (
            bytes(&[HEAD, RAM_START, &ram_end(), &GADGET[..23], b"\x7e\0\0\0\x03"]),
            "gadget/0 at 0x109b: footer of section number 2 expected, got number 3",
        ),
        (
            bytes(&[HEAD, RAM_START, &ram_end(), &GADGET[..23], b"\x00\0\0\0\x02"]),
            "gadget/0 at 0x109b: the section's footer 0x7e expected, got 0x00",
        ),
    ];
    for (stream, expected) in cases {
        let error = refusal(&stream);
        if !expected.is_empty() {
            assert_eq!(error.to_string(), expected);
        }
    }
}

#[test]
fn a_section_that_does_not_fit_is_named() {
    let with = |from: &[u8], to: &[u8]| {
        let stream = whole();
        let at = stream.windows(from.len()).position(|window| window == from).unwrap();
        bytes(&[&stream[..at], to, &stream[at + from.len()..]])
    };
    let version = |version: u8| with(b"gadget\0\0\0\0\0\0\0\x03", &bytes(&[b"gadget\0\0\0\0\0\0\0", &[version]]));
    load(&version(2), Strictness::Strict).unwrap();
    assert_eq!(refusal(&version(4)).to_string(), "gadget/0 at 0x1098: version 4 is newer than 3");
    assert_eq!(
        refusal(&version(1)).to_string(),
        "gadget/0 at 0x1098: version 1 is older than 2, the oldest that loads"
    );
    let error = refusal(&with(b"gadget\0\0\0\0", b"gizmo_\0\0\0\0"));
    assert_eq!(error.section(), Some("gizmo_/0"));
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    let error = refusal(&with(b"gadget\0\0\0\0", b"gadget\0\0\0\x01"));
    assert!(error.to_string().contains("no such instance"), "{error}");
    // A bool of 2 is refused by the field's own load, with its path.
    let error = load(&with(b"\x12\x34\x01", b"\x12\x34\x02"), Strictness::Strict).unwrap_err();
    assert_eq!((error.section(), error.path().as_str(), error.offset()), (Some("gadget/0"), "on", Some(0x109a)));
}

#[test]
fn strict_requires_each_section_once_and_the_exact_machine_unlike_qemu() {
    let twice = bytes(&[HEAD, RAM_START, &ram_end(), GADGET, GADGET, b"\0"]);
    let none = bytes(&[HEAD, RAM_START, &ram_end(), b"\0"]);
    let alias = {
        let at = GADGET.len() - 5 - 3 - 8;
        let everyone = bytes(&[&GADGET[..at], b"\xff\xff\xff\xff", &GADGET[at + 4..]]);
        bytes(&[HEAD, RAM_START, &ram_end(), &everyone, b"\0"])
    };
    let prefix = {
        let stream = whole();
        bytes(&[b"QEVM\0\0\0\x03\x07\0\0\0\x02to", &stream[HEAD.len()..]])
    };
    let cases = [
        (twice, "came twice"),
        (none, "required sections did not arrive: gadget/0"),
        (alias, "no such instance"),
        (prefix, "the source is a machine of type to, this one is toy"),
    ];
    for (stream, expected) in cases {
        let error = load(&stream, Strictness::Strict).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        load(&stream, Strictness::QemuCompatible).unwrap();
    }
    let no_ram = bytes(&[HEAD, GADGET, b"\0"]);
    assert_eq!(refusal(&no_ram).to_string(), "ram/0: its last part did not arrive");
}

#[test]
fn configuration_with_all_its_subsections() {
    // The header of a QEMU pc-q35-10.0 with a UUID and the capability x-ignore-shared; a START follows.
    let bytes = bytes(&[
        b"\x07\0\0\0\x0bpc-q35-10.0",
        b"\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0fx-ignore-shared",
        b"\x05\x12configuration/uuid\0\0\0\x01\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
        b"\x05\x1econfiguration/target-page-bits\0\0\0\x01\0\0\0\x0c",
        b"\x01",
    ]);
    let mut reader = Reader::new(&bytes, 8, Strictness::Strict, Limits::default());
    let configuration = Configuration::read(&mut reader).unwrap();
    assert_eq!(reader.rest(), b"\x01");
    assert_eq!(configuration.machine, "pc-q35-10.0");
    assert_eq!(configuration.page_bits, Some(12));
    assert_eq!(configuration.capabilities, ["x-ignore-shared"]);
    assert_eq!(configuration.uuid.unwrap()[..3], [0x00, 0x11, 0x22]);
    let error = configuration.check("pc-q35-10.0", Terms::default(), Strictness::QemuCompatible).unwrap_err();
    assert!(error.to_string().contains("x-ignore-shared"), "{error}");
    for length in 0..bytes.len() {
        let mut reader = Reader::new(&bytes[..length], 8, Strictness::Strict, Limits::default());
        assert!(Configuration::read(&mut reader).unwrap_err().is_incomplete(), "{length}");
    }
}

#[test]
fn commands_and_replies_byte_for_byte() {
    let cases: [(Element, &[u8]); 4] = [
        (Element::Command(Command::OpenReturnPath), b"\x08\0\x01\0\0"),
        (Element::Command(Command::Ping(5)), b"\x08\0\x02\0\x04\0\0\0\x05"),
        (Element::Command(Command::SwitchoverStart), b"\x08\0\x0b\0\0"),
        (Element::Eof, b"\0"),
    ];
    for (element, bytes) in cases {
        let mut out = Vec::new();
        element.write(&mut out);
        assert_eq!(out, bytes);
        assert_eq!(Element::read(&mut Reader::strict(bytes)).unwrap(), element);
    }
    let replies: [(Reply, &[u8]); 2] =
        [(Reply::Shut(1), b"\0\x01\0\x04\0\0\0\x01"), (Reply::Pong(7), b"\0\x02\0\x04\0\0\0\x07")];
    for (reply, bytes) in replies {
        let mut out = Vec::new();
        reply.write(&mut out);
        assert_eq!(out, bytes);
        assert_eq!(Reply::read(&mut Reader::strict(bytes)).unwrap(), reply);
    }
    let mut out = Vec::new();
    put_reason("no \u{e9}\n", &mut out);
    assert_eq!(out, b"\x80\x01\0\x06no \xc3\xa9\n");
    assert_eq!(read_reason(&mut Reader::strict(&out)).unwrap(), "no \u{e9}\\n");
    out.clear();
    // Cut between two characters: the last one would end at byte 4097.
    put_reason(&format!("{}\u{e9}", "x".repeat(4095)), &mut out);
    assert_eq!((&out[..4], out.len()), (&b"\x80\x01\x0f\xff"[..], 4 + 4095));
    for hostile in [&b"\x80\x01\x10\x01"[..], b"\0\x01\0\x04\0\0\0\x01", b"\x80\x01\0\x01\xff"] {
        assert_eq!(read_reason(&mut Reader::strict(hostile)).unwrap_err().kind(), ErrorKind::Malformed);
    }
    out.clear();
    let times = [Duration::from_nanos(0x0102), Duration::MAX];
    put_times(&times, &mut out);
    assert_eq!(out, b"\x80\x02\0\x10\0\0\0\0\0\0\x01\x02\xff\xff\xff\xff\xff\xff\xff\xff");
    assert_eq!(read_times(&mut Reader::strict(&out)).unwrap(), [times[0], Duration::from_nanos(u64::MAX)]);
    assert!(read_times(&mut Reader::strict(&out[..19])).unwrap_err().is_incomplete());
    for (count, length) in [(8191, 4 + 8 * 8191), (8192, 0)] {
        out.clear();
        put_times(&vec![Duration::ZERO; count], &mut out);
        assert_eq!(out.len(), length);
    }
    for hostile in [&b"\x80\x02\0\x0c"[..], b"\x80\x01\0\x08"] {
        assert_eq!(read_times(&mut Reader::strict(hostile)).unwrap_err().kind(), ErrorKind::Malformed);
    }
    for (bytes, expected) in [
        (&b"\0\x04\0\x0c\0\0\0\0\0\0\0\0\0\0\x10\0"[..], "REQ_PAGES is not supported"),
        (b"\0\x08\0\x04", "message 8 does not exist"),
        (b"\0\0\0\x04", "message 0 does not exist"),
        (b"\0\x02\0\x08", "PONG has 4 bytes, got 8"),
    ] {
        let error = Reply::read(&mut Reader::strict(bytes)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
