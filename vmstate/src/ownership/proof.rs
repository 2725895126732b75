//! The destination's proof that its resources are the source's own, and that their locks exclude.

use std::path::PathBuf;

use super::error::OwnershipError;
use super::record::Record;
use super::resource::Resource;

/// What the source tells of one exclusive resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Its place in the machine, as `disk 0`; the same on both sides.
    pub name: String,
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
        "the source's guest owns {name}, this machine does not: give both sides the same writable disks and the same lease"
    )]
    Missing {
        /// Which.
        name: String,
    },
    /// Only the destination has it.
    #[error(
        "this machine owns {name}, the source's guest does not: give both sides the same writable disks and the same lease"
    )]
    Extra {
        /// Which.
        name: String,
    },
    /// The sizes differ.
    #[error("{name} ({path}) has {here} bytes here and {there} bytes at the source: give the same file")]
    Size {
        /// Which.
        name: String,
        /// The file here.
        path: PathBuf,
        /// Bytes here.
        here: u64,
        /// Bytes at the source.
        there: u64,
    },
    /// The order differs.
    #[error("{name} here ({path}) is the source's {there}: give the disks in the same order")]
    Swapped {
        /// Which.
        name: String,
        /// The file here.
        path: PathBuf,
        /// What it is at the source.
        there: String,
    },
    /// The token differs.
    #[error(
        "{name} ({path}) is not the source's file but a copy or another one: give the file that the source has open, on storage that both hosts share"
    )]
    Other {
        /// Which.
        name: String,
        /// The file here.
        path: PathBuf,
    },
    /// There is a record at the source only.
    #[error(
        "{name} ({path}) has no ownership record, the source's has: give the file that the source has open, on a file system with extended attributes"
    )]
    NoRecord {
        /// Which.
        name: String,
        /// The file here.
        path: PathBuf,
    },
    /// The generation differs.
    #[error("another guest was started on {name} ({path}) since the migration began: end it, and migrate again")]
    MovedOn {
        /// Which.
        name: String,
        /// The file here.
        path: PathBuf,
    },
    /// The lock is free though the source holds it.
    #[error(
        "the lock of {name} ({path}) is free here while the source holds it: it is a copy, or its file system keeps locks on one host; share it through a file system whose locks both hosts see"
    )]
    NotHeld {
        /// Which.
        name: String,
        /// The file here.
        path: PathBuf,
    },
    /// Nothing could be found out.
    #[error(transparent)]
    Unusable(#[from] OwnershipError),
}

/// Everything in which the resources `here` and the source's `tickets` differ.
pub(super) fn compare(here: &[(&str, &Resource)], tickets: &[Ticket]) -> Vec<Mismatch> {
    let mut wrong = Vec::new();
    for ticket in tickets.iter().filter(|ticket| !here.iter().any(|(name, _)| *name == ticket.name)) {
        wrong.push(Mismatch::Missing { name: ticket.name.clone() });
    }
    for (name, resource) in here {
        match tickets.iter().find(|ticket| ticket.name == *name) {
            None => wrong.push(Mismatch::Extra { name: (*name).into() }),
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
    let (name, path) = (ticket.name.clone(), here.path().to_owned());
    if let Some(expected) = ticket.record {
        let Some(found) = here.record()? else {
            return Ok(Some(Mismatch::NoRecord { name, path }));
        };
        let has_token = |ticket: &&Ticket| ticket.record.is_some_and(|record| record.token == found.token);
        if found.token != expected.token {
            return Ok(Some(match all.iter().find(has_token) {
                Some(other) => Mismatch::Swapped { name, path, there: other.name.clone() },
                None => Mismatch::Other { name, path },
            }));
        }
        if found != expected {
            return Ok(Some(Mismatch::MovedOn { name, path }));
        }
    }
    let bytes = here.bytes()?;
    if bytes != ticket.bytes {
        return Ok(Some(Mismatch::Size { name, path, here: bytes, there: ticket.bytes }));
    }
    Ok((!here.held_by_another()?).then_some(Mismatch::NotHeld { name, path }))
}
