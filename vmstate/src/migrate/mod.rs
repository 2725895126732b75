//! Live migration: source and destination, from the first page to one running guest.
//!
//! [`source::run`] sends a running guest, [`destination::run`] receives one; both block until their side has ended. [`snapshot`]
//! writes a paused guest to a file and reads it back. `docs/live-migration.md` describes the protocol and the outcome of a fault
//! at each point of it.

mod all;
mod control;
pub mod destination;
mod forecast;
mod load;
pub mod multifd;
mod pace;
mod parameters;
mod phase;
#[cfg(feature = "tools")]
pub mod plan;
pub(crate) mod policy;
mod postcopy_ram;
pub(crate) mod protocol;
mod release;
mod report;
mod save;
pub mod snapshot;
pub mod source;
mod urgent;
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
use crate::ram::multifd::PageChannels;

/// Ends the threads of page channels with the migration, whatever its result.
struct Over(PageChannels);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The kind of destination, according to its answer to the first ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// A destination of this library, or a file.
    Vmstate,
    /// Another program that answers pings, such as QEMU. It gets no section that is [beyond
    /// QEMU](crate::section::Registration::beyond_qemu), and has no fence: whether it ran the guest cannot be proved.
    Qemu,
}

/// The machine's measurements in a [rehearsal](Machine::rehearse) of the pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rehearsal {
    /// Time from the order to pause until the guest stood still and its state was read.
    pub stop: Duration,
    /// The time that the destination's hypervisor will need to load the state that was read here, as estimated by this side.
    pub load: Duration,
}

/// The machine being migrated: its run state, and the exclusive resources (disk locks) that only a running guest's
/// owner holds.
///
/// A lock shows who holds a resource now; the *fence* beside it (a token and a generation, see [`advance`](Self::advance)) shows
/// who has run on the resource since.
pub trait Machine {
    /// Stops the vCPUs and drains the devices: afterwards, neither guest memory nor device state changes.
    ///
    /// # Errors
    /// A device could not drain `within` this time; the machine continues to run.
    fn pause(&mut self, within: Duration) -> Result<()>;

    /// Source, before anything of the machine is sent: reports the kind of destination.
    ///
    /// # Errors
    /// The guest cannot migrate to that destination; the migration fails.
    fn peer_identified(&mut self, peer: Peer) -> Result<()> {
        let _ = peer;
        Ok(())
    }

    /// Source, after each round, while the guest runs: does work in advance for which the pause would have to wait, such as
    /// writing disk images back. Returns how long the work will still take in the pause. Must return soon once `go_on` returns
    /// false: the migration was cancelled.
    ///
    /// # Errors
    /// Why the work is impossible now, and so in the pause; the migration fails.
    fn prepare(&mut self, go_on: &dyn Fn() -> bool) -> Result<Duration> {
        let _ = go_on;
        Ok(Duration::ZERO)
    }

    /// Source, after a round, at most once a second: stops the guest for a moment, as [`pause`](Self::pause) does, to measure
    /// what a pause takes. The engine saves the sections, sends some pages while no vCPU competes for the host's processors, and
    /// calls [`resume`](Self::resume); that takes some 20 ms. `None`: the guest was not stopped, and the forecast keeps its
    /// earlier measurements.
    ///
    /// # Errors
    /// The guest can be paused neither now nor later; it runs, and the migration fails.
    fn rehearse(&mut self) -> Result<Option<Rehearsal>> {
        Ok(None)
    }

    /// Source, before the switch-over: returns whether it may begin. Called again, some fifty times a second, until it returns
    /// true, so that the machine can wait for an event; meanwhile the connection is kept alive. A machine that returns false may
    /// stop its guest. If the migration ends before the machine returns true, the engine calls [`resume`](Self::resume).
    ///
    /// # Errors
    /// The switch-over must not begin; the guest runs, and the migration fails.
    fn may_switch_over(&mut self) -> Result<bool> {
        Ok(true)
    }

    /// Source, while the guest runs: makes vCPUs stand still for part of the time, so that the guest dirties `percent` (0 to 99)
    /// fewer pages a second; 0 ends the throttle. Only vCPUs that dirty memory should be slowed. The engine repeats the call
    /// after each round, so that the machine can determine these vCPUs again, and ends the throttle before it pauses the guest
    /// and when the migration ends; ending a throttle that is not set must be cheap. A throttled vCPU must not prolong
    /// [`pause`](Self::pause) or [`rehearse`](Self::rehearse), and a reset of the guest ends the throttle. Returns false if the
    /// machine cannot throttle.
    fn throttle(&mut self, percent: u8) -> bool {
        let _ = percent;
        false
    }

