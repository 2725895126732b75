//! Errors about a resource; each text names the file, and does not repeat the text of the source.

use std::io;
use std::path::{Path, PathBuf};

use super::record::RecordError;

/// An error that makes a resource unusable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnershipError {
    /// The file cannot be opened: it does not exist, access is denied, or it is not a file.
    #[error("{path} cannot be opened")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("{path} is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file system has no locks, or they do not work now.
    #[error("{path} cannot be locked")]
    Lock {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The place of the record has other contents, which are not overwritten.
    #[error("the {place} of {path} is not an ownership record of this release")]
    Record {
        /// The file.
        path: PathBuf,
        /// The record's place in the file.
        place: &'static str,
        /// The fault.
        source: RecordError,
    },
    /// A record that must exist does not: it was removed, and nothing shows who has run on the file since.
    #[error("the ownership record of {path} has been removed")]
    RecordGone {
        /// The file.
        path: PathBuf,
    },
    /// The record cannot be read or written.
    #[error("the ownership record of {path} cannot be read or written")]
    RecordIo {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The system provides no random bytes.
    #[error("the system provides no random token for an ownership record")]
    Token(#[source] io::Error),
}

impl OwnershipError {
    /// The file that the error is about.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Open { path, .. }
            | Self::InUse { path }
            | Self::Lock { path, .. }
            | Self::Record { path, .. }
            | Self::RecordGone { path }
            | Self::RecordIo { path, .. } => Some(path),
            Self::Token(_) => None,
        }
    }
}
