//! Disk load: files written, synced and renamed on an ext4 file system, read back from the disk to verify.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};
use serde_json::{Value, json};

use super::{Work, pattern};
use crate::error::{FileContext, Result};

const DEVICE: &str = "/dev/vda";
const MOUNT: &str = "/mnt";
const FILES: usize = 16;
const SIZE: usize = 64 << 10;
/// Pause between two files: the disk is busy, but the guest is not.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    generations: [u64; FILES],
    next: usize,
    writes: u64,
    errors: Vec<String>,
}

impl Files {
    fn new(directory: &Path) -> Self {
        let directory = directory.to_owned();
        Self { directory, generations: [0; FILES], next: 0, writes: 0, errors: Vec::new() }
    }

    fn path(&self, number: usize) -> PathBuf {
        self.directory.join(format!("file{number}"))
    }

    /// Replaces the next file as careful programs do: writes a new file beside it, syncs, and renames it over the old
    /// one.
    fn write_one(&mut self) -> io::Result<()> {
        let number = self.next;
        let generation = self.generations[number] + 1;
        let beside = self.directory.join("new");
        let mut file = File::create(&beside)?;
        file.write_all(&pattern::bytes(number as u64, generation, SIZE))?;
        file.sync_all()?;
        fs::rename(&beside, self.path(number))?;
        self.generations[number] = generation;
        self.next = (number + 1) % FILES;
        self.writes += 1;
        Ok(())
    }

    fn is_good(&self, number: usize) -> bool {
        let generation = self.generations[number];
        generation == 0
            || fs::read(self.path(number)).is_ok_and(|data| data == pattern::bytes(number as u64, generation, SIZE))
    }
}

pub(super) fn start() -> Result<Arc<Work<Files>>> {
    let device = Path::new(DEVICE);
    mount(Some(device), MOUNT, Some("ext4"), MsFlags::empty(), None::<&str>).doing("mount", device)?;
    Ok(Work::start(Files::new(Path::new(MOUNT)), |files| {
        if let Err(error) = files.write_one() {
            files.errors.push(error.to_string());
            files.errors.truncate(8);
        }
        PAUSE
    }))
}

/// Reads every file from the disk, not the page cache, and compares it with what was written.
pub(super) fn verify(files: &mut Files) -> Value {
    nix::unistd::sync();
    // Drop the page cache, or the files would be read from memory.
    if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "3") {
        files.errors.push(format!("drop_caches: {error}"));
    }
    let written = files.generations.iter().filter(|generation| **generation > 0).count();
    let bad = (0..FILES).filter(|number| !files.is_good(*number)).count();
    json!({ "files": written, "bad": bad, "writes": files.writes, "errors": files.errors })
}

/// Unmounts the file system, so that the disk's image is clean.
pub(super) fn unmount() {
    if let Err(error) = umount(MOUNT) {
        println!("guest: unmount: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_other_content_is_bad() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Files::new(directory.path());
        for _ in 0..=FILES {
            files.write_one().unwrap();
        }
        assert_eq!(files.generations[0], 2);
        assert!((0..FILES).all(|number| files.is_good(number)));
        fs::write(files.path(0), pattern::bytes(0, 1, SIZE)).unwrap();
        fs::remove_file(files.path(3)).unwrap();
        let bad: Vec<_> = (0..FILES).filter(|number| !files.is_good(*number)).collect();
        assert_eq!(bad, [0, 3]);
    }
}
