//! Section `dirty-bitmap`, compared with a stream of QEMU's, and with the writes of a guest.

mod mapped;

use proptest::prelude::*;
use serde_json::Value;
use vmstate::codec::Piece;

use self::mapped::mapping;
use super::*;

/// A stream of QEMU 10.0.2; the `README.md` beside it says what is in it.
const QEMU: &str = include_str!("../../../tests/fixtures/qemu-10.0-dirty-bitmap.jsonl");

fn qemu(part: usize) -> Vec<u8> {
    let line: Value = serde_json::from_str(QEMU.lines().nth(part).unwrap()).unwrap();
    let hex = line["body"].as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn put(does: impl FnOnce(&mut Outbox)) -> Vec<u8> {
    let mut out = Outbox::new();
    does(&mut out);
    out.pieces().flat_map(|piece| if let Piece::Bytes(bytes) = piece { bytes.to_vec() } else { panic!() }).collect()
}

fn load(section: &mut BitmapSection, body: Body, bytes: &[u8]) -> Result<Record> {
    let mut input = Reader::strict(bytes);
    loop {
        let record = match body {
            Body::Start => section.load_start(&mut input, 1)?,
            Body::Part => section.load_part(&mut input, 1)?,
            Body::End => section.load_end(&mut input, 1)?,
        };
        if record != Record::More {
            assert!(input.rest().is_empty(), "bytes behind the last record");
            return Ok(record);
        }
    }
}

/// A machine with disks of these sizes, without bitmaps.
fn machine(disks: &[u64]) -> (Vec<Arc<Bitmaps>>, BitmapSection) {
    let disks: Vec<_> = disks.iter().map(|bytes| Arc::new(Bitmaps::new(*bytes))).collect();
    let section = BitmapSection::new(disks.clone(), true);
    (disks, section)
}

/// A bitmap as users see it: its name, its granularity, whether it records, whether it is busy, and its dirty clusters.
type Seen = (String, u32, bool, bool, Vec<u64>);

fn seen(disk: &Bitmaps) -> Vec<Seen> {
    disk.each(|bitmap| {
        let bit = |cluster: &u64| bitmap.words()[(cluster / 64) as usize] >> (cluster % 64) & 1 == 1;
        let dirty: Vec<_> = (0..bitmap.words().len() as u64 * 64).filter(bit).collect();
        assert_eq!(bitmap.dirty_bytes(), dirty.len() as u64 * u64::from(bitmap.granularity()));
        (bitmap.name().to_owned(), bitmap.granularity(), bitmap.is_recording(), bitmap.is_busy(), dirty)
    })
}

/// Records of a body that are not all zeros, with the names of disk and bitmap.
fn records(bytes: &[u8]) -> Vec<(String, String, Content)> {
    let (mut input, mut names, mut all) = (Reader::strict(bytes), (String::new(), String::new()), Vec::new());
    while !input.rest().is_empty() {
        let record = record::read(&mut input).unwrap();
        record.node.into_iter().for_each(|node| names.0 = node.to_owned());
        record.name.into_iter().for_each(|name| names.1 = name.to_owned());
        let zeros = matches!(&record.content, Content::Bits(chunk) if chunk.words.is_empty());
        if !zeros && record.content != Content::End {
            all.push((names.0.clone(), names.1.clone(), record.content));
        }
    }
    all
}

const DISKS: [u64; 2] = [0x60_1200, 600 << 20];

#[test]
fn a_stream_of_qemu_loads_and_is_sent_with_the_same_records() {
    let (disks, mut section) = machine(&DISKS);
    assert_eq!(load(&mut section, Body::Start, &qemu(0)).unwrap(), Record::Last);
    let busy = disks[0].set_recording("b", false).unwrap_err();
    assert_eq!(busy.to_string(), "Bitmap 'b' is currently in use by another operation and cannot be used");
    // A QEMU whose guest is stopped sends such parts.
    assert_eq!(load(&mut section, Body::Part, &[1]).unwrap(), Record::Last);
    assert_eq!(load(&mut section, Body::End, &qemu(1)).unwrap(), Record::Last);
    disks.iter().for_each(|disk| disk.arrived());
    section.cleanup();
    let bitmap = |name: &str, granularity, recording, dirty: &[u64]| -> Seen {
        (name.into(), granularity, recording, false, dirty.into())
    };
    assert_eq!(seen(&disks[0]), [bitmap("b", 65536, true, &[0, 1, 96]), bitmap("c", 512, true, &[127, 128, 12288])]);
    assert_eq!(seen(&disks[1]), [bitmap("b", 65536, false, &[]), bitmap("d", 65536, true, &[9584])]);

    // QEMU sends the newest bitmap first, as the bitmaps were added there.
    let (disks, mut section) = machine(&DISKS);
    for (disk, name, granularity, recording) in
        [(0, "b", 65536, true), (0, "c", 512, true), (1, "b", 65536, false), (1, "d", 65536, true)]
    {
        disks[disk].add(name, granularity, recording).unwrap();
    }
    [(0, 65535, 2), (0, 6 << 20, 512), (1, 599 << 20, 512)]
        .into_iter()
        .for_each(|(disk, offset, len): (usize, _, _)| disks[disk].mark(offset, len));
    assert!(section.is_needed());
    assert_eq!(put(|out| section.setup(out).unwrap()), qemu(0));
    section.sync().unwrap();
    let part = put(|out| assert!(section.iterate(out, u64::MAX).unwrap()));
    let end = put(|out| section.complete(out).unwrap());
    assert_eq!(records(&[&part[..part.len() - 1], &end].concat()), records(&qemu(1)));
}

#[test]
fn without_bitmaps_nothing_is_sent_and_the_start_of_a_qemu_is_the_whole_section() {
    let (disks, mut section) = machine(&DISKS);
    assert!(!section.is_needed());
    assert_eq!(load(&mut section, Body::Start, &[1]).unwrap(), Record::Whole);
    disks[0].add("b", 512, true).unwrap();
    assert!(section.is_needed());
    assert!(!BitmapSection::new(disks, false).is_needed());
}

#[test]
fn bitmaps_stay_at_a_source_whose_migration_fails_and_go_from_its_destination() {
    let (disks, mut source) = machine(&[1 << 20]);
    disks[0].add("b", 4096, true).unwrap();
    disks[0].mark(5000, 1);
    for complete in [false, true] {
        let (there, mut destination) = machine(&[1 << 20]);
        load(&mut destination, Body::Start, &put(|out| source.setup(out).unwrap())).unwrap();
        assert!(matches!(disks[0].clear("b"), Err(BitmapError::Busy(_))));
        assert!(matches!(disks[0].remove("b"), Err(BitmapError::Busy(_))));
        source.sync().unwrap();
        if complete {
            load(&mut destination, Body::Part, &put(|out| assert!(source.iterate(out, 0).unwrap()))).unwrap();
            load(&mut destination, Body::End, &put(|out| source.complete(out).unwrap())).unwrap();
        }
        assert_eq!(seen(&there[0]).len(), 1);
        source.cleanup();
        destination.cleanup();
        assert!(seen(&there[0]).is_empty());
        assert_eq!(seen(&disks[0]), [("b".into(), 4096, true, false, vec![1])]);
    }
}

/// The guest runs at the destination before all bits have arrived, as with a QEMU in post-copy.
#[test]
fn bits_that_arrive_late_are_added_to_the_writes_since() {
    let (disks, mut source) = machine(&[1 << 20]);
    disks[0].add("b", 4096, true).unwrap();
    disks[0].add("c", 4096, true).unwrap();
    disks[0].mark(5000, 1);
    let (there, mut destination) = machine(&[1 << 20]);
    load(&mut destination, Body::Start, &put(|out| source.setup(out).unwrap())).unwrap();
    there[0].arrived();
    there[0].mark(0, 1);
    source.sync().unwrap();
    load(&mut destination, Body::Part, &put(|out| assert!(source.iterate(out, u64::MAX).unwrap()))).unwrap();
    assert!(seen(&there[0]).iter().all(|bitmap| bitmap.3));
    load(&mut destination, Body::End, &put(|out| source.complete(out).unwrap())).unwrap();
    destination.cleanup();
    let bitmap = |name: &str| -> Seen { (name.into(), 4096, true, false, vec![0, 1]) };
    assert_eq!(seen(&there[0]), [bitmap("b"), bitmap("c")], "in the order of the stream");
}

/// With records lost, the bitmaps would lack dirty clusters.
#[test]
fn bitmaps_that_arrive_late_are_removed_when_the_connection_breaks() {
    let (disks, mut source) = machine(&[1 << 20]);
    disks[0].add("b", 4096, true).unwrap();
    disks[0].mark(5000, 1);
    let (there, mut destination) = machine(&[1 << 20]);
    assert!(destination.may_end_in_postcopy());
    load(&mut destination, Body::Start, &put(|out| source.setup(out).unwrap())).unwrap();
    there[0].arrived();
    destination.interrupted();
    assert!(seen(&there[0]).is_empty());
    there[0].add("b", 4096, true).unwrap();
    source.sync().unwrap();
    load(&mut destination, Body::Part, &put(|out| assert!(source.iterate(out, u64::MAX).unwrap()))).unwrap();
    load(&mut destination, Body::End, &put(|out| source.complete(out).unwrap())).unwrap();
    destination.cleanup();
    assert_eq!(seen(&there[0]), [("b".into(), 4096, true, false, vec![])], "the user's own bitmap");
}

/// A record of flags, names, and bytes.
fn record(flags: u8, names: &[&str], rest: &[&[u8]]) -> Vec<u8> {
    let names = names.iter().flat_map(|name| [&[name.len() as u8], name.as_bytes()].concat());
    [vec![flags], names.collect(), rest.concat()].concat()
}

#[test]
fn records_that_no_source_sends_are_refused_with_their_place() {
    let (begin, bits) = (0x1c, 0x4c);
    let granularity = |bytes: u32, flags: u8| [&bytes.to_be_bytes()[..], &[flags]].concat();
    let range = |start: u64, sectors: u32| [&start.to_be_bytes()[..], &sectors.to_be_bytes()].concat();
    let words = |words: &[u64]| {
        let length = (words.len() as u64 * 8).to_be_bytes().to_vec();
        [length, words.iter().flat_map(|word| word.to_le_bytes()).collect()].concat()
    };
    let b = ["virtio0", "b"];
    let long = "x".repeat(255);
    for (body, bytes, why) in [
        (Body::Start, record(0x80, &[], &[]), "0x80 are no flags of a dirty bitmap's record"),
        (Body::Start, record(0x00, &[], &[]), "0x00 are no flags"),
        (Body::Start, record(0x05, &["b"], &[]), "0x05 are no flags"),
        (Body::Start, record(0x1c | 0x20, &b, &[]), "0x3c are no flags"),
        (Body::Start, record(0x10, &[], &[&granularity(512, 1)]), "the first record names no disk"),
        (
            Body::Start,
            record(0x18, &["virtio0"], &[&granularity(512, 1)]),
            "the first record of a disk names no bitmap",
        ),
        (Body::Start, record(0x14, &["b"], &[&granularity(512, 1)]), "the first record names no disk"),
        (Body::Start, record(begin, &["disk0", "b"], &[&granularity(512, 1)]), "the disks here are called virtio0:"),
        (Body::Start, record(begin, &["virtio1", "b"], &[&granularity(512, 1)]), "its disk 'virtio1'"),
        (Body::Start, record(begin, &["virtio0", ""], &[&granularity(512, 1)]), "Bitmap name cannot be empty"),
        (Body::Start, record(begin, &b, &[&granularity(0, 1)]), "Granularity must be power of 2"),
        (Body::Start, record(begin, &b, &[&granularity(513, 1)]), "Granularity must be power of 2"),
        (Body::Start, record(begin, &b, &[&granularity(512, 9)]), "0x09 has unknown flags of a bitmap"),
        (Body::Start, record(begin, &b, &[&granularity(512, 3)]), "a raw image has no place for it"),
        (Body::Start, record(begin, &["virtio0", "here"], &[&granularity(512, 1)]), "Bitmap already exists: here"),
        (Body::Start, record(bits | 2, &b, &[&range(0, 64)]), "bitmaps begin in the section's START"),
        (Body::Part, record(begin, &b, &[&granularity(512, 1)]), "bitmaps begin in the section's START"),
        (Body::Part, record(bits | 2, &["virtio0", "nope"], &[&range(0, 64)]), "Dirty bitmap 'nope' not found"),
        (Body::Part, record(bits | 2, &["virtio0", "here"], &[&range(0, 64)]), "does not arrive in this migration"),
        (Body::Part, record(0x2c, &["virtio0", "here"], &[]), "does not arrive in this migration"),
        (Body::Part, record(bits | 2, &["virtio0", "a"], &[&range(0, 0)]), "0 sectors from 0 on are no whole words"),
        (Body::Part, record(bits | 2, &["virtio0", "a"], &[&range(8, 64)]), "64 sectors from 8 on are no whole words"),
        (Body::Part, record(bits | 2, &["virtio0", "a"], &[&range(0, 8)]), "8 sectors from 0 on are no whole words"),
        (Body::Part, record(bits | 2, &["virtio0", "a"], &[&range(1536, 1024)]), "are not on the disk"),
        (Body::Part, record(bits | 2, &["virtio0", "a"], &[&range(!511, 512)]), "are not on the disk"),
        (Body::Part, record(bits, &["virtio0", "a"], &[&range(0, 512), &words(&[])]), "0 bytes of bits"),
        (Body::Part, record(bits, &["virtio0", "a"], &[&range(0, 512), &[0, 0, 0, 0, 0, 0, 0, 9]]), "9 bytes of bits"),
        (Body::Part, record(bits, &["virtio0", "a"], &[&range(0, 512), &[255; 8]]), "bytes of bits are in one record"),
        (
            Body::Part,
            record(bits, &["virtio0", "a"], &[&range(0, 1024), &words(&[1])]),
            "1 words were sent for 1024 sectors",
        ),
        (Body::Part, record(bits, &["virtio0", "a"], &[&range(0, 512), &words(&[1, 0, 0, 0, 0])]), "5 words were sent"),
        (
            Body::Part,
            record(bits, &["virtio0", "a"], &[&range(0, 512), &words(&[1, 1])]),
            "bits beyond its end are set",
        ),
        (Body::Part, record(bits, &["virtio0", "a"], &[&range(2048, 9), &words(&[4])]), "bits beyond its end are set"),
        (Body::End, vec![1], "1 bitmaps are not complete at the end of the section"),
        (Body::End, record(0x2c, &["virtio0", "a"], &[&[0x20]]), "the bitmap 'a' is complete, or"),
        (Body::Part, [&[0x4e, 7][..], b"virtio\xff"].concat(), "a name is no UTF-8"),
        (Body::Part, record(0x2c, &["virtio0", &long], &[]), "not found"),
    ] {
        // A disk with an incomplete word and an incomplete cluster at its end.
        let (disks, mut section) = machine(&[(2048 + 9) * 512]);
        disks[0].add("here", 4096, true).unwrap();
        if body != Body::Start {
            let begins = [record(begin, &["virtio0", "a"], &[&granularity(4096, 1)]), vec![1]].concat();
            load(&mut section, Body::Start, &begins).unwrap();
        }
        let before = seen(&disks[0]);
        let error = load(&mut section, body, &bytes).unwrap_err().to_string();
        assert!(error.contains(why), "{bytes:x?}: {error}, not {why:?}");
        assert!(body == Body::End || seen(&disks[0]) == before, "{why}");
        section.cleanup();
        assert_eq!(seen(&disks[0]), [("here".into(), 4096, true, false, vec![])], "{why}");
    }
}

proptest! {
    /// A load of damaged bodies changes no bitmap of a user.
    #[test]
    fn damaged_bodies_change_nothing_else(
        changes in prop::collection::vec((0..3000usize, any::<u8>()), 0..6),
        cut in 0..3000usize,
        interrupted in any::<bool>(),
        mapped in any::<bool>(),
    ) {
        let (disks, mut section) = machine(&DISKS);
        if mapped {
            section = section.mapped(mapping(&[
                ("virtio1", "virtio1", &[("b", "b", None), ("other", "d", None)]),
                ("virtio0", "virtio0", &[("c", "b", Some(false)), ("b", "c", None)]),
            ]));
        }
        disks[1].add("here", 4096, true).unwrap();
        disks[1].mark(0, 1);
        let before = seen(&disks[1]);
        let mut bodies = [qemu(0), qemu(1)];
        for (at, byte) in changes {
            let first = bodies[0].len();
            let body = &mut bodies[usize::from(at % 2 == 1)];
            let at = (at / 2).min(if at % 2 == 1 { usize::MAX } else { first }) % body.len();
            body[at] = byte;
        }
        bodies[1].truncate(cut.max(1));
        let started = load_any(&mut section, Body::Start, &bodies[0]);
        if interrupted {
            disks.iter().for_each(|disk| disk.arrived());
            section.interrupted();
        }
        if started {
            load_any(&mut section, Body::End, &bodies[1]);
        }
        section.cleanup();
        prop_assert!(seen(&disks[0]).is_empty());
        prop_assert_eq!(seen(&disks[1]), before);
    }
}

/// Reads records up to an error, the end of the body or the end of the bytes. True if the body ended.
fn load_any(section: &mut BitmapSection, body: Body, bytes: &[u8]) -> bool {
    let mut input = Reader::strict(bytes);
    loop {
        match section.take(&mut input, body) {
            Ok(Record::More) => {}
            outcome => return outcome.is_ok(),
        }
    }
}

/// A name of 256 bytes has no length byte; users may give a bitmap such a name.
#[test]
fn a_bitmap_with_a_long_name_is_not_sent() {
    let (disks, mut section) = machine(&[1 << 20]);
    disks[0].add(&"x".repeat(256), 512, true).unwrap();
    let error = section.setup(&mut Outbox::new()).unwrap_err();
    section.cleanup();
    assert!(error.to_string().contains("more than 255 bytes"), "{error}");
    disks[0].clear(&"x".repeat(256)).unwrap();
}

/// Bytes of the disk of the next test: more than a chunk at the smallest granularity, and incomplete words and clusters.
const BYTES: u64 = (9 << 20) + 0x1200;

proptest! {
    /// Whatever the guest writes between the steps of the source, the destination has the same bitmaps in the end.
    #[test]
    fn all_bits_arrive(
        bitmaps in prop::collection::vec((9..32u32, any::<bool>()), 1..5),
        steps in prop::collection::vec((0..4u8, 0..BYTES, 1..BYTES), 1..60),
        wide in 0..3u32,
    ) {
        let (disks, mut source) = machine(&[BYTES, BYTES]);
        for (index, (shift, recording)) in bitmaps.iter().enumerate() {
            disks[index % 2].add(&format!("b{}", index / 2), 1 << shift, *recording).unwrap();
        }
        disks[0].mark(BYTES / 2, 1);
        let (there, mut destination) = machine(&[BYTES, BYTES]);
        load(&mut destination, Body::Start, &put(|out| source.setup(out).unwrap())).unwrap();
        for (kind, offset, len) in steps {
            match kind {
                0 => source.sync().unwrap(),
                1 => {
                    let part = put(|out| {
                        source.iterate(out, 2000).unwrap();
                    });
                    load(&mut destination, Body::Part, &part).unwrap();
                }
                _ => disks[usize::from(kind % 2)].mark(offset, (len >> (8 * wide)).min(BYTES - offset)),
            }
        }
        source.sync().unwrap();
        loop {
            let mut over = false;
            let part = put(|out| over = source.iterate(out, 2000).unwrap());
            load(&mut destination, Body::Part, &part).unwrap();
            if over {
                break;
            }
        }
        prop_assert_eq!(source.pending(), 0);
        load(&mut destination, Body::End, &put(|out| source.complete(out).unwrap())).unwrap();
        source.cleanup();
        there.iter().for_each(|disk| disk.arrived());
        destination.cleanup();
        for (here, there) in disks.iter().zip(&there) {
            let (sent, mut arrived) = (seen(here), seen(there));
            // The newest is sent first, and so becomes the oldest.
            arrived.reverse();
            prop_assert_eq!(sent, arrived);
        }
    }
}

/// The number of sectors of a chunk has 32 bits, so a chunk of large clusters has fewer of them.
#[test]
fn chunks_of_the_largest_clusters_fit() {
    let bytes = 1 << 45;
    let (disks, mut source) = machine(&[bytes]);
    disks[0].add("b", 1 << 31, true).unwrap();
    disks[0].mark(0, bytes);
    let (there, mut destination) = machine(&[bytes]);
    load(&mut destination, Body::Start, &put(|out| source.setup(out).unwrap())).unwrap();
    source.sync().unwrap();
    load(&mut destination, Body::Part, &put(|out| assert!(source.iterate(out, u64::MAX).unwrap()))).unwrap();
    load(&mut destination, Body::End, &put(|out| source.complete(out).unwrap())).unwrap();
    assert_eq!(there[0].with("b", |bitmap| bitmap.dirty_bytes()), Ok(bytes));
}
