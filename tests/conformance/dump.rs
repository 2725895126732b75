//! Compares `vmstate`'s dump of QEMU's streams, whole and damaged, with an independent parser's.

use vmstate::dump::{Dump, Entry, Part};
use vmstate::inspect;
use vmstate_tests::stream_parser::{self as parser, SectionKind, parse};

use crate::fixtures::{STREAMS, bytes};

fn same_fields(ours: &inspect::Fields, theirs: &parser::Fields) {
    assert_eq!(ours.fields.len(), theirs.fields.len());
    for (our, their) in ours.fields.iter().zip(&theirs.fields) {
        assert!(our.name == their.name || our.name.starts_with(&format!("{}[", their.name)), "{our:?} {their:?}");
        assert_eq!((&our.type_name, our.offset), (&their.kind, their.bytes.start as u64));
        assert_eq!(our.size, their.bytes.len() as u64, "{}", our.name);
        same_value(&our.value, &their.value);
    }
    assert_eq!(ours.subsections.len(), theirs.subsections.len());
    for (our, their) in ours.subsections.iter().zip(&theirs.subsections) {
        assert_eq!((&our.name, our.version), (&their.name, their.version));
        same_fields(&our.fields, &their.fields);
    }
}

fn same_value(ours: &inspect::Value, theirs: &parser::Value) {
    use inspect::Value as Our;
    use parser::Value as Their;
    match (ours, theirs) {
        (Our::Bool(our), Their::Unsigned(their)) => assert_eq!(u64::from(*our), *their),
        (Our::Unsigned(our), Their::Unsigned(their)) => assert_eq!(our, their),
        (Our::Signed(our), Their::Signed(their)) => assert_eq!(our, their),
        (Our::Bytes(our), Their::Bytes(their)) => assert_eq!(our, their),
        (Our::Struct(our), Their::Struct(their)) => same_fields(our, their),
        (Our::Array(our), Their::Array(their)) => {
            assert_eq!(our.len(), their.len());
            our.iter().zip(their).for_each(|(our, their)| same_value(our, their));
        }
        _ => panic!("{ours:?} is not {theirs:?}"),
    }
}

#[test]
fn a_dump_of_qemus_streams_is_what_an_independent_parser_reads() {
    for name in STREAMS {
        let bytes = bytes(name);
        let stream = parse(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let dump = Dump::read(&bytes);
        assert!(dump.damage.is_none() && dump.described, "{name}: {:?}", dump.damage);
        let configuration = dump.configuration.as_ref().unwrap();
        assert_eq!(configuration.machine, stream.configuration.machine);
        assert_eq!(configuration.capabilities, stream.configuration.capabilities);
        assert_eq!(dump.sections().count(), stream.sections.len());
        for (our, their) in dump.sections().zip(&stream.sections) {
            let part = match our.part {
                Part::Start => SectionKind::Start,
                Part::Part => SectionKind::Part,
                Part::End => SectionKind::End,
                Part::Full => SectionKind::Full,
            };
            assert_eq!((part, our.header.id, &*our.header.idstr), (their.kind, their.id, their.name.as_str()));
            assert_eq!((our.header.instance, our.header.version), (their.instance, their.version));
            let body = their.body.start as u64..their.body.end as u64;
            assert_eq!((our.offset, our.body..our.body + our.size), (their.offset as u64, body));
            assert_eq!(our.fields.is_some(), our.part == Part::Full);
        }
        let devices = dump.sections().filter(|section| section.part == Part::Full);
        assert_eq!(devices.clone().count(), stream.devices.len());
        for (our, their) in devices.zip(&stream.devices) {
            same_fields(our.fields.as_ref().unwrap(), &their.fields);
        }
        assert_eq!(dump.ram.blocks().len(), stream.ram.blocks.len());
        for (our, their) in dump.ram.blocks().iter().zip(&stream.ram.blocks) {
            assert_eq!((&our.name, our.len, our.address), (&their.name, their.length, their.address));
            assert_eq!((our.pages.normal, our.pages.zero), (their.normal, their.zero));
        }
        assert!(matches!(dump.entries.last(), Some(Entry::Eof { offset }) if *offset == stream.eof as u64));
    }
}

#[test]
fn a_truncated_stream_gives_the_sections_before_its_end() {
    let bytes = bytes(STREAMS[0]);
    let stream = parse(&bytes).unwrap();
    for cut in (0..bytes.len()).step_by(331).chain(bytes.len() - 40..bytes.len()) {
        let dump = Dump::read(&bytes[..cut]);
        // A stream without self-description may also end after EOF.
        assert_eq!(dump.damage.is_none(), cut == stream.eof + 1, "cut at {cut:#x}");
        if let Some(damage) = &dump.damage {
            assert!(damage.offset().unwrap() <= cut as u64, "cut at {cut:#x}: {damage}");
        }
        let whole = stream.sections.iter().filter(|section| section.body.end + 5 < cut);
        for (our, their) in dump.sections().zip(whole.clone()) {
            assert_eq!((our.offset, our.size), (their.offset as u64, their.body.len() as u64), "cut at {cut:#x}");
        }
        assert!(dump.sections().count() >= whole.count(), "cut at {cut:#x}");
    }
}

#[test]
fn a_changed_byte_never_panics_and_damage_has_an_offset() {
    let mut bytes = bytes(STREAMS[0]);
    for at in (0..bytes.len()).step_by(509) {
        for change in [0x01, 0x80, 0xff] {
            bytes[at] ^= change;
            if let Some(damage) = Dump::read(&bytes).damage {
                assert!(damage.offset().is_some(), "byte {at:#x}: {damage}");
            }
            bytes[at] ^= change;
        }
    }
}

#[test]
fn damage_names_the_field_and_the_expected_value() {
    let mut bytes = bytes(STREAMS[0]);
    let stream = parse(&bytes).unwrap();
    let at = stream.sections.iter().find(|section| section.name == "serial").unwrap().body.end;
    bytes[at] = 0x11;
    let dump = Dump::read(&bytes);
    let expected = format!("serial/0 at {at:#x}: the section's footer 0x7e expected, got 0x11");
    assert_eq!(dump.damage.unwrap().to_string(), expected);
    let last = dump.entries.last();
    assert!(
        matches!(last, Some(Entry::Section(section)) if section.header.idstr == "serial" && section.fields.is_some())
    );
}
