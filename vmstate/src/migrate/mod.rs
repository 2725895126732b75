//! Live migration: source and destination, from the first page to one running guest.
//!
//! [`source::run`] sends a running guest, [`destination::run`] takes one in; both block until their side is over.
//! [`snapshot`] writes a paused guest to a file and reads it back. `docs/live-migration.md` tells the protocol and what
//! happens after a fault at each point of it.

mod all;
mod control;
pub mod destination;
mod forecast;
mod late;
mod load;
pub mod multifd;
mod parameters;
mod phase;
#[cfg(feature = "tools")]
pub mod plan;
pub(crate) mod policy;
pub(crate) mod protocol;
mod release;
mod report;
mod save;
pub mod snapshot;
pub mod source;
mod waits;
mod wire;

pub use crate::ownership::Claim;
pub use control::{Control, Progress};
pub use parameters::{Aim, DeadlineAction, PARAMETERS, Parameter, ParameterUnit, ParameterValue, Parameters};
pub use phase::{DestinationPhase, Phase, SourcePhase};
pub use report::{ArrivalReport, DepartureReport, Downtime, Round, SectionReport, Slowdown, Takeover};
pub use waits::PageWaits;

use std::time::Duration;

use crate::error::Result;
use crate::ram::multifd::Beside;

/// The threads of page channels end with the migration, however it ends.
struct Over(Beside);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The kind of destination, as far as its answer to the first ping tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// A destination of this library, or a file.
    Vmstate,
    /// Another program that answers pings, as QEMU does. It gets no section that is [beyond
    /// QEMU](crate::section::Registration::beyond_qemu), and knows no fence: what it did with the guest cannot be proved.
    Qemu,
}

/// What a machine has measured in a [rehearsal](Machine::rehearse) of the pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rehearsal {
    /// From the order to pause until the guest stood still and its state was read.
    pub stop: Duration,
    /// What the destination's hypervisor will need to take the state that was read here, as far as this side can tell.
    pub load: Duration,
}

/// The machine being migrated: its run state, and the exclusive resources (disk locks) that only a running guest's
/// owner holds.
///
/// A lock says who holds a resource now; the *fence* beside it (a token and a generation, see [`advance`](Self::advance))
/// says who has run on it since.
pub trait Machine {
    /// Stops the vCPUs and drains the devices: afterwards neither guest memory nor device state changes.
    ///
    /// # Errors
    /// A device could not drain `within` this time; the machine runs on.
    fn pause(&mut self, within: Duration) -> Result<()>;

    /// Source, before anything of the machine is sent: who takes the guest in.
    ///
    /// # Errors
    /// The guest cannot go there; the migration fails.
    fn meets(&mut self, peer: Peer) -> Result<()> {
        let _ = peer;
        Ok(())
    }

    /// Source, after each round, while the guest runs: does ahead of time what the pause would have to wait for, such as
    /// writing disk images back. Returns how long that will still take in the pause. Returns soon once `go_on` says
    /// false: the migration was cancelled.
    ///
    /// # Errors
    /// What cannot be done now and so not in the pause either; the migration fails.
    fn prepare(&mut self, go_on: &dyn Fn() -> bool) -> Result<Duration> {
        let _ = go_on;
        Ok(Duration::ZERO)
    }

    /// Source, after a round, at most once a second: stops the guest for a moment, as [`pause`](Self::pause) does, to find
    /// out what a pause takes. The engine saves the sections, sends some pages while no vCPU competes with it for the
    /// host's processors, and calls [`resume`](Self::resume); that takes some 20 ms. `None`: the guest was not stopped,
    /// and the forecast keeps what was measured before.
    ///
    /// # Errors
    /// The guest cannot be paused now nor later; it runs, and the migration fails.
    fn rehearse(&mut self) -> Result<Option<Rehearsal>> {
        Ok(None)
    }

    /// Source, before the switch-over: whether it may begin. Asked again, some fifty times a second, until it may, so that somebody
    /// can be waited for; meanwhile the connection is kept up. A machine that says no may stop its guest. If the migration ends
    /// before the machine says yes, the machine is told to [`resume`](Self::resume).
    ///
    /// # Errors
    /// The switch-over must not begin; the guest runs, and the migration fails.
    fn may_switch_over(&mut self) -> Result<bool> {
        Ok(true)
    }

