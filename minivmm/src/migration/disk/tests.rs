//! Section `minivmm/disk`, compared with bytes written by hand, and with a model of a disk in memory.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use vmstate::codec::{Limits, Piece, Strictness};

use super::*;
use crate::devices::virtio::blk::{GRANULE, SECTOR};

/// A disk of three granules and a part of one.
const BYTES: u64 = 3 * GRANULE + 0x5000;

fn image(bytes: u64) -> (tempfile::NamedTempFile, Arc<Image>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    let image = Arc::new(Image::open(file.path(), false).unwrap());
    image.mark(Mark::Incomplete).unwrap();
    (file, image)
}

fn bytes(out: &Outbox) -> Vec<u8> {
    out.pieces().flat_map(|piece| if let Piece::Bytes(bytes) = piece { bytes.to_vec() } else { panic!() }).collect()
}

fn put(does: impl FnOnce(&mut Outbox)) -> Vec<u8> {
    let mut out = Outbox::new();
    does(&mut out);
    bytes(&out)
}

/// CRC-32 bit by bit, by its definition (IEEE 802.3, reflected).
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

/// Makes a record with its checksum.
fn change(kind: u8, offset: u64, len: u64, data: &[u8]) -> Vec<u8> {
    let head = [&[kind][..], &offset.to_be_bytes(), &len.to_be_bytes()].concat();
    [&head, &crc(&[&head, data].concat()).to_be_bytes()[..], data].concat()
}

fn start(bytes: u64, data: u64) -> Vec<u8> {
    [bytes.to_be_bytes(), data.to_be_bytes()].concat()
}

fn load(section: &mut DiskSection, body: &[u8], is_end: bool) -> Result<()> {
    let mut input = Reader::new(body, 0, Strictness::Strict, Limits::default());
    loop {
        let record = match is_end {
            true => section.load_end(&mut input, 1)?,
            false => section.load_part(&mut input, 1)?,
        };
        if record == Record::Last {
            assert!(input.rest().is_empty(), "bytes behind the last record");
            return Ok(());
        }
    }
}

fn load_start(section: &mut DiskSection, body: &[u8]) -> Result<()> {
    section.load_start(&mut Reader::strict(body), 1).map(|record| assert_eq!(record, Record::Last))
}

