//! Ownership of a guest: locks that show who holds its disk images now, and records that show who has run on them since.
//!
//! Two hosts that lose their connection during the switch-over cannot agree by messages which of them runs the guest. The guest's
//! exclusive [`Resource`]s decide: its writable images, or a lease file for a guest that has none. Each has a lock, which one
//! process can hold and which ends with that process, and a [`Record`] with a random token and a generation. [`Ownership`] is the
//! set of all of them, and answers the calls of [`Machine`](crate::migrate::Machine):
//!
//! | | source | destination |
//! | --- | --- | --- |
//! | a migration begins | [`begin`](Ownership::begin): a fresh token in each record, sent in the stream as [`Ticket`]s | |
//! | before the commit | | [`prove`](Ownership::prove): the record here has the same token, and another process holds the lock |
//! | commit | [`release`](Ownership::release) | [`claim`](Ownership::claim), then [`advance`](Ownership::advance) |
//! | no answer came | [`claim`](Ownership::claim), then [`advance`](Ownership::advance) | |
//!
//! A boot calls [`take`](Ownership::take), then [`advance`](Ownership::advance). No call waits; the caller retries if a lock is
//! not free yet, since a killed process's locks outlive its sockets by some milliseconds.
//!
//! **Guarantees.** With a record in each exclusive resource ([`Ownership::is_provable`]): a stale guest is never claimed, and a
//! resource whose lock does not exclude (a copy, a file system whose locks are local to one host) is found before the commit.
//! Without records, the lock alone decides: a file never has two owners at once, but a stale guest may be claimed once the other
//! side has ended. A program that writes an image without advancing its record is not noticed.

mod error;
mod proof;
mod record;
mod resource;
mod set;

pub use error::OwnershipError;
pub use proof::{Mismatch, Role, Ticket};
pub use record::{RECORD_LEN, Record, RecordError};
pub use resource::{ATTRIBUTE, Access, Resource};
pub use set::{Claim, Ownership};
