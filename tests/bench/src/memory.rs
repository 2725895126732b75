//! The memory that is migrated: at the source, at the destination, and in a file for QEMU.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use minivmm::certificates::{Wanted, make};
use minivmm::memory::Ram;

use crate::case::Data;
use crate::data;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const PAGE: usize = 4096;
/// The first page that is changed: QEMU's firmware is below, and changes by itself.
pub(crate) const FIRST_CHANGED: u64 = MIB / PAGE as u64;

/// The memory of both ends.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    pub(crate) source: Ram,
    pub(crate) target: Ram,
}

/// The memory that all variants of one kind of data migrate.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) data: Data,
    pub(crate) len: u64,
    /// A file with the source's content, removed with its owner.
    pub(crate) file: PathBuf,
    /// A directory for sockets, on a file system in memory.
    pub(crate) directory: PathBuf,
    ends: Option<Ends>,
}

impl Memory {
    /// Fills the source and the file alike, and touches the target, except for the measurement of untouched memory.
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

    /// Both ends: the same memory in each turn, except for untouched memory, which is new in each.
    pub(crate) fn ends(&self) -> Ends {
        let ram = || Ram::new(self.len).expect("memory");
        self.ends.clone().unwrap_or_else(|| Ends { source: ram(), target: ram() })
    }

    /// Makes a directory with certificates of both ends, for `localhost`.
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
    /// Overwrites all of the target, so that a page which is not sent is detected.
    pub(crate) fn spoil(&self) {
        each_mib(self.target.len(), |offset| self.target.write(offset, &[0xaa; MIB as usize]).expect("inside"));
    }

    /// Makes a target that has the data already equivalent to a new one: touched but never written, so that its zero
    /// pages are zero, as in a new process.
    pub(crate) fn renew(&self) {
        let mut words = vec![0; (self.target.len() / PAGE as u64).div_ceil(64) as usize];
        self.target.take_device_writes(&mut words);
    }

    /// Compares the target with the source.
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

/// Calls `each` for the pages of `chunk`, which begins at `offset`, with their numbers.
fn pages(offset: u64, chunk: &mut [u8], mut each: impl FnMut(u64, &mut [u8; PAGE])) {
    for (number, page) in (offset / PAGE as u64..).zip(chunk.as_chunks_mut().0) {
        each(number, page);
    }
}
