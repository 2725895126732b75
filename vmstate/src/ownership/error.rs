//! What can go wrong with a resource: each text names the file. The text of the source is not repeated in it.

use std::io;
use std::path::{Path, PathBuf};

use super::record::RecordError;

/// A resource that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnershipError {
    /// Not there, no permission, no file.
    #[error("{path} cannot be opened")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{path} is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file system has no locks, or none that work now.
    #[error("{path} cannot be locked")]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else is where the record belongs. It is not overwritten.
    #[error("the {place} of {path} is not an ownership record of this release")]
    Record {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        place: &'static str,
        /// What is wrong with it.
        source: RecordError,
    },
    /// A record that must be there is not: something has removed it, and nothing tells who ran on the file since.
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
        /// What the system said.
        source: io::Error,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random token for an ownership record")]
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
