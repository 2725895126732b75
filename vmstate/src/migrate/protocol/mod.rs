//! The protocol of a migration without I/O: two state machines that decide what each side does next.
//!
//! [`SourceProtocol`] and [`DestinationProtocol`] know no wire, clock, machine or thread. Each gives one action at a time;
//! whoever drives it carries the action out and tells with one event what came of it. [`source::run`](super::source::run)
//! and [`destination::run`](super::destination::run) are the blocking drivers; `vmstate/tests/protocol` drives the same
//! state machines through every order of faults.
//!
//! Moments are [`Clock::now`](crate::channel::Clock::now)'s, as durations.

mod destination;
mod source;

use std::time::Duration;

pub use destination::{DestinationAction, DestinationEvent, DestinationProtocol};
pub use source::{SourceAction, SourceEvent, SourceProtocol};

/// The pings of a source: who is there, whether the introduction is accepted (as QEMU numbers its first), whether everything is loaded,
/// whether a round has arrived. QEMU's post-copy uses 2 to 4.
pub mod ping {
    /// First of all. QEMU answers a ping with its number, whatever that is (`loadvm_process_command`, migration/savevm.c), and sends
    /// none of this number; a destination of this library answers with [`VMSTATE`].
    pub const WHO: u32 = u32::from_be_bytes(*b"who?");
    /// See [`WHO`].
    pub const VMSTATE: u32 = u32::from_be_bytes(*b"vmst");
    /// After the introduction, before the first page.
    pub const INTRODUCTION: u32 = 1;
    /// After the last device.
    pub const READY: u32 = 5;
    /// After a stretch of pages.
    pub const ROUND: u32 = 6;
    /// No ping, but an answer: in post-copy, to `POSTCOPY_RUN`, of a destination of this library that has the exclusive resources and
    /// lets the guest run.
    pub const RUNS: u32 = u32::from_be_bytes(*b"runs");

    /// The answer of a destination of this library to the ping `number`.
    pub fn answer(number: u32) -> u32 {
        if number == WHO { VMSTATE } else { number }
    }
}

/// When the guest runs at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// With all of its memory, before it runs.
    Whole,
    /// Post-copy: the guest runs at the destination before all of its memory is there. The commit is `POSTCOPY_RUN`, which stands
    /// where the end of the stream stands otherwise; that end comes behind the last page.
    Postcopy,
    /// Post-copy to a QEMU: the order to run is in the package of the devices, and QEMU does not acknowledge it.
    PostcopyUnanswered,
}

/// How long each side waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// For an answer while the guest runs at the source; at the destination, for the whole introduction, and for a QEMU that closes the
    /// connection.
    pub answer: Duration,
    /// From the order to pause until the commit; and again from the commit until the destination's last word.
    pub pause_budget: Duration,
    /// For exclusive resources that another process holds.
    pub claim_timeout: Duration,
    /// Between two attempts to take them.
    pub retry: Duration,
    /// At the destination: for a source that may take its exclusive resources back once it has noticed that the wire is gone.
    pub settle: Duration,
}
