//! The memory that is moved: at the source, at the destination, and in a file for QEMU.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use minivmm::memory::Ram;

use crate::case::Data;

pub(crate) const MIB: u64 = 1 << 20;

/// Memory of both ends, all of it touched. The file goes with it.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) data: Data,
    pub(crate) source: Ram,
    pub(crate) target: Ram,
    /// The source's content.
    pub(crate) file: PathBuf,
    /// For sockets, in memory.
    pub(crate) directory: PathBuf,
}

impl Memory {
    /// Fills the source and the file alike, and touches the target.
    pub(crate) fn new(data: Data, mib: u64, directory: &Path) -> Self {
        let ram = || Ram::new(mib * MIB).expect("memory");
        let (source, target, file) = (ram(), ram(), directory.join("ram"));
        let mut content = File::create(&file).expect("a file");
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for offset in (0..source.len()).step_by(MIB as usize) {
            let chunk: Vec<u8> = (0..MIB / 8).flat_map(|_| word(data, &mut state).to_le_bytes()).collect();
            source.write(offset, &chunk).expect("inside");
            content.write_all(&chunk).expect("memory for the file");
        }
        let memory = Self { data, source, target, file, directory: directory.into() };
        memory.spoil();
        memory
    }

    pub(crate) fn mib(&self) -> u64 {
        self.source.len() / MIB
    }

    /// Writes over all of the target, so that only what arrives is what was sent.
    pub(crate) fn spoil(&self) {
        for offset in (0..self.target.len()).step_by(MIB as usize) {
            self.target.write(offset, &vec![0xaa; MIB as usize]).expect("inside");
        }
    }

    /// All arrived as it was.
    pub(crate) fn check(&self) {
        let [mut here, mut there] = [vec![0; MIB as usize], vec![0; MIB as usize]];
        for offset in (0..self.source.len()).step_by(MIB as usize) {
            self.source.read(offset, &mut here).expect("inside");
            self.target.read(offset, &mut there).expect("inside");
            assert!(here == there, "the MiB at {offset:#x} differs");
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// The next word: of xorshift, or zero.
fn word(data: Data, state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    match data {
        Data::Random => *state,
        Data::Zero => 0,
    }
}