    /// Source, while the guest runs: makes vCPUs stand still for a part of the time, so that the guest dirties `percent` (0 to 99) of
    /// its pages a second less; 0 lets all run. Only vCPUs that dirty memory are to be slowed. The engine repeats it after
    /// each round, so that the machine can look again which ones do, and takes it off before it pauses the guest and when
    /// the migration ends; taking off what is not there costs nothing. A throttled vCPU must not prolong
    /// [`pause`](Self::pause) or [`rehearse`](Self::rehearse), and a reset takes the throttle off. False: the machine cannot.
    fn throttle(&mut self, percent: u8) -> bool {
        let _ = percent;
        false
    }

    /// Source: how long [`throttle`](Self::throttle) has made the vCPUs stand still since the migration began, on average over
    /// all vCPUs.
    fn throttled(&self) -> Duration {
        Duration::ZERO
    }

    /// Source: the destination has said that it runs the guest. What follows on this thread is cleaning up, for which nobody waits, and
    /// which should not keep a guest from a processor that may have begun to run on the same host.
    fn departed(&mut self) {}

    /// Destination, behind [`resume`](Self::resume): the guest runs here, and the time for that has been taken. What follows on this thread
    /// is cleaning up, as at a source that was told of its [departure](Self::departed).
    fn arrived(&mut self) {}

    /// Destination, before [`introduced`](Self::introduced): the source opened no way for answers, as a QEMU without the capability
    /// `return-path`. It will not hear of a refusal, and takes every migration whose bytes it could send for a completed one.
    fn unheard(&mut self) {}

    /// Destination: the source's early sections have loaded, and no page was written. The moment to compare both
    /// machines, and to refuse with the whole list of what differs. It is asked as well when guest memory does not fit; then its list
    /// goes to the source, with the memory in it.
    ///
    /// # Errors
    /// The guest cannot run here; it stays at the source.
    fn introduced(&mut self) -> Result<()> {
        Ok(())
    }

    /// Destination, some twenty times a second while pages come and the guest runs at the source: more pages are in memory than the
    /// last time. The moment to make ready what a guest would otherwise make at its first access to a page, such as second-level page
    /// tables. Must not wait, nor run the guest, nor write memory.
    fn arriving(&mut self) {}

    /// Destination: every section has loaded and passed its own checks. The last moment to refuse before the source is
    /// told that it may let go: what sections hold for the hypervisor is given to it here, and the exclusive resources
    /// are proved to be the source's own: the same token, and held by another process.
    ///
    /// # Errors
    /// The hypervisor refuses the state, or the resources do not exclude; the guest stays at the source.
    fn loaded(&mut self) -> Result<()>;

    /// As [`loaded`](Self::loaded), in post-copy: pages of guest memory that this touches may be missing. They come while `serve` is called,
    /// which takes a millisecond when there is nothing to do; so who touches them must not be this thread.
    ///
    /// # Errors
    /// As [`loaded`](Self::loaded), and those of `serve`: after one no page comes any more, and each that is missing is zero.
    fn loaded_late(&mut self, serve: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let _ = serve;
        self.loaded()
    }

    /// Source, after a failure: undoes [`pause`](Self::pause); a guest that was paused before it stays paused. So it does
    /// after a rehearsal.
    /// Destination, once it has taken over: runs the guest, if the source's ran.
    ///
    /// # Errors
    /// What the hypervisor refuses.
    fn resume(&mut self) -> Result<()>;

    /// Destination, in post-copy: as [`resume`](Self::resume), while `serve` is called as in [`loaded_late`](Self::loaded_late).
    ///
    /// # Errors
    /// As [`resume`](Self::resume), and those of `serve`: after one no page comes any more, and whoever touches one that is missing waits for
    /// ever.
    fn resume_late(&mut self, serve: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let _ = serve;
        self.resume()
    }

    /// Source, before the commit: gives up the exclusive resources so that the peer can take them.
    ///
    /// # Errors
    /// The resources could not be released, and this side still holds all of them; the migration fails and the source resumes.
    fn release(&mut self) -> Result<()>;

    /// Destination at the commit, or a source whose commit failed: takes the exclusive resources, all or none, and
    /// compares their fence with the one that the migration began with. Does not wait.
    ///
    /// # Errors
    /// An error other than "another has them".
    fn claim(&mut self) -> Result<Claim>;

    /// After [`claim`](Self::claim) was won, just before the first instruction: moves the fence on, so that whoever else
    /// has a copy of the guest finds it stale.
    ///
    /// # Errors
    /// The fence could not be moved: the guest must not run, and the resources are kept.
    fn advance(&mut self) -> Result<()> {
        Ok(())
    }
}
