//! Section `minivmm/disk`: the content of a small disk.
//!
//! ```text
//! byte 0: bit 0: START's body follows (16 bytes), otherwise the disk's own size, and no data
//! steps: kind, and
//!   kind % 8 = 0: data with a right checksum: sector (2 bytes), sectors (1 byte), shift of the offset (1 byte), fill
//!   kind % 8 = 1: zeros with a right checksum: sector, sectors (2 bytes each)
//!   kind % 8 = 2, 3: a record of any bytes: length (2 bytes), bytes
//!   kind % 8 = 4: all is written back
//!   kind % 8 = 5: the body of a PART ends
//!   kind % 8 = 6, 7: the body of END with a number of records: as many more as the step's high bits say
//! ```

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use minivmm::devices::virtio::blk::{GRANULE, Image, Mark, SECTOR};
use minivmm::migration::disk::{Arrival, DiskSection};
use rustix::fs::{MemfdFlags, memfd_create};
use vmstate::Result;
use vmstate::codec::Reader;
use vmstate::section::{IterativeSection, Record};

use crate::program::Program;

/// A disk of two granules and a part of one.
const BYTES: u64 = 2 * GRANULE + 0x1200;
const DATA: u8 = 1;
const ZEROS: u8 = 2;

/// CRC-32 bit by bit, by its definition (IEEE 802.3, reflected).
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

/// Makes a record with its checksum.
pub(super) fn change(kind: u8, offset: u64, len: u64, data: &[u8]) -> Vec<u8> {
    let head = [&[kind][..], &offset.to_be_bytes(), &len.to_be_bytes()].concat();
    [&head, &crc(&[&head, data].concat()).to_be_bytes()[..], data].concat()
}

/// The disk as it should be.
struct Model {
    content: Vec<u8>,
    records: u64,
}

impl Model {
    /// Reads an accepted record, and checks what the loader must have checked.
    fn take(&mut self, record: &[u8]) {
        let Some((&kind @ (DATA | ZEROS), rest)) = record.split_first() else { return };
        let number = |at: usize| u64::from_be_bytes(*rest[at..].first_chunk().expect("an accepted record is whole"));
        let (offset, len, data) = (number(0), number(8), &rest[20..]);
        assert_eq!(
            u32::from_be_bytes(*rest[16..].first_chunk().expect("a checksum")),
            crc(&[&record[..17], data].concat())
        );
        let range = &mut self.content[offset as usize..][..len as usize];
        if kind == DATA {
            range.copy_from_slice(data)
        } else {
            range.fill(0)
        }
        self.records += 1;
    }
}

struct World {
    file: File,
    section: DiskSection,
    model: Model,
    /// Whether START was accepted, and nothing was refused since.
    open: bool,
}

impl World {
    fn load(
        &mut self,
        bytes: &[u8],
        load: fn(&mut DiskSection, &mut Reader<'_>, u32) -> Result<Record>,
    ) -> Option<Record> {
        let mut input = Reader::strict(bytes);
        let loaded = load(&mut self.section, &mut input, 1);
        if loaded.is_ok() {
            self.model.take(&bytes[..bytes.len() - input.rest().len()]);
        }
        self.open = loaded.is_ok();
        loaded.ok()
    }

    fn record(&mut self, bytes: &[u8]) {
        self.load(bytes, DiskSection::load_part);
    }

    /// Whether the section takes this record, which is right but for its place.
    fn change(&mut self, kind: u8, offset: u64, len: u64, data: &[u8]) {
        let granules = (offset / GRANULE, (offset + len).saturating_sub(1) / GRANULE);
        let fits = len > 0 && offset.is_multiple_of(SECTOR) && offset + len <= BYTES;
        let expected = fits && (kind == ZEROS || granules.0 == granules.1);
        self.record(&change(kind, offset, len, data));
        assert_eq!(self.open, expected, "{len:#x} bytes at {offset:#x}");
    }

    fn check(&self) {
        let mut content = vec![0; BYTES as usize];
        self.file.read_exact_at(&mut content, 0).expect("the image has its size");
        assert!(content == self.model.content, "the image differs from the model");
    }
}

pub(super) fn run(program: &mut Program<'_>) {
    let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.set_len(BYTES).expect("memory");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let image = Arc::new(Image::open(Path::new(&path), false).expect("an image"));
    // Recorded here even where files in memory have no attributes.
    let _ = image.mark(Mark::Incomplete);
    let section = DiskSection::new(&image);
    let mut world = World { file, section, model: Model { content: vec![0; BYTES as usize], records: 0 }, open: false };
    let own = [BYTES.to_be_bytes(), [0; 8]].concat();
    let start = if program.u8() & 1 == 0 { &own } else { program.bytes(16) };
    let begun = world.section.load_start(&mut Reader::strict(start), 1);
    world.open = begun.is_ok();
    assert!(!world.open || start[..8] == BYTES.to_be_bytes(), "a disk of another size was accepted");
    while world.open
        && let Some((kind, more)) = program.operation()
    {
        match kind % 8 {
            0 => {
                let (sector, sectors, shift) = (program.u16(), program.u8(), program.u8());
                let (offset, len) = (u64::from(sector) * SECTOR + u64::from(shift), u64::from(sectors) * SECTOR);
                let data = vec![program.u8(); len as usize];
                world.change(DATA, offset, len, &data);
            }
            1 => {
                let (sector, sectors) = (u64::from(program.u16()), u64::from(program.u16()));
                world.change(ZEROS, sector * SECTOR, sectors * SECTOR, &[]);
            }
            2 | 3 => {
                let len = program.u16();
                world.record(program.bytes(len.into()));
            }
            4 => world.record(&[3]),
            5 => world.record(&[0]),
            _ => {
                let sent = world.model.records + u64::from(more);
                world.load(&[&[0][..], &sent.to_be_bytes()].concat(), DiskSection::load_end);
                assert_eq!(world.open, more == 0, "{more} records are missing");
                assert_eq!(world.section.arrival() == Arrival::Whole, more == 0);
                break;
            }
        }
        world.check();
    }
    world.check();
    world.section.cleanup();
}
