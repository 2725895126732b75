//! Section `dirty-bitmap`, for two disks of which one has a bitmap of a user.
//!
//! ```text
//! START's body: length (2 bytes), bytes
//! steps: kind, and
//!   kind % 8 = 0, 1, 2: a body of a PART
//!   kind % 8 = 3: the body of END
//!   kind % 8 = 4: the guest writes: disk, offset (4 bytes), length (2 bytes)
//!   kind % 8 = 5: the guest runs here
//!   kind % 8 = 6: the connection is lost in post-copy
//!   kind % 8 = 7: the migration ends
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use minivmm::devices::virtio::blk::{Bitmaps, SECTOR};
use minivmm::migration::bitmaps::BitmapSection;
use vmstate::codec::{Outbox, Piece, Reader};
use vmstate::section::{IterativeSection, Record};
use vmstate::{ErrorKind, Result};

use crate::program::Program;

/// Bytes of the disks. The first one ends with an incomplete word, which has an incomplete cluster. An input can make some
/// hundred bitmaps, so the disks are small.
const DISKS: [u64; 2] = [(2048 + 9) * SECTOR, 128 << 10];
/// The user's bitmap, on the first disk.
const OWN: &str = "own";

/// A bitmap of the model, and as users see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    granularity: u32,
    recording: bool,
    busy: bool,
    dirty: BTreeSet<u64>,
}

/// A reader of accepted records, which checks nothing.
#[derive(Default)]
struct Model {
    bitmaps: BTreeMap<(usize, String), Seen>,
    /// Bitmaps that are still to be completed.
    incomplete: BTreeSet<(usize, String)>,
    /// Bitmaps that become free when the guest runs here.
    arriving: BTreeSet<(usize, String)>,
    disk: usize,
    name: String,
    runs: bool,
    lost: bool,
}

impl Model {
    /// Reads an accepted record.
    fn take(&mut self, record: &[u8]) {
        if self.lost {
            return;
        }
        let mut rest = record;
        let mut bytes = |count: usize| rest.split_off(..count).expect("an accepted record is whole");
        let flags = bytes(1)[0];
        let mut name = |flag: u8| {
            (flags & flag != 0).then(|| {
                let len = bytes(1)[0];
                String::from_utf8(bytes(len.into()).to_vec()).expect("an accepted name")
            })
        };
        if let Some(node) = name(0x08) {
            self.disk = node.strip_prefix("virtio").and_then(|index| index.parse().ok()).expect("a disk");
        }
        if let Some(name) = name(0x04) {
            self.name = name;
        }
        let mut number = |count: usize| bytes(count).iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let place = (self.disk, self.name.clone());
        match flags & 0xf3 {
            0x10 => {
                let (granularity, flags) = (number(4) as u32, number(1));
                let seen = Seen { granularity, recording: flags & 1 != 0, busy: true, dirty: BTreeSet::new() };
                let other = self.bitmaps.insert(place.clone(), seen);
                assert!(other.is_none(), "a bitmap was replaced");
                self.incomplete.insert(place.clone());
                self.arriving.insert(place);
            }
            0x20 => {
                assert!(self.incomplete.remove(&place), "a bitmap was completed twice");
                if self.runs {
                    self.free(&place);
                }
            }
            0x40 => {
                let (start, _sectors, len) = (number(8), number(4), number(8));
                let words = bytes(len as usize);
                let bitmap = self.bitmaps.get_mut(&place).expect("a bitmap");
                let first = start * SECTOR / u64::from(bitmap.granularity);
                let set = (0..len * 8).filter(|bit| words[(bit / 8) as usize] >> (bit % 8) & 1 == 1);
                bitmap.dirty.extend(set.map(|bit| first + bit));
            }
            // Zeros, and the end of a body.
            _ => {}
        }
    }

    fn free(&mut self, place: &(usize, String)) {
        self.arriving.remove(place);
        self.bitmaps.get_mut(place).expect("a bitmap").busy = false;
    }

    fn write(&mut self, disk: usize, offset: u64, len: u64) {
        let end = (offset + len).min(DISKS[disk]);
        for (_, bitmap) in self.bitmaps.iter_mut().filter(|((of, _), bitmap)| *of == disk && bitmap.recording) {
            let cluster = u64::from(bitmap.granularity);
            bitmap.dirty.extend((offset..end).map(|at| at / cluster));
        }
    }

    fn runs(&mut self) {
        self.runs = true;
        let complete: Vec<_> = self.arriving.difference(&self.incomplete).cloned().collect();
        complete.iter().for_each(|place| self.free(place));
    }

    fn end(&mut self) {
        for place in std::mem::take(&mut self.arriving) {
            self.bitmaps.remove(&place);
        }
        self.incomplete.clear();
    }
}

