//! The additions of post-copy to the stream and to the return path, written by hand from the tables of the format
//! (migration/savevm.c, migration/migration.c), and invalid variants.

use vmstate::codec::{Limits, Reader, Strictness};
use vmstate::dump::{Dump, Entry};
use vmstate::error::ErrorKind;
use vmstate::raw::ram::{PageSet, put_received, read_received};
use vmstate::raw::stream::{
    Command, Discard, Element, PageRequest, PageSizes, Reply, Returned, Stretch, put_footer, put_header,
};
use vmstate::section::Sections;

use crate::toy::{HEAD, load};

/// Two ranges of block "low".
const DISCARD: &[u8] = b"\0\x03low\0\
    \0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x20\0\
    \0\0\0\0\0\x01\0\0\0\0\0\0\0\0\x10\0";

fn discard() -> Discard {
    let stretches = vec![Stretch { start: 0x1000, len: 0x2000 }, Stretch { start: 0x1_0000, len: 0x1000 }];
    Discard { block: "low".into(), stretches }
}

fn commands() -> [(Command, Vec<u8>); 8] {
    let sizes = PageSizes { summary: 0x20_1000, target: 0x1000 };
    [
        (Command::PostcopyAdvise(Some(sizes)), b"\x08\0\x03\0\x10\0\0\0\0\0\x20\x10\0\0\0\0\0\0\0\x10\0".to_vec()),
        (Command::PostcopyAdvise(None), b"\x08\0\x03\0\0".to_vec()),
        (Command::PostcopyListen, b"\x08\0\x04\0\0".to_vec()),
        (Command::PostcopyRun, b"\x08\0\x05\0\0".to_vec()),
        (Command::PostcopyRamDiscard(discard()), [b"\x08\0\x06\0\x26", DISCARD].concat()),
        (Command::Packaged(0x102), b"\x08\0\x07\0\x04\0\0\x01\x02".to_vec()),
        (Command::PostcopyResume, b"\x08\0\x09\0\0".to_vec()),
        (Command::RecvBitmap("low".into()), b"\x08\0\x0a\0\x04\x03low".to_vec()),
    ]
}

fn requests() -> [(PageRequest, Vec<u8>); 2] {
    [
        (
            PageRequest { block: Some("low".into()), start: 0x1_0000_1000, len: 0x1000 },
            b"\0\x03\0\x10\0\0\0\x01\0\0\x10\0\0\0\x10\0\x03low".to_vec(),
        ),
        (
            PageRequest { block: None, start: 0x2000, len: 0x20_0000 },
            b"\0\x04\0\x0c\0\0\0\0\0\0\x20\0\0\x20\0\0".to_vec(),
        ),
    ]
}

/// As the wire decodes: more bytes may follow.
fn open(bytes: &[u8]) -> Reader<'_> {
    Reader::new(bytes, 0, Strictness::Strict, Limits::default())
}

#[test]
fn commands_byte_for_byte() {
    for (command, bytes) in commands() {
        let (mut out, element) = (Vec::new(), Element::Command(command));
        element.write(&mut out);
        assert_eq!(out, bytes);
        let mut input = Reader::strict(&bytes);
        assert_eq!(Element::read(&mut input).unwrap(), element);
        assert!(input.rest().is_empty());
        for length in 0..bytes.len() {
            assert!(Element::read(&mut open(&bytes[..length])).unwrap_err().is_incomplete(), "{element:?}: {length}");
        }
    }
}

#[test]
fn requests_byte_for_byte() {
    for (request, bytes) in requests() {
        let mut out = Vec::new();
        request.write(&mut out);
        assert_eq!(out, bytes);
        assert_eq!(Returned::read(&mut open(&bytes)).unwrap(), Returned::Pages(request));
        for length in 0..bytes.len() {
            assert!(Returned::read(&mut open(&bytes[..length])).unwrap_err().is_incomplete(), "{length}");
        }
        // In pre-copy, no request is allowed.
        assert_eq!(Reply::read(&mut open(&bytes)).unwrap_err().kind(), ErrorKind::Incompatible);
    }
    let pong = Returned::read(&mut open(b"\0\x02\0\x04\0\0\0\x07")).unwrap();
    assert_eq!(pong, Returned::Reply(Reply::Pong(7)));
}

