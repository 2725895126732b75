//! Marks on an image that no guest may be started on: its content is arriving in a migration, or was sent away.

use std::fs::File;
use std::io;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Mark on an image, an extended attribute. It is set durably, so that it survives a failure of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The content arrives in a migration whose guest has not run here yet.
    Incomplete,
    /// The guest has left, or may have left, with a copy of the content.
    Stale,
}

impl Mark {
    /// All marks.
    pub const ALL: [Self; 2] = [Self::Incomplete, Self::Stale];

    /// The attribute's name.
    pub fn attribute(self) -> &'static str {
        match self {
            Self::Incomplete => "user.minivmm.incomplete",
            Self::Stale => "user.minivmm.stale",
        }
    }

    /// Says why no guest may be started on the image, and what to do.
    pub(super) fn refusal(self) -> io::Error {
        let why = match self {
            Self::Incomplete => {
                "a migration was to bring its content, and its guest has not run on it: give the image to another \
                                 attempt (create=), or remove it"
            }
            Self::Stale => {
                "its guest has gone to another host with a copy of it, or may have: only if it does not run there, remove that \
                            attribute (setfattr -x)"
            }
        };
        io::Error::other(format!("it has the attribute {}: {why}", self.attribute()))
    }

    pub(super) fn is_on(self, file: &File) -> io::Result<bool> {
        match rustix::fs::fgetxattr(file, self.attribute(), &mut [0; 0][..]) {
            Ok(_) => Ok(true),
            // ACCESS: as of an ownership record (`Resource::record` of vmstate).
            Err(Errno::NODATA | Errno::NOTSUP | Errno::ACCESS | Errno::PERM) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn set(self, file: &File) -> io::Result<()> {
        rustix::fs::fsetxattr(file, self.attribute(), b"1", XattrFlags::empty())?;
        file.sync_all()
    }

    /// Removes the mark. Refuses a file on which this process could not set one.
    pub(super) fn clear(self, file: &File) -> io::Result<()> {
        match rustix::fs::fremovexattr(file, self.attribute()) {
            Ok(()) => file.sync_all(),
            Err(Errno::NODATA) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