    /// Source: how long [`throttle`](Self::throttle) has made the vCPUs stand still since the migration began, on average over
    /// all vCPUs.
    fn throttled(&self) -> Duration {
        Duration::ZERO
    }

    /// Source: called when the destination has reported that it runs the guest. The rest of this thread's work is clean-up that
    /// nothing waits for; it should not take a processor from a guest that may already run on the same host.
    fn departed(&mut self) {}

    /// Destination, after [`resume`](Self::resume) and its time measurement: the guest runs here. The rest of this thread's work
    /// is clean-up, as at a source after [`departed`](Self::departed).
    fn arrived(&mut self) {}

    /// Destination, before [`compare`](Self::compare): called if the source has opened no return path, as a QEMU without
    /// the capability `return-path`. Such a source does not learn of a refusal, and treats every migration whose bytes it could
    /// send as completed.
    fn no_return_path(&mut self) {}

    /// Destination: the source's early sections are loaded, and no page was written. The implementation compares both machines
    /// here, and refuses with a list of all differences. It is also called if guest memory does not fit; its list is then sent to
    /// the source together with the memory's difference.
    ///
    /// # Errors
    /// The guest cannot run here; it stays at the source.
    fn compare(&mut self) -> Result<()> {
        Ok(())
    }

    /// Destination, some twenty times a second while pages arrive and the guest runs at the source: more pages are in memory than
    /// at the last call. The implementation can prepare structures that the guest's first access to a page would otherwise
    /// create, such as second-level page tables. It must not wait, run the guest, or write memory.
    fn arriving(&mut self) {}

    /// Destination: every section is loaded and has passed its own checks. This is the last opportunity to refuse before the
    /// source may release the guest. The implementation passes the hypervisor's state to the hypervisor here, and proves that the
    /// exclusive resources are the source's own: they have the same token, and another process holds them.
    ///
    /// # Errors
    /// The hypervisor refuses the state, or the resources do not exclude; the guest stays at the source.
    fn loaded(&mut self) -> Result<()>;

    /// As for [`loaded`](Self::loaded), in post-copy: pages of guest memory that the implementation accesses may be missing. They
    /// arrive while it calls `serve`, which takes a millisecond if there is nothing to do; so another thread must make the
    /// accesses.
    ///
    /// # Errors
    /// As for [`loaded`](Self::loaded), and those of `serve`: after an error no page arrives any more, and each missing page is
    /// zero.
    fn loaded_in_postcopy(&mut self, serve: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let _ = serve;
        self.loaded()
    }

    /// Source, after a failure or a rehearsal: undoes [`pause`](Self::pause); a guest that was paused before that stays paused.
    /// Destination, once it has taken over: runs the guest, if it ran at the source.
    ///
    /// # Errors
    /// Errors of the hypervisor.
    fn resume(&mut self) -> Result<()>;

    /// Destination, in post-copy: as for [`resume`](Self::resume), while `serve` is called as in
    /// [`loaded_in_postcopy`](Self::loaded_in_postcopy).
    ///
    /// # Errors
    /// As for [`resume`](Self::resume), and those of `serve`: after an error no page arrives any more, and an access to a missing
    /// page waits for ever.
    fn resume_in_postcopy(&mut self, serve: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let _ = serve;
        self.resume()
    }

    /// Source, before the commit: releases the exclusive resources, so that the peer can take them.
    ///
    /// # Errors
    /// The resources could not be released, and this side still holds all of them; the migration fails and the source resumes.
    fn release(&mut self) -> Result<()>;

    /// Destination at the commit, or a source whose commit failed: takes the exclusive resources, all or none, and compares their
    /// fence with that at the beginning of the migration. Does not wait.
    ///
    /// # Errors
    /// Any error other than that another process holds them.
    fn claim(&mut self) -> Result<Claim>;

    /// Called after [`claim`](Self::claim) was won, just before the guest runs: advances the fence, so that any other copy of the
    /// guest becomes stale.
    ///
    /// # Errors
    /// The fence could not be advanced: the guest must not run, and the resources are kept.
    fn advance(&mut self) -> Result<()> {
        Ok(())
    }
}