/// `migrate_send_rp_recv_bitmap`, `migrate_send_rp_resume_ack` (migration/migration.c), `ramblock_recv_bitmap_send` (migration/ram.c).
#[test]
fn answers_of_a_recovery_byte_for_byte() {
    let answers = [
        (Returned::Bitmap("low".into()), b"\0\x05\0\x04\x03low".to_vec()),
        (Returned::ResumeAck, b"\0\x06\0\x04\0\0\0\x01".to_vec()),
    ];
    for (answer, bytes) in answers {
        let mut out = Vec::new();
        answer.write(&mut out);
        assert_eq!(out, bytes);
        assert_eq!(Returned::read(&mut open(&bytes)).unwrap(), answer);
        for length in 0..bytes.len() {
            assert!(Returned::read(&mut open(&bytes[..length])).unwrap_err().is_incomplete(), "{length}");
        }
        assert_eq!(Reply::read(&mut open(&bytes)).unwrap_err().kind(), ErrorKind::Incompatible);
    }
    // Of 70 pages the first, the last but one and the last; page 64 is bit 0 of the second word's first byte.
    let mut received = PageSet::empty(70);
    [0, 68, 69].into_iter().for_each(|page| received.insert(page));
    let bytes = b"\0\0\0\0\0\0\0\x10\
        \x01\0\0\0\0\0\0\0\x30\0\0\0\0\0\0\0\
        \x01\x23\x45\x67\x89\xab\xcd\xef";
    let mut out = Vec::new();
    put_received(&received, &mut out);
    assert_eq!(out, bytes);
    assert_eq!(read_received(&mut open(bytes), 70).unwrap(), received);
    // Bits of a word after the last page are not pages.
    let mut beyond = bytes.to_vec();
    beyond[16] = 0xf0;
    assert_eq!(read_received(&mut open(&beyond), 70).unwrap(), received);
    for length in 0..bytes.len() {
        assert!(read_received(&mut open(&bytes[..length]), 70).unwrap_err().is_incomplete(), "{length}");
    }
    let refused = [
        (bytes.to_vec(), 64, "a bitmap of 8 bytes expected, got 16"),
        ([&bytes[..31], b"\0"].concat(), 70, "the ending of a bitmap"),
    ];
    for (bytes, pages, expected) in refused {
        let error = read_received(&mut open(&bytes), pages).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn what_does_not_fit_is_named_and_waits_for_no_more() {
    let named = |length: u8, name: &[u8]| [&[0, 3, 0, length], &[0; 12][..], name].concat();
    let dropped = |payload: &[u8]| [&[8, 0, 6, 0, payload.len() as u8], payload].concat();
    let elements = [
        (b"\x08\0\x03\0\x08".to_vec(), "command POSTCOPY_ADVISE has 0 or 16 bytes, got 8"),
        (b"\x08\0\x04\0\x01".to_vec(), "command POSTCOPY_LISTEN has 0 bytes, got 1"),
        (b"\x08\0\x07\0\0".to_vec(), "command PACKAGED has 4 bytes, got 0"),
        (b"\x08\0\x09\0\x01".to_vec(), "command POSTCOPY_RESUME has 0 bytes, got 1"),
        (b"\x08\0\x0a\0\0".to_vec(), "a payload of 0 bytes ends before it is whole"),
        (b"\x08\0\x0a\0\x05\x03lowe".to_vec(), "1 bytes behind the name low"),
        (dropped(b""), "a payload of 0 bytes ends before it is whole"),
        (dropped(b"\x01"), "a discard of version 0 expected, got 1"),
        (dropped(b"\0\xff"), "a payload of 2 bytes ends before it is whole"),
        (dropped(b"\0\x03low\x01"), "a NUL behind the name low expected"),
        (dropped(b"\0\0\0"), "the name that ends here is empty"),
        (dropped(&DISCARD[..6]), "a payload of 6 bytes ends before it is whole"),
        (dropped(&DISCARD[..37]), "a payload of 37 bytes ends before it is whole"),
    ];
    for (bytes, expected) in elements {
        let error = Element::read(&mut open(&bytes)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let messages = [
        (b"\0\x04\0\x0b\0\0\0\0\0\0\0\0\0\0\0".to_vec(), "a payload of 11 bytes ends before it is whole"),
        ([b"\0\x04\0\x0d", &[0; 13][..]].concat(), "1 bytes behind a request for pages"),
        (named(12, b""), "a payload of 12 bytes ends before it is whole"),
        (named(13, b"\0"), "the name that ends here is empty"),
        (named(15, b"\x03lo"), "a payload of 15 bytes ends before it is whole"),
        (named(17, b"\x03lowe"), "1 bytes behind a request for pages"),
        (b"\0\x05\0\0".to_vec(), "a payload of 0 bytes ends before it is whole"),
        (b"\0\x06\0\x02\0\x01".to_vec(), "return path message RESUME_ACK has 4 bytes, got 2"),
        (b"\0\x06\0\x04\0\0\0\0".to_vec(), "RESUME_ACK of 1 expected, got 0"),
        (b"\0\x07\0\0".to_vec(), "return path message SWITCHOVER_ACK is not supported"),
    ];
    for (bytes, expected) in messages {
        let error = Returned::read(&mut open(&bytes)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// A command with the largest number of ranges: the claimed bytes have arrived before memory is allocated for them.
#[test]
fn the_longest_discard() {
    let stretches = vec![Stretch { start: 0, len: 4096 }; 4095];
    let command = Command::PostcopyRamDiscard(Discard { block: "low".into(), stretches });
    let mut bytes = Vec::new();
    Element::Command(command.clone()).write(&mut bytes);
    assert_eq!(bytes.len(), 5 + 6 + 4095 * 16);
    assert_eq!(Element::read(&mut open(&bytes)).unwrap(), Element::Command(command));
}

/// A load that does not support post-copy refuses the command by name.
#[test]
fn a_load_refuses_each_command() {
    for (command, bytes) in commands() {
        let stream = [HEAD, &bytes, b"\0"].concat();
        let loaded = load(&stream, Strictness::QemuCompatible, &mut Sections::new());
        let error = loaded.unwrap_err();
        assert_eq!((error.kind(), error.offset()), (ErrorKind::Incompatible, Some(16)), "{command:?}");
        assert!(error.to_string().contains("is not supported: turn its capability off at the source"), "{error}");
    }
}

/// A stream as QEMU's source sends it: the devices and the command to run in a package, followed by pages.
#[test]
fn the_inspector_shows_all_of_it() {
    let ram = b"\x03ram\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\x20\x04\x03low\0\0\0\0\0\0\x20\0\0\0\0\0\0\0\0\x10";
    let mut package = Vec::new();
    Element::Command(Command::PostcopyListen).write(&mut package);
    package.extend(b"\x04\0\0\0\x02\x04disk\0\0\0\0\0\0\0\x01\xaa");
    put_footer(&mut package, 2);
    Element::Command(Command::Ping(3)).write(&mut package);
    Element::Command(Command::PostcopyRun).write(&mut package);

    let mut stream = Vec::new();
    put_header(&mut stream);
    stream.extend(b"\x07\0\0\0\x03toy");
    stream.extend(&commands()[0].1);
    stream.extend(b"\x01\0\0\0\x01");
    stream.extend(ram);
    put_footer(&mut stream, 1);
    stream.extend(&commands()[4].1);
    Element::Command(Command::Packaged(package.len() as u32)).write(&mut stream);
    stream.extend(&package);
    stream.extend(b"\x03\0\0\0\x01\0\0\0\0\0\0\x10\x02\x03low\0\0\0\0\0\0\0\0\x10");
    put_footer(&mut stream, 1);
    stream.push(0);

    let dump = Dump::read(&stream);
    assert!(dump.damage.is_none(), "{:?}", dump.damage);
    let shown = dump.entries.iter().map(|entry| match entry {
        Entry::Command { command, .. } => format!("{command:?}"),
        Entry::Section(section) => format!("{} {:?}", section.header.idstr, section.part),
        Entry::Eof { .. } => "end".to_owned(),
    });
    let expected = [
        "PostcopyAdvise(Some(PageSizes { summary: 2101248, target: 4096 }))",
        "ram Start",
        "PostcopyRamDiscard(Discard { block: \"low\", stretches: [Stretch { start: 4096, len: 8192 }, \
         Stretch { start: 65536, len: 4096 }] })",
        &format!("Packaged({})", package.len()),
        "PostcopyListen",
        "disk Full",
        "Ping(3)",
        "PostcopyRun",
        "ram End",
        "end",
    ];
    assert_eq!(shown.collect::<Vec<_>>(), expected);
    assert_eq!(dump.ram.blocks()[0].pages.zero, 1);
}
