//! Every truncation and every change of one byte of streams that QEMU and this library wrote must end in a load or an
//! error: never in a panic, a hang, or more memory than allowed. A device whose load fails must be unchanged.
//!
//! | input | truncated at | bytes changed, to |
//! | --- | --- | --- |
//! | a section of each of QEMU's devices, and the struct with every kind of field; strict and QEMU-compatible | every byte | every byte, all 255 other values |
//! | a loaded stream: QEMU's header and RAM list, four pages, three of its devices; strict and QEMU-compatible | every byte | all bytes outside of the devices' bodies, all 255 other values |
//! | such a stream of all devices, loaded and inspected | every byte up to the self-description, then every 97th | |
//! | a stream of this library, inspected | every byte | every byte, all single bits and [`DIGITS`] |
//! | QEMU's whole streams, inspected | every 9973rd byte | |
//!
//! The streams have no page with contents: those bytes are the guest's, and no reader interprets them.

use std::collections::BTreeMap;

use vmstate::Section;
use vmstate::codec::{Reader, Strictness};
use vmstate::dump::{Dump, Part};
use vmstate_fuzz::machine::{LIMITS, Machine};
use vmstate_fuzz::{devices, streams, within};

const BOTH: [Strictness; 2] = [Strictness::Strict, Strictness::QemuCompatible];
/// Memory that a load of one section may hold at a time: four times what its fields may allocate.
const SECTION_MEMORY: u64 = 4 << 20;
/// Memory that a load of a stream may hold: the megabyte of its buffer, doubled while it grows, and a section.
const STREAM_MEMORY: u64 = 8 << 20;
/// Memory that the inspector may hold: its values, doubled while their list grows.
const INSPECT_MEMORY: u64 = 320 << 20;
/// Values tried in JSON text: a quote, a digit, a bracket, a closing brace, and bytes that are not text.
const DIGITS: [u8; 6] = [b'"', b'9', b'[', b'}', 0, 0xff];

/// `original` with each byte at `places` changed to each of the values, in turn.
fn changed(
    original: &[u8],
    places: impl Iterator<Item = usize>,
    values: impl Fn(u8) -> Vec<u8>,
    mut attempt: impl FnMut(&[u8]),
) {
    let mut bytes = original.to_vec();
    for at in places {
        for value in values(original[at]).into_iter().filter(|value| *value != original[at]) {
            bytes[at] = value;
            attempt(&bytes);
        }
        bytes[at] = original[at];
    }
}

fn all(_: u8) -> Vec<u8> {
    (0..=255).collect()
}

/// Version and body of a section of each device, by name.
fn sections() -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut sections = BTreeMap::new();
    for stream in [streams::KVM, streams::TCG, &Machine::with(&[]).save()] {
        for found in streams::sections(stream).into_iter().filter(|found| found.part == Part::Full) {
            let (version, body) = (found.header.version, stream[found.body].to_vec());
            sections.entry(found.header.idstr.into_owned()).or_insert((version, body));
        }
    }
    sections
}

fn known() -> Vec<&'static str> {
    devices::all().iter().map(|&(name, ..)| name).collect()
}

/// Each device checks its loads itself ([`Rollback`](vmstate_fuzz::Rollback)); the count here shows that every device
/// was tried.
#[test]
fn sections_of_devices() {
    let sections = sections();
    for (name, _, mut device) in devices::all().into_iter().filter(|(_, instance, _)| *instance == 0) {
        let (version, body) = sections.get(name).unwrap_or_else(|| panic!("no section to attack {name} with"));
        let (mut loads, mut errors) = (0, 0);
        for strictness in BOTH {
            let mut attempt = |bytes: &[u8]| {
                let mut input = Reader::new(bytes, 0, strictness, LIMITS);
                match within(SECTION_MEMORY, || device.load(&mut input, *version)) {
                    Ok(()) => loads += 1,
                    Err(_) => errors += 1,
                }
            };
            (0..body.len()).for_each(|length| attempt(&body[..length]));
            // A footer follows, as in a stream.
            let whole = [body, &b"\x7e\0\0\0\0"[..]].concat();
            changed(&whole, 0..body.len(), all, attempt);
        }
        assert!(loads > 0 && errors > 0, "{name}: {loads} loads, {errors} errors");
    }
}

/// End of the sections, after the EOF mark. A stream may end there.
fn eof(stream: &[u8]) -> usize {
    streams::sections(stream).last().expect("sections").whole.end + 1
}

/// Every length up to the text of the self-description, then each 97th.
fn lengths(stream: &[u8]) -> impl Iterator<Item = usize> {
    let text = eof(stream) + 1 + 4;
    (0..=text).chain((text..stream.len()).step_by(97))
}

#[test]
fn streams_cut_short() {
    let stream = streams::loadable(streams::KVM, &known());
    for length in lengths(&stream) {
        for strictness in BOTH {
            let loaded = within(STREAM_MEMORY, || Machine::microvm().load(&stream[..length], strictness, usize::MAX));
            // Readers of a migration ignore everything after the end of the sections.
            assert_eq!(loaded.is_ok(), length >= eof(&stream), "{length}: {loaded:?}");
        }
    }
}

#[test]
fn streams_with_one_byte_changed() {
    let few = ["timer", "serial", "kvmclock"];
    let stream = streams::loadable(streams::KVM, &few);
    let sections = streams::sections(&stream);
    let inside = |at: usize| sections.iter().any(|found| found.part == Part::Full && found.body.contains(&at));
    let (mut loads, mut errors) = (0, 0);
    let stream = &stream[..eof(&stream) + 1 + 4];
    changed(stream, (0..stream.len()).filter(|at| !inside(*at)), all, |bytes| {
        for strictness in BOTH {
            let mut machine = Machine::microvm().only(&few);
            match within(STREAM_MEMORY, || machine.load(bytes, strictness, usize::MAX)) {
                Ok(()) => loads += 1,
                Err(_) => errors += 1,
            }
        }
    });
    assert!(loads > 0 && errors > 0, "{loads} loads, {errors} errors");
}

/// Inspects a stream; true if the stream is whole.
fn inspect(stream: &[u8]) -> bool {
    let dump = within(INSPECT_MEMORY, || Dump::read(stream));
    let offset = dump.damage.as_ref().and_then(|damage| damage.offset());
    assert!(offset.is_none_or(|offset| offset <= stream.len() as u64), "damage outside of the stream");
    dump.damage.is_none()
}

#[test]
fn inspected_streams_cut_short() {
    let stream = streams::loadable(streams::KVM, &known());
    for length in lengths(&stream) {
        assert_eq!(inspect(&stream[..length]), length == eof(&stream), "{length}");
    }
    for stream in [streams::RESET, streams::KVM, streams::TCG] {
        for length in (0..stream.len()).step_by(9973) {
            assert!(!inspect(&stream[..length]), "{length}");
        }
    }
}

#[test]
fn inspected_streams_with_one_byte_changed() {
    let stream = Machine::with(&[("ram", 2 << 12)]).only(&["timer", "kvmclock", "acpi-ged"]).save();
    for length in 0..=stream.len() {
        assert_eq!(inspect(&stream[..length]), length == eof(&stream) || length == stream.len(), "{length}");
    }
    let some = |byte: u8| (0..8).map(|bit| byte ^ (1 << bit)).chain(DIGITS).collect();
    let (mut whole, mut damaged) = (0, 0);
    changed(&stream, 0..stream.len(), some, |bytes| if inspect(bytes) { whole += 1 } else { damaged += 1 });
    assert!(whole > 0 && damaged > 0, "{whole} whole, {damaged} damaged");
}
