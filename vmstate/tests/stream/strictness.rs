//! What a QEMU-compatible load accepts and a strict one refuses: each row of the tables in docs/wire-format.md and
//! docs/wire-format-stream.md. What QEMU 10.0 accepts was determined from its migration/vmstate.c and migration/savevm.c.

use crate::toy::{HEAD, RAM, full, load};
use vmstate::VmState;
use vmstate::codec::Strictness;
use vmstate::error::{ErrorKind, Result};
use vmstate::section::{Section, Sections};

#[derive(VmState, Clone, Debug, Default, PartialEq)]
#[vmstate(name = "dev")]
#[vmstate(subsection(name = "dev/s"))]
#[vmstate(subsection(name = "dev/t", version = 2))]
struct Dev {
    on: bool,
    #[vmstate(subsection = "dev/s")]
    s: u8,
    #[vmstate(subsection = "dev/t")]
    t: u8,
}

/// The bytes of one section: a header as FULL, or of another type, around a body.
fn section(kind: u8, name: &[u8], instance: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0, 2, name.len() as u8];
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&instance.to_be_bytes());
    bytes.extend_from_slice(b"\0\0\0\x01");
    bytes.extend_from_slice(body);
    bytes.extend_from_slice(b"\x7e\0\0\0\x02");
    bytes
}

fn dev(body: &[u8]) -> Vec<u8> {
    section(4, b"dev", 0, body)
}

