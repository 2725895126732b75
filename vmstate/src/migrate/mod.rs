//! Live migration: source and destination, from the first page to one running guest.

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

    /// Runs the guest (again).
    ///
    /// # Errors
    /// What the hypervisor refuses.
    fn resume(&mut self) -> Result<()>;

    /// Source, before the commit: gives up the exclusive resources so that the peer can take them.
    ///
    /// # Errors
    /// They could not be released; the migration fails and the source resumes.
    fn release(&mut self) -> Result<()>;

    /// Destination at the commit, or a source whose commit failed: takes the exclusive resources.
    ///
    /// # Errors
    /// An error other than "the peer has them".
    fn claim(&mut self) -> Result<Reclaim>;
}
