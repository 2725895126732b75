//! The destination's proof that its resources are the same files as the source's, and that their locks exclude.

use std::fmt;
use std::path::PathBuf;

use super::error::OwnershipError;
use super::record::Record;
use super::resource::Resource;

/// The role of a resource in its machine; the same on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The image of a disk, with the disk's index in the order of all disks, from 0 on.
    Disk(u8),
    /// The lease of the guest as a whole.
    Lease,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Counted from 1, as in the messages of the embedder.
            Self::Disk(index) => write!(f, "disk {}", u16::from(*index) + 1),
            Self::Lease => f.write_str("the lease"),
        }
    }
}

/// The source's description of one exclusive resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The role of the resource.
    pub role: Role,
    /// Size in bytes, 0 for a lease.
    pub bytes: u64,
    /// The record since the migration began; `None` if the resource cannot have one.
    pub record: Option<Record>,
}

/// A fault of the destination's resources, with advice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// Only the source has the resource.
    #[error(
        "the source's guest owns {role}, this machine does not: give both sides the same writable disks and the same lease"
    )]
    Missing {
        /// The role of the resource.
        role: Role,
    },
    /// Only the destination has the resource.
    #[error(
        "this machine owns {role}, the source's guest does not: give both sides the same writable disks and the same lease"
    )]
    Extra {
        /// The role of the resource.
        role: Role,
    },
    /// The sizes differ.
    #[error("{role} ({path}) has {here} bytes here and {there} bytes at the source: give the same file")]
    Size {
        /// The role of the resource.
        role: Role,
        /// The file here.
        path: PathBuf,
        /// Size here, in bytes.
        here: u64,
        /// Size at the source, in bytes.
        there: u64,
    },
    /// The order differs.
    #[error("{role} here ({path}) is the source's {there}: give the disks in the same order")]
    Swapped {
        /// The role of the resource.
        role: Role,
        /// The file here.
        path: PathBuf,
        /// The file's role at the source.
        there: Role,
    },
    /// The token differs.
    #[error(
        "{role} ({path}) is not the source's file but a copy or another one: give the file that the source has open, on storage that both hosts share"
    )]
    Other {
        /// The role of the resource.
        role: Role,
        /// The file here.
        path: PathBuf,
    },
    /// Only the source has a record.
    #[error(
        "{role} ({path}) has no ownership record, the source's has: give the file that the source has open, on a file system with extended attributes"
    )]
    NoRecord {
        /// The role of the resource.
        role: Role,
        /// The file here.
        path: PathBuf,
    },
    /// The generation differs.
    #[error("another guest was started on {role} ({path}) since the migration began: end it, and migrate again")]
    MovedOn {
        /// The role of the resource.
        role: Role,
        /// The file here.
        path: PathBuf,
    },
    /// The generation differs from that of a guest in a file.
    #[error(
        "another guest was started on {role} ({path}) since the file was written, so the file's guest must not run on it: give a copy that was made before, with its record"
    )]
    MovedOnSinceFile {
        /// The role of the resource.
        role: Role,
        /// The file here.
        path: PathBuf,
    },
    /// The token differs from that of a guest in a file, or the record is missing here.
    #[error(
        "{role} ({path}) is not the one of the guest in the file: give the disk that belongs to the file, or a copy of that disk with its record, the extended attribute user.vmstate.owner"
    )]
    OtherThanFile {
        /// The role of the resource.
        role: Role,
        /// The file here.
        path: PathBuf,
    },
    /// The lock is free although the source holds it.
    #[error(
        "the lock of {role} ({path}) is free here while the source holds it: it is a copy, or its file system keeps locks on one host, or the source has ended; share it through a file system whose locks both hosts see"
    )]
    NotHeld {
        /// The role of the resource.
        role: Role,
        /// The file here.
        path: PathBuf,
    },
    /// The records and locks cannot be used.
    #[error(transparent)]
    Unusable(#[from] OwnershipError),
}

/// All differences between the resources `here` and the source's `tickets`.
pub(super) fn compare(here: &[(Role, &Resource)], tickets: &[Ticket]) -> Vec<Mismatch> {
    let mut wrong = Vec::new();
    for ticket in tickets.iter().filter(|ticket| !here.iter().any(|(role, _)| *role == ticket.role)) {
        wrong.push(Mismatch::Missing { role: ticket.role });
    }
    for &(role, resource) in here {
        match tickets.iter().find(|ticket| ticket.role == role) {
            None => wrong.push(Mismatch::Extra { role }),
            Some(ticket) => match compare_one(resource, ticket, tickets) {
                Ok(None) => {}
                Ok(Some(mismatch)) => wrong.push(mismatch),
                Err(error) => wrong.push(error.into()),
            },
        }
    }
    wrong
}

/// The first fault of one resource: another file differs in every property, and one reason is enough.
fn compare_one(here: &Resource, ticket: &Ticket, all: &[Ticket]) -> Result<Option<Mismatch>, OwnershipError> {
    let (role, path) = (ticket.role, here.path().to_owned());
    if let Some(expected) = ticket.record {
        let Some(found) = here.record()? else {
            return Ok(Some(Mismatch::NoRecord { role, path }));
        };
        let has_token = |ticket: &&Ticket| ticket.record.is_some_and(|record| record.token == found.token);
        if found.token != expected.token {
            return Ok(Some(match all.iter().find(has_token) {
                Some(other) => Mismatch::Swapped { role, path, there: other.role },
                None => Mismatch::Other { role, path },
            }));
        }
        if found != expected {
            return Ok(Some(Mismatch::MovedOn { role, path }));
        }
    }
    let bytes = here.bytes()?;
    if bytes != ticket.bytes {
        return Ok(Some(Mismatch::Size { role, path, here: bytes, there: ticket.bytes }));
    }
    Ok((!here.held_by_another()?).then_some(Mismatch::NotHeld { role, path }))
}
