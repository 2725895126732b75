//! The destination's proof that its resources are the source's own, and that their locks exclude.

use std::fmt;
use std::path::PathBuf;

use super::error::OwnershipError;
use super::record::Record;
use super::resource::Resource;

/// What a resource is to its machine; the same on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The image of a disk, with the disk's place in the order of all disks, from 0 on.
    Disk(u8),
    /// The lease of the guest as a whole.
    Lease,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // As people count, and as an embedder's other messages do.
            Self::Disk(index) => write!(f, "disk {}", u16::from(*index) + 1),
            Self::Lease => f.write_str("the lease"),
        }
    }
}

/// What the source tells of one exclusive resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// What it is.
    pub role: Role,
    /// Size in bytes, 0 for a lease.
    pub bytes: u64,
    /// Its record since the migration began; `None` if it can have none.
    pub record: Option<Record>,
}

/// One thing that is wrong with a destination's resources, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// Only the source has it.
    #[error(
        "the source's guest owns {role}, this machine does not: give both sides the same writable disks and the same lease"
    )]
    Missing {
        /// Which.
        role: Role,
    },
    /// Only the destination has it.
    #[error(
        "this machine owns {role}, the source's guest does not: give both sides the same writable disks and the same lease"
    )]
    Extra {
        /// Which.
        role: Role,
    },
    /// The sizes differ.
    #[error("{role} ({path}) has {here} bytes here and {there} bytes at the source: give the same file")]
    Size {
        /// Which.
        role: Role,
        /// The file here.
        path: PathBuf,
        /// Bytes here.
        here: u64,
        /// Bytes at the source.
        there: u64,
    },
    /// The order differs.
    #[error("{role} here ({path}) is the source's {there}: give the disks in the same order")]
    Swapped {
        /// Which.
        role: Role,
        /// The file here.
        path: PathBuf,
        /// What it is at the source.
        there: Role,
    },
    /// The token differs.
    #[error(
        "{role} ({path}) is not the source's file but a copy or another one: give the file that the source has open, on storage that both hosts share"
    )]
    Other {
        /// Which.
        role: Role,
        /// The file here.
        path: PathBuf,
    },
    /// Only the source has a record.
    #[error(
        "{role} ({path}) has no ownership record, the source's has: give the file that the source has open, on a file system with extended attributes"
    )]
    NoRecord {
        /// Which.
        role: Role,
        /// The file here.
        path: PathBuf,
    },
    /// The generation differs.
    #[error("another guest was started on {role} ({path}) since the migration began: end it, and migrate again")]
    MovedOn {
        /// Which.
        role: Role,
        /// The file here.
        path: PathBuf,
    },
    /// The generation differs from that of a guest in a file.
    #[error(
        "another guest was started on {role} ({path}) since the file was written, so the file's guest must not run on it: give a copy that was made while the guest stood, with its record"
    )]
    MovedOnSinceFile {
        /// Which.
        role: Role,
        /// The file here.
        path: PathBuf,
    },
    /// The lock is free though the source holds it.
    #[error(
        "the lock of {role} ({path}) is free here while the source holds it: it is a copy, or its file system keeps locks on one host, or the source has ended; share it through a file system whose locks both hosts see"
    )]
    NotHeld {
        /// Which.
        role: Role,
        /// The file here.
        path: PathBuf,
    },
    /// The records and locks tell nothing.
    #[error(transparent)]
    Unusable(#[from] OwnershipError),
}

/// Everything in which the resources `here` and the source's `tickets` differ.
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

/// The first thing that is wrong with one of them: another file differs in all of them, and one reason is enough.
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