fn allocated(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

#[test]
fn the_bytes_are_those_of_the_documented_format() {
    assert_eq!(crc(b"123456789"), 0xcbf4_3926, "the check value of CRC-32");
    let (_file, image) = image(BYTES);
    image.write(&[7; 4096], GRANULE + 4096).unwrap();
    let mut section = DiskSection::new(&image);
    assert_eq!(put(|out| section.setup(out).unwrap()), start(BYTES, 4096));
    section.sync().unwrap();
    let part = put(|out| assert!(section.iterate(out, u64::MAX).unwrap()));
    let records = [
        change(2, GRANULE, 4096, &[]),
        change(1, GRANULE + 4096, 4096, &[7; 4096]),
        change(2, GRANULE + 8192, GRANULE - 8192, &[]),
        b"\x03\0".to_vec(),
    ];
    assert_eq!(part, records.concat());
    // A hole is one record, however long.
    image.punch(GRANULE, 2 * GRANULE).unwrap();
    section.sync().unwrap();
    let part = put(|out| assert!(section.iterate(out, u64::MAX).unwrap()));
    assert_eq!(part, [change(2, GRANULE, 2 * GRANULE, &[]), b"\0".to_vec()].concat());
    assert_eq!(put(|out| section.complete(out).unwrap()), b"\0\0\0\0\0\0\0\0\x04");
}

/// The oracle is the file: its size, its data in blocks, and the granules that hold them.
#[test]
fn the_figures_are_those_of_the_file() {
    let (file, image) = image(BYTES);
    image.write(&[7; 6000], GRANULE - 3000).unwrap();
    image.write(&[7; 512], 3 * GRANULE + 0x4e00).unwrap();
    let content = std::fs::read(file.path()).unwrap();
    let holding =
        |size: u64| content.chunks(size as usize).filter(|chunk| chunk.iter().any(|byte| *byte != 0)).count() as u64;
    let total = content.len() as u64;
    let (data, granules) = (holding(4096) * 4096, holding(GRANULE) * GRANULE);
    assert_eq!((data, granules), (3 * 4096, 3 * GRANULE));
    let mut section = DiskSection::new(&image);
    let count = section.count();
    let expected = |transferred, remaining| DiskFigures { total, transferred, remaining };
    put(|out| section.setup(out).unwrap());
    assert_eq!(count.figures(), expected(0, granules));
    section.sync().unwrap();
    put(|out| assert!(!section.iterate(out, 1).unwrap()));
    assert_eq!(count.figures(), expected(4096, granules - GRANULE));
    put(|out| assert!(section.iterate(out, u64::MAX).unwrap()));
    assert_eq!(count.figures(), expected(data, 0));
    // The guest writes a block twice, and one that becomes a hole.
    image.write(&[8; 512], GRANULE - 4096).unwrap();
    image.write(&[9; 512], GRANULE - 512).unwrap();
    image.punch(3 * GRANULE, 0x5000).unwrap();
    assert_eq!(count.figures(), expected(data, 0));
    section.sync().unwrap();
    assert_eq!(count.figures(), expected(data, 2 * GRANULE));
    put(|out| section.complete(out).unwrap());
    section.cleanup();
    assert_eq!(count.figures(), expected(data + 4096, 0));
    // Another attempt begins anew.
    put(|out| section.setup(out).unwrap());
    assert_eq!(count.figures(), expected(0, 2 * GRANULE));
    // The last granule is shorter.
    image.write(&vec![7; BYTES as usize], 0).unwrap();
    section.sync().unwrap();
    assert_eq!(count.figures(), expected(0, total));
    assert_eq!(
        count.figures() + count.figures(),
        DiskFigures { total: 2 * total, transferred: 0, remaining: 2 * total }
    );
}

/// A place behind the end of a truncated file has no data, as a hole has none. Sent as zeros, it would be lost for the guest.
#[test]
fn a_truncated_image_is_not_sent_as_zeros() {
    for len in [0, 4096, GRANULE, GRANULE + 0x1200, BYTES - 512] {
        let (file, image) = image(BYTES);
        image.write(&[7; 4096], 0).unwrap();
        image.write(&[8; 4096], BYTES - 4096).unwrap();
        let mut section = DiskSection::new(&image);
        put(|out| section.setup(out).unwrap());
        section.sync().unwrap();
        file.as_file().set_len(len).unwrap();
        let error = section.iterate(&mut Outbox::new(), u64::MAX).unwrap_err().to_string();
        assert!(error.contains("could not be read: "), "{error}");
        let error = section.setup(&mut Outbox::new()).unwrap_err().to_string();
        assert!(error.contains(&format!("could not be read: it was truncated to {len} bytes")), "{error}");
    }
}

/// A file system in a file, mounted from a loop device until this is dropped.
struct Mounted {
    file: tempfile::NamedTempFile,
    at: tempfile::TempDir,
}

impl Mounted {
    /// `None` if this process may not mount a file system.
    fn new(bytes: u64) -> Option<Self> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        assert!(Self::run("mkfs.ext4", &["-q", "-F"], file.path()));
        let at = tempfile::tempdir().unwrap();
        if Self::mount(file.path(), at.path()) {
            return Some(Self { file, at });
        }
        vmstate_lab::skip::skip("this process may not mount a file system");
        None
    }

    fn mount(file: &Path, at: &Path) -> bool {
        Self::run("mount", &["-o", "loop", file.to_str().unwrap()], at)
    }

    /// Mounts the file system again: nothing of it is in the page cache.
    fn mount_again(&self) {
        assert!(Self::run("umount", &[], self.at.path()) && Self::mount(self.file.path(), self.at.path()));
    }

    fn run(program: &str, arguments: &[&str], path: &Path) -> bool {
        Command::new(program).args(arguments).arg(path).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let is_unmounted = Self::run("umount", &[], self.at.path());
        assert!(is_unmounted || std::thread::panicking(), "{} stays mounted", self.at.path().display());
    }
}

