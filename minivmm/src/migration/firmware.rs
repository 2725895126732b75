//! Memory of QEMU's firmware in a migration: RAM blocks that a QEMU sends besides the guest's RAM, kept for the next QEMU.
//!
//! `pc.bios` is what a guest in QEMU sees at [`SEGMENT`] instead of its RAM there, and may write (`x86_bios_rom_init`,
//! hw/i386/x86-common.c; `microvm` makes it RAM). In minivmm the guest has RAM there, so that part of its RAM is the block. The
//! `/rom@…` blocks are files that firmware reads through fw_cfg (`rom_add_blob`, hw/core/loader.c): no guest has them in its
//! memory.
//!
//! Names and lengths come from a peer; the limits here bound what is kept.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};

use vmstate::ram::RamBlock;
use vmstate::{Error, ErrorKind};

use crate::memory::Ram;
use crate::sync::lock;

/// Guest addresses, and offsets in the guest's RAM, at which the guest sees `pc.bios`.
pub const SEGMENT: Range<u64> = 0xe_0000..0x10_0000;

/// QEMU's name of the block at this address.
pub const BIOS: &str = "pc.bios";
/// Prefix of the blocks' names, with the folder of QEMU's own files.
const FILES: &str = "/rom@etc/";
/// Longest name of a file in fw_cfg (`FW_CFG_MAX_FILE_PATH`, include/standard-headers/linux/qemu_fw_cfg.h).
const FILE_NAME_MAX: usize = 56;
/// Longest file (`ACPI_BUILD_TABLE_MAX_SIZE`, hw/i386/acpi-microvm.c's tables among them).
const FILE_MAX: u64 = 2 << 20;
/// Most files. QEMU's `microvm` has three.
const FILES_MAX: usize = 8;

/// Firmware blocks of one machine, in the order of their arrival. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Firmware(Arc<Mutex<Vec<Block>>>);

#[derive(Clone, Debug, PartialEq)]
enum Block {
    /// `pc.bios`: the guest's RAM at [`SEGMENT`].
    Segment,
    File {
        name: String,
        bytes: Vec<u8>,
    },
}

/// Storage of a kept block.
pub(super) enum Place {
    /// In the guest's RAM, from this offset on.
    Ram(u64),
    /// In this list.
    Kept,
}

impl Firmware {
    /// Forgets all blocks, before another machine arrives.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Copies the blocks, so that they are no longer shared.
    pub(super) fn to_own(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// Declares the guest's RAM at [`SEGMENT`] to be a block.
    pub(super) fn add_segment(&self) {
        let mut blocks = self.lock();
        if !blocks.contains(&Block::Segment) {
            blocks.push(Block::Segment);
        }
    }

    /// Index of the segment's block, if there is one.
    pub(super) fn segment(&self) -> Option<usize> {
        self.lock().iter().position(|block| *block == Block::Segment)
    }

    /// Names and lengths of the blocks.
    pub(super) fn blocks(&self) -> Vec<RamBlock> {
        let block = |block: &Block| match block {
            Block::Segment => RamBlock { name: BIOS.into(), len: SEGMENT.end - SEGMENT.start },
            Block::File { name, bytes } => RamBlock { name: name.clone(), len: bytes.len() as u64 },
        };
        self.lock().iter().map(block).collect()
    }

    /// Adds a source's block, if it is one of QEMU's firmware.
    ///
    /// # Errors
    /// The block is longer than such a block can be, or there are too many blocks.
    pub(super) fn adopt(&self, name: &str, len: u64) -> vmstate::Result<bool> {
        let mut blocks = self.lock();
        if name == BIOS {
            let expected = SEGMENT.end - SEGMENT.start;
            if len != expected {
                let message = format!(
                    "RAM block {BIOS} has {len} bytes and {expected} are kept here: start QEMU with its own microvm firmware"
                );
                return Err(Error::new(ErrorKind::Incompatible, message));
            }
            blocks.push(Block::Segment);
            return Ok(true);
        }
        if !is_file(name) {
            return Ok(false);
        }
        let files = blocks.iter().filter(|block| **block != Block::Segment).count();
        if len > FILE_MAX || files == FILES_MAX {
            let message = format!(
                "RAM block {name} of {len} bytes is not kept here: {FILES_MAX} files of QEMU's firmware are, of {FILE_MAX} bytes \
                 at most"
            );
            return Err(Error::new(ErrorKind::Incompatible, message));
        }
        blocks.push(Block::File { name: name.to_owned(), bytes: vec![0; len as usize] });
        Ok(true)
    }

    /// Storage of block `index`.
    ///
    /// # Errors
    /// No block has this index.
    pub(super) fn place(&self, index: usize) -> vmstate::Result<Place> {
        match self.lock().get(index) {
            Some(Block::Segment) => Ok(Place::Ram(SEGMENT.start)),
            Some(Block::File { .. }) => Ok(Place::Kept),
            None => Err(outside()),
        }
    }

    /// Destination of QEMU's mode `cpr-transfer`, once the source's guest is stopped: reads the blocks that the source listed from
    /// the files `of` their names, the guest's part into `ram`. A minivmm has sent the others.
    ///
    /// # Errors
    /// A block has no file, or the file cannot be read.
    pub fn read_transferred<'f>(&self, ram: &Ram, of: impl Fn(&str) -> Option<&'f File>) -> io::Result<()> {
        for (index, block) in self.blocks().iter().enumerate() {
            let place = self.place(index).map_err(io::Error::other)?;
            let file = match (of(&block.name), &place) {
                (Some(file), _) => file,
                (None, Place::Kept) => continue,
                (None, Place::Ram(_)) => {
                    return Err(io::Error::other(format!("RAM block {} was not passed", block.name)));
                }
            };
            let mut bytes = vec![0; block.len as usize];
            file.read_exact_at(&mut bytes, 0)?;
            match place {
                Place::Ram(start) => ram.write(start, &bytes).map_err(io::Error::other)?,
                Place::Kept => self.write(index, 0, &bytes).map_err(io::Error::other)?,
            }
        }
        Ok(())
    }

