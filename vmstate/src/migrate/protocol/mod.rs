//! The protocol of a migration without I/O: two state machines that decide what each side does next.
//!
//! [`SourceProtocol`] and [`DestinationProtocol`] do not depend on a wire, clock, machine or thread. Each returns one action at a
//! time; its driver executes the action and reports the result as one event. [`source::run`](super::source::run) and
//! [`destination::run`](super::destination::run) are the blocking drivers; `vmstate/tests/protocol` drives the same state
//! machines through every order of faults.
//!
//! Moments are durations, as [`Clock::now`](crate::channel::Clock::now) returns them.

mod destination;
mod source;

use std::time::Duration;

pub use destination::{DestinationAction, DestinationEvent, DestinationProtocol};
pub use source::{SourceAction, SourceEvent, SourceProtocol};

/// The pings of a source: they identify the destination, and ask whether the handshake is accepted (with the number of QEMU's
/// first ping), whether everything is loaded, and whether a round has arrived. QEMU's post-copy uses 2 to 4.
pub mod ping {
    /// The first ping. QEMU answers a ping with its number, whatever that is (`loadvm_process_command`, migration/savevm.c), and
    /// never sends this number; a destination of this library answers with [`VMSTATE`].
    pub const IDENTIFY: u32 = u32::from_be_bytes(*b"who?");
    /// The answer of a destination of this library to [`IDENTIFY`].
    pub const VMSTATE: u32 = u32::from_be_bytes(*b"vmst");
    /// After the handshake, before the first page.
    pub const HANDSHAKE: u32 = 1;
    /// After the last device.
    pub const READY: u32 = 5;
    /// After a chunk of pages.
    pub const ROUND: u32 = 6;
    /// Not a ping, but an answer to `POSTCOPY_RUN` in post-copy, by a destination of this library that holds the exclusive
    /// resources and lets the guest run.
    pub const RUNS: u32 = u32::from_be_bytes(*b"runs");

    /// The answer of a destination of this library to the ping `number`.
    pub fn answer(number: u32) -> u32 {
        if number == IDENTIFY { VMSTATE } else { number }
    }
}

/// When the guest runs at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// After all of its memory has arrived.
    Precopy,
    /// Post-copy: before all of its memory has arrived. The commit is `POSTCOPY_RUN`, in place of the end of the stream, which
    /// then comes after the last page.
    Postcopy,
    /// Post-copy to a QEMU: the command to run is in the package of the devices, and QEMU does not acknowledge it.
    PostcopyUnanswered,
}

/// The timeouts of both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// For an answer while the guest runs at the source; at the destination, for the whole handshake, and for a QEMU that
    /// closes the connection.
    pub answer: Duration,
    /// From the order to pause until the commit; and again from the commit until the destination's final answer.
    pub pause_budget: Duration,
    /// For exclusive resources that another process holds.
    pub claim_timeout: Duration,
    /// Time between two attempts to take them.
    pub retry: Duration,
    /// At the destination: for a source that may take its exclusive resources back once it has noticed the lost connection.
    pub settle: Duration,
}