/// The kernel answers EIO to a read of a loop device behind the end of its file (`lo_complete_rq`, drivers/block/loop.c).
#[test]
fn a_disk_that_fails_ends_the_migration_and_no_zeros_are_sent_in_place_of_its_data() {
    const FILE_SYSTEM: u64 = 16 << 20;
    let Some(mounted) = Mounted::new(FILE_SYSTEM) else { return };
    let path = mounted.at.path().join("disk.img");
    std::fs::write(&path, vec![7; 4 * GRANULE as usize]).unwrap();
    // The data that was just written would be read from the page cache.
    mounted.mount_again();
    let image = Arc::new(Image::open(&path, false).unwrap());
    let mut section = DiskSection::new(&image);
    put(|out| section.setup(out).unwrap());
    section.sync().unwrap();
    mounted.file.as_file().set_len(0).unwrap();
    let mut out = Outbox::new();
    let error = section.iterate(&mut out, u64::MAX).unwrap_err().to_string();
    mounted.file.as_file().set_len(FILE_SYSTEM).unwrap();
    assert!(error.contains(&format!("{} could not be read: Input/output error", path.display())), "{error}");
    assert_eq!(bytes(&out), b"");
}

#[test]
fn what_no_source_sends_is_refused_and_changes_nothing() {
    let (file, image) = image(BYTES);
    let mut section = DiskSection::new(&image);
    image.unmark().unwrap();
    let error = load_start(&mut section, &start(BYTES, 0)).unwrap_err();
    assert!(error.to_string().contains("was here before"), "{error}");
    image.mark(Mark::Incomplete).unwrap();
    for (body, what) in
        [(start(BYTES + 512, 0), "give create=217600"), (start(BYTES, BYTES + 1), "bytes of data on a disk of")]
    {
        let error = load_start(&mut section, &body).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(section.arrival(), Arrival::None);
    }
    load_start(&mut section, &start(BYTES, 0)).unwrap();
    let sector = [1; 512];
    let mut damaged = change(1, 0, 512, &sector);
    damaged[300] ^= 4;
    let mut displaced = change(1, 512, 512, &sector);
    displaced[7] ^= 8;
    let mut longer = change(2, 512, 512, &[]);
    longer[15] ^= 8;
    for (record, what) in [
        (vec![4], "0x04 begins no record"),
        (change(1, 256, 512, &sector), "no whole sectors"),
        (change(1, 0, 256, &sector[..256]), "no whole sectors"),
        (change(1, 0, 0, &[]), "no whole sectors"),
        (change(2, 0, 0, &[]), "no whole sectors"),
        (change(1, BYTES, 512, &sector), "beyond its end"),
        (change(2, BYTES - 512, 1024, &[]), "beyond its end"),
        (change(1, u64::MAX - 511, 512, &sector), "beyond its end"),
        (change(2, 512, u64::MAX - 511, &[]), "beyond its end"),
        (change(1, GRANULE - 512, 1024, &[1; 1024]), "more than one granule"),
        (change(1, 0, GRANULE + 512, &[]), "more than one granule"),
        (damaged, "damaged on the way"),
        (displaced, "damaged on the way"),
        (longer, "damaged on the way"),
    ] {
        let error = load(&mut section, &record, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed, "{error}");
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!((section.arrival(), allocated(file.path())), (Arrival::Part(0), 0), "{error}");
    }
    // Half a record waits for the rest.
    let record = change(1, 0, 512, &sector);
    for cut in 0..record.len() {
        assert_eq!(load(&mut section, &record[..cut], false).unwrap_err().kind(), ErrorKind::Incomplete);
    }
    assert_eq!((section.arrival(), allocated(file.path())), (Arrival::Part(0), 0));
    for sent in [0_u64, 2] {
        load_start(&mut section, &start(BYTES, 0)).unwrap();
        let end = [&record[..], b"\0", &sent.to_be_bytes()].concat();
        let error = load(&mut section, &end, true).unwrap_err();
        assert!(error.to_string().contains(&format!("the source has sent {sent} records")), "{error}");
        assert_eq!(section.arrival(), Arrival::Part(1));
    }
}