/// The bitmaps of the machine.
fn seen(disks: &[Arc<Bitmaps>]) -> BTreeMap<(usize, String), Seen> {
    let mut all = BTreeMap::new();
    for (index, disk) in disks.iter().enumerate() {
        disk.each(|bitmap| {
            let words = (0..).zip(bitmap.words()).filter(|(_, word)| **word != 0);
            let bits = words.flat_map(|(index, word)| (0..64).map(move |bit| (index * 64 + bit, word >> bit & 1 == 1)));
            let dirty: BTreeSet<u64> = bits.filter(|(_, is_set)| *is_set).map(|(cluster, _)| cluster).collect();
            let (granularity, recording, busy) = (bitmap.granularity(), bitmap.is_recording(), bitmap.is_busy());
            assert_eq!(bitmap.dirty_bytes(), dirty.len() as u64 * u64::from(granularity), "count of dirty clusters");
            assert!(dirty.last().is_none_or(|last| last * u64::from(granularity) < DISKS[index]), "behind the disk");
            all.insert((index, bitmap.name().to_owned()), Seen { granularity, recording, busy, dirty });
        });
    }
    all
}

/// Reads one record.
type Load = fn(&mut BitmapSection, &mut Reader<'_>, u32) -> Result<Record>;

/// Loads a body up to its end or an error, and gives the model each accepted record.
fn load(section: &mut BitmapSection, model: &mut Model, bytes: &[u8], load: Load) -> Result<Record> {
    let mut input = Reader::strict(bytes);
    loop {
        let before = input.rest();
        let record = load(section, &mut input, 1)?;
        model.take(&before[..before.len() - input.rest().len()]);
        if record != Record::More {
            return Ok(record);
        }
    }
}

fn part<'a>(program: &mut Program<'a>) -> &'a [u8] {
    let len = program.u16();
    program.bytes(len.into())
}

pub(super) fn run(program: &mut Program<'_>) {
    let disks: Vec<_> = DISKS.iter().map(|bytes| Arc::new(Bitmaps::new(*bytes))).collect();
    disks[0].add(OWN, 4096, true).expect("a bitmap");
    let mut section = BitmapSection::new(disks.clone(), false);
    let mut model = Model { bitmaps: seen(&disks), ..Model::default() };
    let begun = load(&mut section, &mut model, part(program), BitmapSection::load_start);
    let mut open = matches!(begun, Ok(Record::Last));
    while let Some((kind, _)) = program.operation() {
        match kind % 8 {
            0..=2 if open => {
                let loaded = load(&mut section, &mut model, part(program), BitmapSection::load_part);
                // A destination in post-copy waits for the rest of a body that a lost connection has cut.
                open = loaded.is_ok() || loaded.is_err_and(|error| error.kind() == ErrorKind::Incomplete);
            }
            3 if open => {
                open = false;
                let loaded = load(&mut section, &mut model, part(program), BitmapSection::load_end);
                assert!(
                    loaded.is_err() || model.incomplete.is_empty(),
                    "the end came before all bitmaps were complete"
                );
            }
            4 => {
                let disk = usize::from(program.u8() % 2);
                let offset = u64::from(program.u32()) % DISKS[disk];
                let len = u64::from(program.u16() % 2048);
                disks[disk].mark(offset, len);
                model.write(disk, offset, len);
            }
            5 => {
                disks.iter().for_each(|disk| disk.arrived());
                model.runs();
            }
            6 => {
                section.interrupted();
                model.end();
                model.lost = true;
            }
            7 => break,
            _ => {}
        }
        assert_eq!(seen(&disks), model.bitmaps);
    }
    assert_eq!(seen(&disks), model.bitmaps);
    section.cleanup();
    model.end();
    assert_eq!(seen(&disks), model.bitmaps);
    assert!(model.bitmaps.contains_key(&(0, OWN.into())), "the user's bitmap is gone");
    move_on(&disks, model.bitmaps);
}

/// The guest goes on to a third machine, which must have the same bitmaps.
fn move_on(disks: &[Arc<Bitmaps>], mut expected: BTreeMap<(usize, String), Seen>) {
    let third: Vec<_> = DISKS.iter().map(|bytes| Arc::new(Bitmaps::new(*bytes))).collect();
    let mut source = BitmapSection::new(disks.to_vec(), true);
    let mut section = BitmapSection::new(third.clone(), false);
    let mut model = Model::default();
    let put = |does: &mut dyn FnMut(&mut Outbox) -> Result<()>| {
        let mut out = Outbox::new();
        does(&mut out).expect("bitmaps that arrived can leave");
        out.pieces()
            .flat_map(|piece| if let Piece::Bytes(bytes) = piece { bytes.to_vec() } else { Vec::new() })
            .collect()
    };
    let start: Vec<u8> = put(&mut |out| source.setup(out));
    source.sync().expect("bitmaps");
    let rounds: Vec<u8> = put(&mut |out| source.iterate(out, u64::MAX).map(|_| ()));
    let end: Vec<u8> = put(&mut |out| source.complete(out));
    source.cleanup();
    load(&mut section, &mut model, &start, BitmapSection::load_start).expect("START");
    load(&mut section, &mut model, &rounds, BitmapSection::load_part).expect("PART");
    load(&mut section, &mut model, &end, BitmapSection::load_end).expect("END");
    third.iter().for_each(|disk| disk.arrived());
    section.cleanup();
    expected.values_mut().for_each(|bitmap| bitmap.busy = false);
    assert_eq!(seen(&third), expected, "the bitmaps of the next machine");
}