const S: &[u8] = b"\x05\x05dev/s\0\0\0\x01\x11";
const T: &[u8] = b"\x05\x05dev/t\0\0\0\x02\x22";
const UUID: &[u8] = b"\x05\x12configuration/uuid\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const WIDE_UUID: &[u8] = b"\x05\x12configuration/uuid\0\0\x01\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn bytes(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn load_dev(stream: &[u8], strictness: Strictness) -> Result<Dev> {
    let mut dev = Dev::default();
    let mut sections = Sections::new();
    sections.add(&mut dev as &mut dyn Section).unwrap();
    load(stream, strictness, &mut sections)?;
    drop(sections);
    Ok(dev)
}

#[test]
fn each_row_is_refused_by_a_strict_load_and_taken_by_a_compatible_one() {
    let machine = |name: &[u8]| [b"QEVM\0\0\0\x03\x07\0\0\0", &[name.len() as u8][..], name].concat();
    let (on, off) = (Dev { on: true, s: 0, t: 0 }, Dev::default());
    let with_s = Dev { s: 0x11, ..on.clone() };
    let rows: [(&str, Vec<u8>, &Dev, &str); 14] = [
        ("a bool above 1", bytes(&[HEAD, RAM, &dev(b"\x80")]), &on, "dev/0 › on at 0x6b: a bool is 0 or 1, got 128"),
        (
            "a subsection twice",
            bytes(&[HEAD, RAM, &dev(&[b"\x01", S, S].concat())]),
            &with_s,
            "dev/0 at 0x78: subsection \"dev/s\" comes twice",
        ),
        (
            "a subsection's version above 255",
            bytes(&[HEAD, RAM, &dev(b"\x01\x05\x05dev/s\0\0\x01\x01\x11")]),
            &with_s,
            "dev/0 › dev/s at 0x77: version 257 is newer than 1",
        ),
        (
            "a NUL in a subsection's name",
            bytes(&[HEAD, RAM, &dev(b"\x01\x05\x07dev/s\0\xff\0\0\0\x01\x11")]),
            &with_s,
            "dev/0 at 0x6c: subsection \"dev/s\\0\u{fffd}\" is not known to \"dev\"",
        ),
        ("a section twice", bytes(&[HEAD, RAM, &dev(b"\0"), &dev(b"\x01")]), &on, "dev/0 at 0x82: came twice"),
        ("no section", bytes(&[HEAD, RAM]), &off, "required sections did not arrive: dev/0"),
        (
            "the instance of everyone",
            bytes(&[HEAD, RAM, &section(4, b"dev", u32::MAX, b"\x01")]),
            &on,
            "dev/4294967295 at 0x6b: this machine has no such instance: both sides need the same devices",
        ),
        (
            "a device in a START",
            bytes(&[HEAD, RAM, &section(1, b"dev", 0, b"\x01")]),
            &on,
            "dev/0 at 0x5a: came in parts; here it comes whole",
        ),
        (
            "the beginning of the machine's name",
            bytes(&[&machine(b"t"), RAM, &dev(b"\x01")]),
            &on,
            "at 0x8: the source is a machine of type t, this one is toy",
        ),
        (
            "no machine's name",
            bytes(&[&machine(b""), RAM, &dev(b"\x01")]),
            &on,
            "at 0x8: the source is a machine of type , this one is toy",
        ),
        (
            "a NUL in the machine's name",
            bytes(&[&machine(b"toy\0car"), RAM, &dev(b"\x01")]),
            &on,
            "at 0x8: the source is a machine of type toy\\0car, this one is toy",
        ),
        (
            "a NUL in a section's name",
            bytes(&[HEAD, RAM, &section(4, b"dev\0?", 0, b"\x01")]),
            &on,
            "dev\\0?/0 at 0x6d: this machine has no such section: both sides need the same devices",
        ),
        (
            "a part of the configuration twice",
            bytes(&[HEAD, UUID, UUID, RAM, &dev(b"\x01")]),
            &on,
            "at 0x38: configuration/uuid comes twice",
        ),
        (
            "a version above 255 in the configuration",
            bytes(&[HEAD, WIDE_UUID, RAM, &dev(b"\x01")]),
            &on,
            "at 0x10: configuration/uuid: version 257 is not 1",
        ),
    ];
    for (what, mut stream, expected, refusal) in rows {
        stream.push(0);
        match load_dev(&stream, Strictness::QemuCompatible) {
            Ok(loaded) => assert_eq!(loaded, *expected, "{what}"),
            Err(error) => panic!("{what}: {error}"),
        }
        assert_eq!(load_dev(&stream, Strictness::Strict).unwrap_err().to_string(), refusal, "{what}");
    }
}

#[test]
fn both_take_subsections_in_any_order_and_without_the_absent_ones() {
    for (body, expected) in [
        ([b"\x01", S, T].concat(), Dev { on: true, s: 0x11, t: 0x22 }),
        ([b"\x01", T, S].concat(), Dev { on: true, s: 0x11, t: 0x22 }),
        ([b"\x01", T].concat(), Dev { on: true, s: 0, t: 0x22 }),
        (b"\0".to_vec(), Dev::default()),
    ] {
        for strictness in [Strictness::Strict, Strictness::QemuCompatible] {
            assert_eq!(load_dev(&bytes(&[HEAD, RAM, &dev(&body), b"\0"]), strictness).unwrap(), expected);
        }
    }
}

#[test]
fn both_refuse_what_qemu_refuses() {
    let rows: [(Vec<u8>, ErrorKind, &str); 6] = [
        // Only the lowest byte of a subsection's version counts, and must fit: 0x103 is 3.
        (
            bytes(&[HEAD, RAM, &dev(b"\x01\x05\x05dev/t\0\0\x01\x03\x22")]),
            ErrorKind::Incompatible,
            "dev/0 › dev/t at 0x77: version ",
        ),
        (
            bytes(&[HEAD, RAM, &dev(&[b"\x01", S, b"\x05\x05dev/u\0\0\0\x01\x11"].concat())]),
            ErrorKind::Incompatible,
            "dev/0 at 0x78: subsection \"dev/u\" is not known to \"dev\"",
        ),
        (
            bytes(&[b"QEVM\0\0\0\x03\x07\0\0\0\x04toys", RAM]),
            ErrorKind::Incompatible,
            "at 0x8: the source is a machine of type toys, this one is toy",
        ),
        (
            bytes(&[b"QEVM\0\0\0\x03\x07\0\0\0\x04t\0oy", RAM]),
            ErrorKind::Incompatible,
            "at 0x8: the source is a machine of type t\\0oy, this one is toy",
        ),
        (
            bytes(&[HEAD, RAM, &full(3, "dev", 1, 1)]),
            ErrorKind::Incompatible,
            "dev/1 at 0x6b: this machine has no such instance: both sides need the same devices",
        ),
        // QEMU takes this number for the first device that has not been loaded yet; here it matches none.
        (
            bytes(&[HEAD, b"\x02\0\0\0\0"]),
            ErrorKind::Malformed,
            "at 0x10: part of section number 0, which has not started",
        ),
    ];
    for (stream, kind, text) in rows {
        for strictness in [Strictness::Strict, Strictness::QemuCompatible] {
            let error = load_dev(&stream, strictness).unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().starts_with(text), "{error} is not {text}");
        }
    }
}
