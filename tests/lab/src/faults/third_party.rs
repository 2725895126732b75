//! A process that is neither source nor destination, and opens the image.

use std::fs::File;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::Result;

/// The third party, which releases the lock when dropped.
#[derive(Debug)]
pub struct ThirdParty {
    image: File,
}

impl ThirdParty {
    /// Opens the image.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn new(image: &Path) -> Result<Self> {
        let opened = File::options().read(true).write(true).open(image);
        opened.map(|image| Self { image }).map_err(|error| format!("{}: {error}", image.display()))
    }

    /// Takes the lock that minivmm takes.
    ///
    /// # Errors
    /// When another process has the lock.
    pub fn take(image: &Path) -> Result<Self> {
        let party = Self::new(image)?;
        let taken = fcntl(&party.image, FcntlArg::F_OFD_SETLK(&whole_file()));
        taken.map_err(|errno| format!("the image is locked: {errno}"))?;
        Ok(party)
    }

    /// Whether another process has the lock, by a single query of the kernel.
    pub fn finds_it_locked(&self) -> bool {
        let mut lock = whole_file();
        fcntl(&self.image, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok() && lock.l_type != libc::F_UNLCK as i16
    }
}

fn whole_file() -> libc::flock {
    libc::flock { l_type: libc::F_WRLCK as _, l_whence: libc::SEEK_SET as _, l_start: 0, l_len: 0, l_pid: 0 }
}
