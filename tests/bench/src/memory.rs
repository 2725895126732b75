//! The memory that is moved: at the source, at the destination, and in a file for QEMU.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use minivmm::certificates::{Wanted, make};
use minivmm::memory::Ram;

use crate::case::Data;
use crate::data;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const PAGE: usize = 4096;
/// QEMU's firmware is beneath, and changes by itself.
pub(crate) const FIRST_CHANGED: u64 = MIB / PAGE as u64;

/// Memory of both ends.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    pub(crate) source: Ram,
    pub(crate) target: Ram,
}

/// What all variants of one data move.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) data: Data,
    pub(crate) len: u64,
    /// The source's content. It goes with its owner.
    pub(crate) file: PathBuf,
    /// For sockets, in memory.
    pub(crate) directory: PathBuf,
    ends: Option<Ends>,
}

impl Memory {
    /// Fills the source and the file alike, and touches the target; but not if untouched memory is measured.
    pub(crate) fn new(data: Data, mib: u64, directory: &Path) -> Self {
        let (len, file) = (mib * MIB, directory.join("ram"));
        let mut memory = Self { data, len, file, directory: directory.into(), ends: None };
        if data != Data::Untouched {
            let ends = memory.ends();
            let content = File::create(&memory.file).expect("a file");
            each_mib(len, |offset| {
                let mut chunk = vec![0; MIB as usize];
                pages(offset, &mut chunk, |number, page| data::fill(data, number, page));
                ends.source.write(offset, &chunk).expect("inside");
                content.write_all_at(&chunk, offset).expect("memory for the file");
            });
            ends.spoil();
            memory.ends = Some(ends);
        }
        memory
    }

    /// Both ends: the same each time, but untouched ones, which are new.
    pub(crate) fn ends(&self) -> Ends {
        let ram = || Ram::new(self.len).expect("memory");
        self.ends.clone().unwrap_or_else(|| Ends { source: ram(), target: ram() })
    }

    /// A directory with certificates of both ends, for `localhost`.
    pub(crate) fn certificates(&self) -> PathBuf {
        let directory = self.directory.join("certificates");
        if !directory.exists() {
            let hosts = vec!["localhost".to_owned()];
            let wanted = Wanted { directory: directory.clone(), hosts, days: 1, self_signed: false };
            make(&wanted).expect("certificates");
        }
        directory
    }

    /// Changes the file as [`Ends::change`] changes the source.
    pub(crate) fn change_file(&self) {
        let file = File::options().read(true).write(true).open(&self.file).expect("the file");
        let mut chunk = vec![0; MIB as usize];
        each_mib(self.len, |offset| {
            file.read_exact_at(&mut chunk, offset).expect("inside");
            pages(offset, &mut chunk, change);
            file.write_all_at(&chunk, offset).expect("inside");
        });
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

impl Ends {
    /// Writes over all of the target, so that only what arrives is what was sent.
    pub(crate) fn spoil(&self) {
        each_mib(self.target.len(), |offset| self.target.write(offset, &[0xaa; MIB as usize]).expect("inside"));
    }

    /// Makes a target that has the data already as good as a new one: touched, and written by nobody. A zero page is zero there,
    /// as it is in a new process.
    pub(crate) fn renew(&self) {
        let mut words = vec![0; (self.target.len() / PAGE as u64).div_ceil(64) as usize];
        self.target.take_device_writes(&mut words);
    }

    /// All arrived as it was.
    pub(crate) fn check(&self) {
        let [mut here, mut there] = [vec![0; MIB as usize], vec![0; MIB as usize]];
        each_mib(self.source.len(), |offset| {
            self.source.read(offset, &mut here).expect("inside");
            self.target.read(offset, &mut there).expect("inside");
            assert!(here == there, "the MiB at {offset:#x} differs");
        });
    }

    /// Changes some bytes of each page of the source from [`FIRST_CHANGED`] on.
    pub(crate) fn change(&self) {
        let mut chunk = vec![0; MIB as usize];
        each_mib(self.source.len(), |offset| {
            self.source.read(offset, &mut chunk).expect("inside");
            pages(offset, &mut chunk, change);
            self.source.write(offset, &chunk).expect("inside");
        });
    }
}

fn change(number: u64, page: &mut [u8; PAGE]) {
    if number >= FIRST_CHANGED {
        data::change(number, page);
    }
}

fn each_mib(len: u64, each: impl FnMut(u64)) {
    (0..len).step_by(MIB as usize).for_each(each);
}

/// Gives the pages of `chunk`, which begins at `offset`, to `each`, with their numbers.
fn pages(offset: u64, chunk: &mut [u8], mut each: impl FnMut(u64, &mut [u8; PAGE])) {
    for (number, page) in (offset / PAGE as u64..).zip(chunk.as_chunks_mut().0) {
        each(number, page);
    }
}