/// A source, a destination, and the model of the disk.
struct Pair {
    files: [tempfile::NamedTempFile; 2],
    source: DiskSection,
    destination: DiskSection,
    model: Vec<u8>,
}

impl Pair {
    fn new() -> Self {
        let [(one, source), (other, destination)] = [image(BYTES), image(BYTES)];
        let (source, destination) = (DiskSection::new(&source), DiskSection::new(&destination));
        Self { files: [one, other], source, destination, model: vec![0; BYTES as usize] }
    }

    fn begin(&mut self) {
        let body = put(|out| self.source.setup(out).unwrap());
        load_start(&mut self.destination, &body).unwrap();
    }

    /// Sends a part. Returns its bytes of data, and whether the round is over.
    fn part(&mut self, budget: u64) -> (u64, bool) {
        let mut over = false;
        let body = put(|out| over = self.source.iterate(out, budget).unwrap());
        load(&mut self.destination, &body, false).unwrap();
        // A granule of 16 blocks has at most 16 records, one of which is in the estimate; and the part has its own end.
        let heads = (body.len() as u64).div_ceil(GRANULE + 21) * 15 * 21 + 2;
        ((body.len() as u64).saturating_sub(heads), over)
    }

    /// Finishes the copy while the guest is stopped.
    fn finish(&mut self) {
        self.source.sync().unwrap();
        while !self.part(GRANULE).1 {}
        assert_eq!(self.source.pending(), 0);
        let body = put(|out| self.source.complete(out).unwrap());
        load(&mut self.destination, &body, true).unwrap();
        self.source.cleanup();
        assert_eq!(self.destination.arrival(), Arrival::Whole);
    }

    fn guest(&mut self, what: Guest) {
        let (image, model) = (&self.source.image, &mut self.model);
        let range = |sector: u64, sectors: u64| {
            let offset = sector * SECTOR;
            offset..(offset + sectors * SECTOR).min(BYTES)
        };
        let (range, byte) = match what {
            Guest::Writes(sector, sectors, byte) => {
                let range = range(sector, sectors);
                image.write(&vec![byte; (range.end - range.start) as usize], range.start).unwrap();
                (range, byte)
            }
            Guest::Discards(sector, sectors) => {
                let range = range(sector, sectors);
                image.punch(range.start, range.end - range.start).unwrap();
                (range, 0)
            }
            Guest::Zeroes(sector, sectors) => {
                let range = range(sector, sectors);
                image.zero(range.start, range.end - range.start).unwrap();
                (range, 0)
            }
        };
        model[range.start as usize..range.end as usize].fill(byte);
    }

    fn destination(&self) -> Vec<u8> {
        std::fs::read(self.files[1].path()).unwrap()
    }
}

/// Writes of the guest, in sectors, at least one.
#[derive(Clone, Copy, Debug)]
enum Guest {
    Writes(u64, u64, u8),
    Discards(u64, u64),
    Zeroes(u64, u64),
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Guest(Guest),
    Sync,
    Part(u64),
}

