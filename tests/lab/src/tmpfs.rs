//! Small file systems in memory, for tests of full ones.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount, umount};

/// A mounted tmpfs, which is unmounted when dropped.
#[derive(Debug)]
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts a file system of `bytes` bytes at a new directory.
    ///
    /// # Errors
    /// The directory exists, or this process may not mount.
    pub fn mount(at: &Path, bytes: u64) -> io::Result<Self> {
        std::fs::create_dir(at)?;
        let options = format!("size={bytes}");
        mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self(at.to_owned()))
    }

    /// The root of the file system.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount(&self.0);
    }
}
