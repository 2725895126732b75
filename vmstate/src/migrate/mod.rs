//! Live migration: source and destination, from the first page to one running guest.
//!
//! [`source::run`] sends a running guest, [`destination::run`] takes one in; both block until their side is over.
//! [`snapshot`] writes a paused guest to a file and reads it back. `docs/live-migration.md` tells the protocol and what
//! happens after a fault at each point of it.

mod control;
pub mod destination;
mod load;
mod phase;
pub mod policy;
mod report;
mod save;
pub mod snapshot;
pub mod source;
mod wire;

pub use control::{Control, Progress};
pub use phase::{DestinationPhase, Phase, SourcePhase};
pub use report::{Arrival, Downtime, Report, Round};

use crate::error::Result;

/// Who may run the guest after the link broke inside the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// This side holds the guest's exclusive resources again: it may run.
    Won,
    /// The peer holds them: it runs, or will.
    Lost,
    /// The guest has no exclusive resource to decide by: neither side may assume anything.
    Undecidable,
}

/// The machine being migrated: its run state, and the exclusive resources (disk locks) that only a running guest's
/// owner holds.
pub trait Machine {
    /// Stops the vCPUs and drains the devices: afterwards neither guest memory nor device state changes.
    ///
    /// # Errors
    /// A device could not drain in time; the machine runs on.
    fn pause(&mut self) -> Result<()>;

    /// Destination: every section has loaded and passed its own checks. The last moment to refuse before the source is
    /// told that it may let go: what sections hold for the hypervisor is given to it here.
    ///
    /// # Errors
    /// The hypervisor refuses the state; the guest stays at the source.
    fn loaded(&mut self) -> Result<()>;

    /// Source, after a failure: undoes [`pause`](Self::pause); a guest that was paused before it stays paused.
    /// Destination, once it has taken over: runs the guest, if the source's ran.
    ///
    /// # Errors
    /// What the hypervisor refuses.
    fn resume(&mut self) -> Result<()>;

    /// Source, before the commit: gives up the exclusive resources so that the peer can take them.
    ///
    /// # Errors
    /// They could not be released, and this side still holds all of them; the migration fails and the source resumes.
    fn release(&mut self) -> Result<()>;

    /// Destination at the commit, or a source whose commit failed: takes the exclusive resources, all or none.
    ///
    /// # Errors
    /// An error other than "the peer has them".
    fn claim(&mut self) -> Result<Reclaim>;
}