    /// Copies out of a file's block.
    ///
    /// # Errors
    /// The range is outside of the block.
    pub(super) fn read(&self, index: usize, offset: u64, into: &mut [u8]) -> vmstate::Result<()> {
        self.with(index, offset, into.len(), |bytes| into.copy_from_slice(bytes))
    }

    /// Copies into a file's block.
    ///
    /// # Errors
    /// The range is outside of the block.
    pub(super) fn write(&self, index: usize, offset: u64, from: &[u8]) -> vmstate::Result<()> {
        self.with(index, offset, from.len(), |bytes| bytes.copy_from_slice(from))
    }

    fn with(&self, index: usize, offset: u64, len: usize, act: impl FnOnce(&mut [u8])) -> vmstate::Result<()> {
        let mut blocks = self.lock();
        let Some(Block::File { bytes, .. }) = blocks.get_mut(index) else { return Err(outside()) };
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let range = start..start.checked_add(len).ok_or_else(outside)?;
        bytes.get_mut(range).map(act).ok_or_else(outside)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Block>> {
        lock(&self.0)
    }
}

/// Whether a block of QEMU's firmware may have this name.
pub fn is_firmware(name: &str) -> bool {
    name == BIOS || is_file(name)
}

/// Whether the name is that of a file that QEMU itself makes: `/rom@etc/` and a path of plain characters.
fn is_file(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    let Some(path) = name.strip_prefix(FILES) else { return false };
    let file = &name[FILES.len() - "etc/".len()..];
    !path.is_empty() && file.len() < FILE_NAME_MAX && path.bytes().all(plain)
}

fn outside() -> Error {
    Error::new(ErrorKind::Misuse, "a block of firmware was addressed outside of its bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(name: &str, len: u64) -> Result<bool, String> {
        Firmware::default().adopt(name, len).map_err(|error| error.to_string())
    }

    #[test]
    fn the_blocks_of_qemus_microvm_are_kept_and_others_are_not() {
        for (name, len) in [
            ("pc.bios", 128 << 10),
            ("/rom@etc/acpi/tables", 4096),
            ("/rom@etc/table-loader", 4096),
            ("/rom@etc/acpi/rsdp", 4096),
            ("/rom@etc/acpi/tables", 2 << 20),
            ("/rom@etc/smbios/smbios-tables", 0),
        ] {
            assert_eq!(taken(name, len), Ok(true), "{name}");
        }
        let long = format!("/rom@etc/{}", "a".repeat(52));
        assert_eq!(taken(&long[..long.len() - 1], 4096), Ok(true));
        for name in [
            "",
            "pc.rom",
            "pc.bios2",
            "0000:00:02.0/pc.bios",
            "/rom@",
            "/rom@etc",
            "/rom@etc/",
            "/rom@genroms/kvmvapic.bin",
            "rom@etc/acpi/tables",
            "/rom@etc/a b",
            "/rom@etc/a\0",
            "/rom@etc/\u{e4}",
            "/rom@etc/a\n",
            &long,
            &"/rom@etc/a".repeat(25),
        ] {
            assert_eq!(taken(name, 4096), Ok(false), "{name:?}");
        }
    }

    #[test]
    fn lengths_and_number_are_bounded() {
        for len in [0, 4096, (128 << 10) - 4096, (128 << 10) + 4096, 256 << 10, u64::MAX] {
            let refusal = taken("pc.bios", len).unwrap_err();
            assert!(refusal.contains(&format!("pc.bios has {len} bytes and 131072 are kept")), "{refusal}");
        }
        for len in [(2 << 20) + 1, u64::MAX] {
            let refusal = taken("/rom@etc/acpi/tables", len).unwrap_err();
            assert!(refusal.contains("of 2097152 bytes at most"), "{refusal}");
        }
        let firmware = Firmware::default();
        assert!(firmware.adopt("pc.bios", 128 << 10).unwrap());
        for n in 0..8 {
            assert!(firmware.adopt(&format!("/rom@etc/{n}"), 0).unwrap());
        }
        let refusal = firmware.adopt("/rom@etc/8", 0).unwrap_err().to_string();
        assert!(refusal.contains("8 files"), "{refusal}");
        assert_eq!(firmware.blocks().len(), 9);
        firmware.clear();
        assert!(firmware.blocks().is_empty());
    }

    #[test]
    fn a_file_is_what_was_written_and_has_an_end() {
        let firmware = Firmware::default();
        firmware.adopt("/rom@etc/a", 0x2000).unwrap();
        firmware.adopt("pc.bios", 128 << 10).unwrap();
        firmware.write(0, 0x1000, &[7; 4096]).unwrap();
        let own = firmware.to_own();
        firmware.write(0, 0, &[9; 4096]).unwrap();
        let mut both = [1; 2];
        own.read(0, 0xfff, &mut both).unwrap();
        assert_eq!(both, [0, 7]);
        for (index, offset) in [(0, 0x1fff), (0, 0x2000), (0, u64::MAX), (1, 0), (2, 0)] {
            own.read(index, offset, &mut both).unwrap_err();
            own.write(index, offset, &both).unwrap_err();
        }
        assert_eq!(own.segment(), Some(1));
        assert!(matches!(own.place(1), Ok(Place::Ram(0xe_0000))));
        assert!(own.place(2).is_err());
    }
}