fn guest() -> impl Strategy<Value = Guest> {
    let sector = || 0..BYTES / SECTOR;
    // Zeros are written, too.
    prop_oneof![
        4 => (sector(), 1..64_u64, 0..4_u8).prop_map(|(sector, sectors, byte)| Guest::Writes(sector, sectors, byte)),
        1 => (sector(), 1..400_u64).prop_map(|(sector, sectors)| Guest::Discards(sector, sectors)),
        1 => (sector(), 1..400_u64).prop_map(|(sector, sectors)| Guest::Zeroes(sector, sectors)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => guest().prop_map(Step::Guest),
        1 => Just(Step::Sync),
        3 => (0..3 * GRANULE).prop_map(Step::Part),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the guest writes, and whenever, the copy is equal to the disk, and uses no more space than its data.
    #[test]
    fn the_copy_is_what_the_guest_has_written(
        before in prop::collection::vec(guest(), 0..8),
        steps in prop::collection::vec(step(), 0..30),
        rest in prop::collection::vec(guest(), 0..4),
    ) {
        let mut pair = Pair::new();
        before.into_iter().for_each(|what| pair.guest(what));
        pair.begin();
        let (mut expected, mut sent) = (pair.source.pending(), 0);
        for step in steps {
            match step {
                Step::Guest(what) => pair.guest(what),
                Step::Sync => {
                    pair.source.sync().unwrap();
                    (expected, sent) = (pair.source.pending(), 0);
                }
                Step::Part(budget) => sent += pair.part(budget).0,
            }
            prop_assert!(sent <= expected, "{sent} bytes of {expected} in a round");
        }
        rest.into_iter().for_each(|what| pair.guest(what));
        pair.finish();
        prop_assert!(pair.destination() == pair.model, "the copy differs");
        let data = pair.model.chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64 * 4096;
        // The file system may need a block for its own metadata.
        prop_assert!(allocated(pair.files[1].path()) <= data + 4096, "{} bytes for {data}", allocated(pair.files[1].path()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The same for an image of this host.
    #[test]
    fn the_copy_on_this_host_is_what_the_guest_has_written(
        before in prop::collection::vec(guest(), 0..8),
        steps in prop::collection::vec(step(), 0..30),
        rest in prop::collection::vec(guest(), 0..4),
    ) {
        let mut pair = Pair::new();
        before.into_iter().for_each(|what| pair.guest(what));
        let place = tempfile::NamedTempFile::new().unwrap();
        let copy = Image::locked(place.reopen().unwrap(), place.path(), BYTES).unwrap();
        let mut copy = DiskCopy::new(&pair.source.image, copy);
        copy.begin().unwrap();
        prop_assert_eq!(copy.image().marked(), Some(Mark::Incomplete));
        for step in steps {
            match step {
                Step::Guest(what) => pair.guest(what),
                Step::Sync => copy.sync().unwrap(),
                Step::Part(budget) => drop(copy.iterate(budget).unwrap()),
            }
        }
        rest.into_iter().for_each(|what| pair.guest(what));
        copy.sync().unwrap();
        copy.complete().unwrap();
        prop_assert_eq!(copy.pending(), 0);
        copy.finish().unwrap();
        prop_assert_eq!(copy.image().marked(), None);
        prop_assert!(std::fs::read(place.path()).unwrap() == pair.model, "the copy differs");
        let data = pair.model.chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64 * 4096;
        prop_assert!(allocated(place.path()) <= data + 4096, "{} bytes for {data}", allocated(place.path()));
    }
}

#[test]
fn what_another_source_has_sent_is_dropped() {
    let mut pair = Pair::new();
    load_start(&mut pair.destination, &start(BYTES, 0)).unwrap();
    load(&mut pair.destination, &[change(1, 512, 512, &[9; 512]), vec![0]].concat(), false).unwrap();
    assert_eq!((pair.destination()[512], pair.destination.arrival()), (9, Arrival::Part(1)));
    pair.guest(Guest::Writes(200, 1, 5));
    // The source's first attempt fails, and the next one sends everything.
    for _ in 0..2 {
        pair.begin();
        assert_eq!((allocated(pair.files[1].path()), pair.destination.arrival()), (0, Arrival::Part(0)));
        pair.source.sync().unwrap();
        assert!(pair.part(u64::MAX).1);
        pair.source.cleanup();
    }
    pair.begin();
    pair.finish();
    assert!(pair.destination() == pair.model, "the copy differs");
}

#[test]
fn a_file_system_without_room_is_found_at_the_start() {
    const HUGE: u64 = 8 << 40;
    let (_file, image) = image(HUGE);
    let room = image.room().unwrap();
    if room.is_none_or(|room| room >= HUGE) {
        return vmstate_lab::skip::skip("the file system of temporary files has room for 8 TiB, or does not tell");
    }
    let error = load_start(&mut DiskSection::new(&image), &start(HUGE, HUGE)).unwrap_err();
    assert!(error.to_string().contains("make room there"), "{error}");
    load_start(&mut DiskSection::new(&image), &start(HUGE, 1 << 20)).unwrap();
}
