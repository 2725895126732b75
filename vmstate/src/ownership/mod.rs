//! Who may run a guest: locks that say who holds its disk images now, and records that say who ran on them since.
//!
//! Two hosts that lose their wire in the moment of the switch-over cannot agree by messages on which of them runs the
//! guest. The guest's exclusive [`Resource`]s decide: its writable images, or a lease file for a guest that has none. Each
//! has a lock, which one process can hold and which dies with that process, and beside it a [`Record`] with a random token and a
//! generation. [`Ownership`] is all of them together, and answers as [`Machine`](crate::migrate::Machine) needs it:
//!
//! | | source | destination |
//! | --- | --- | --- |
//! | a migration begins | [`begin`](Ownership::begin): a fresh token in each record, told in the stream as [`Ticket`]s | |
//! | before the commit | | [`prove`](Ownership::prove): the same token is in the record here, and another holds the lock |
//! | commit | [`release`](Ownership::release) | [`claim`](Ownership::claim), then [`advance`](Ownership::advance) |
//! | no answer came | [`claim`](Ownership::claim), then [`advance`](Ownership::advance) | |
//!
//! A boot calls [`take`](Ownership::take), then [`advance`](Ownership::advance). No call waits; a lock that is not free yet
//! is tried again by the caller, since a killed process's locks outlive its sockets by some milliseconds.
//!
//! **What holds.** With a record in each exclusive resource ([`Ownership::is_provable`]): a guest that someone has run since
//! is never claimed, and a resource that does not exclude (a copy, a file system whose locks stay on one host) is found
//! before the commit. Without one, the lock alone decides: never two at once on one file, but a stale guest may be claimed
//! once the other has ended. A program that writes an image without moving its record on is not noticed.

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
