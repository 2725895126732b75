//! The destination's side of the protocol: from the first byte to a final [`DestinationPhase`].
//!
//! ```text
//! Receive ─► Compare ─► Receive … ─► Load ─► Answer ─► Receive ─► RefuseCancels ─► Claim ─► Confirm ─► Advance ─► Resume ─► End
//!     any failure up to RefuseCancels: Refuse ─► End (Failed)                                │           │
//!     resources not to be had: Refuse ─► End (Stranded; Failed if someone has run since) ─────┘           │
//!     any failure from here: End (Stranded)                                                  ─────────────┘
//!
//! in post-copy, where the source's command to run is the commit:     … Claim ─► ConfirmRun ─► Advance ─► Resume ─► TakePages … ─► Confirm ─► End
//!     a failure of Advance or Resume: TakePages … ─► Confirm ─► End (Stranded)
//!     the wire breaks from Resume on: Reconnect ─► Recover ─► Resume or TakePages, where it was
//!     nobody connects again, or memory refuses a page: End (Interrupted)
//!
//! from a source that asked nothing and listens:         … RefuseCancels ─► Confirm ─► AwaitClose ─► Sleep ─► Claim ─► Advance ─► …
//! ```
//!
//! A QEMU that sends its guest in post-copy asks nothing, releases its disks before it reports that, and does not run the guest
//! again once the command to run is sent: the guest runs here as soon as this side holds the resources.
//!
//! A source of this library that does not receive `SHUT 0` runs its guest only if it gets the exclusive resources. A QEMU runs it
//! in any case (`migration_iteration_finish`, migration/migration.c, ignores the result of `bdrv_activate_all`), and takes its
//! image's lock only if that is free. So a QEMU receives `SHUT 0` before the lock is taken here. If it does, it closes the
//! connection; if not, it takes the lock within [`Timing::settle`], and its guest does not run here.

use std::time::Duration;

use super::{Mode, Timing};
use crate::migrate::Claim;
use crate::migrate::phase::DestinationPhase;

/// The next action of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationAction {
    /// Read the stream until one of its events, by this moment if there is one.
    Receive(Option<Duration>),
    /// Compare both machines: [`Machine::compare`](crate::migrate::Machine::compare).
    Compare,
    /// Check that everything came, and pass the state to the machine: [`Machine::loaded`](crate::migrate::Machine::loaded).
    Load,
    /// Answer the ping of this number.
    Answer(u32),
    /// Refuse cancels from now on, unless one was granted already.
    RefuseCancels,
    /// Try to take the exclusive resources.
    Claim,
    /// Wait until this moment.
    Sleep(Duration),
    /// Report to the source that this side runs the guest.
    Confirm,
    /// Drop the rest of the stream until the source closes the connection, at the latest until this moment.
    AwaitClose(Duration),
    /// Advance the fence.
    Advance,
    /// Run the guest, if it ran at the source.
    Resume,
    /// In post-copy: report to the source that this side runs the guest, and needs the missing pages.
    ConfirmRun,
    /// In post-copy: receive pages, and request those that the guest waits for.
    TakePages,
    /// In post-copy, after the connection broke: wait for another connection.
    Reconnect,
    /// In post-copy, over another connection, by this moment: report to the source which pages have arrived, until it resumes.
    Recover(Duration),
    /// Report to the source that the guest does not run here.
    Refuse,
    /// No action: [`DestinationProtocol::phase`] is final.
    End,
}

/// The result of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationEvent {
    /// The action succeeded.
    Done,
    /// The source opened no return path, so nothing was sent to it.
    Unheard,
    /// The source has closed the connection in order.
    Closed,
    /// This side's machine or devices refused the action, or cannot load the stream.
    Refused,
    /// From the stream: the early sections and the list of RAM blocks have arrived, and no page was written.
    HandshakeComplete,
    /// From the stream: the source has paused its guest.
    Stopped,
    /// From the stream: a ping. `complete`: it came after the last page.
    Asked {
        /// Its number.
        number: u32,
        /// After the last page, a ping asks whether the source may release the guest.
        complete: bool,
    },
    /// From the stream: its end. This side may take the guest, or has all of its memory.
    Ended,
    /// From the stream, in post-copy: the command to run. This side may take the guest, and further pages follow.
    Run,
    /// The result of taking the resources.
    Claimed(Claim),
    /// A granted cancel was noticed.
    Cancelled,
    /// The wire is broken.
    Broken,
    /// The source was silent for too long, or the action's deadline has passed.
    Deadline,
}

/// A destination, between two actions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DestinationProtocol {
    step: Step,
    mode: Mode,
    phase: DestinationPhase,
    /// When the handshake must be complete.
    handshake_ends: Duration,
    /// True if the machine has its state.
    loaded: bool,
    /// True if the source asked whether everything is loaded, as one of this library does.
    asked: bool,
    /// True if the source closed the connection in order, or does not listen.
    parted: bool,
    /// True if the guest runs here.
    runs: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Handshake,
    Comparing,
    Receiving,
    /// For the answer to this ping, or for the commit.
    Loading(Option<u32>),
    Answering(u32),
    Closing,
    /// Until this moment.
    AwaitingClose(Duration),
    Settling(Duration),
    /// With the end of the time for claiming.
    Claiming(Duration),
    Waiting(Duration),
    Confirming,
    Advancing,
    Resuming,
    TakingPages,
    /// The connection is broken; the step that continues over another one.
    Disconnected(ResumeStep),
    Recovering(ResumeStep),
    /// The guest has all of its memory.
    Finishing,
    /// To this phase.
    Refusing(DestinationPhase),
    Over,
}

/// The step that continues over another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ResumeStep {
    Resuming,
    TakingPages,
}

impl From<ResumeStep> for Step {
    fn from(resume_step: ResumeStep) -> Self {
        match resume_step {
            ResumeStep::Resuming => Self::Resuming,
            ResumeStep::TakingPages => Self::TakingPages,
        }
    }
}

impl DestinationProtocol {
    /// A destination that has not read a byte at the moment `now`, and its first action.
    pub fn begin(now: Duration, timing: &Timing) -> (Self, DestinationAction) {
        let handshake_ends = now.saturating_add(timing.answer);
        let (step, phase) = (Step::Handshake, DestinationPhase::Setup);
        let mode = Mode::Precopy;
        (
            Self { step, mode, phase, handshake_ends, loaded: false, asked: false, parted: false, runs: false },
            DestinationAction::Receive(Some(handshake_ends)),
        )
    }

    /// The destination's phase.
    pub fn phase(&self) -> DestinationPhase {
        self.phase
    }

    /// True if the guest runs here.
    pub fn runs(&self) -> bool {
        self.runs
    }

    /// Processes the result of the last action at the moment `now`, and returns the next action. Every event is allowed in every
    /// state: one that does not belong to the last action counts as a failure of that action.
    pub fn handle(&mut self, event: DestinationEvent, now: Duration, timing: &Timing) -> DestinationAction {
        let step = self.next(event, now, timing);
        if (self.step, event) == (Step::Receiving, DestinationEvent::Run) {
            self.mode = Mode::Postcopy;
        }
        let phase = self.phase_at(step, event);
        debug_assert!(phase == self.phase || self.phase.may_become(phase), "{:?} to {phase:?}", self.phase);
        self.loaded |= matches!((self.step, event), (Step::Loading(_), DestinationEvent::Done));
        self.asked |= matches!((self.step, event), (Step::Loading(Some(_)), DestinationEvent::Done));
        self.parted |= matches!(
            (self.step, event),
            (Step::AwaitingClose(_), DestinationEvent::Closed) | (Step::Confirming, DestinationEvent::Unheard)
        );
        self.runs |= (self.step, event) == (Step::Resuming, DestinationEvent::Done);
        (self.step, self.phase) = (step, phase);
        self.action(now, timing)
    }

    fn next(&self, event: DestinationEvent, now: Duration, timing: &Timing) -> Step {
        use DestinationEvent::{
            Asked, Broken, Claimed, Closed, Deadline, Done, Ended, HandshakeComplete, Run, Stopped, Unheard,
        };
        match (self.step, event) {
            (Step::Handshake, HandshakeComplete) => Step::Comparing,
            (Step::Comparing, Done) => Step::Receiving,
            (Step::Receiving, Stopped) => Step::Receiving,
            (Step::Receiving, Asked { number, complete: true }) if !self.loaded => Step::Loading(Some(number)),
            (Step::Receiving, Asked { number, .. }) => Step::Answering(number),
            (Step::Handshake, Asked { number, complete: false }) => Step::Answering(number),
            (Step::Loading(Some(number)), Done) => Step::Answering(number),
            // QEMU's source pings before its handshake is over.
            (Step::Answering(_), Done) if self.phase == DestinationPhase::Setup => Step::Handshake,
            (Step::Answering(_), Done) if self.mode == Mode::Postcopy => Step::TakingPages,
            (Step::Answering(_), Done) => Step::Receiving,
            // A source that asks nothing (QEMU's) ends the stream at once.
            (Step::Receiving, Ended | Run) if !self.loaded => Step::Loading(None),
            (Step::Receiving, Ended | Run) | (Step::Loading(None), Done) => Step::Closing,
            (Step::Closing, Done) if self.asked || self.mode == Mode::Postcopy => {
                Step::Claiming(now.saturating_add(timing.claim_timeout))
            }
            (Step::Closing, Done) => Step::Confirming,
            (Step::AwaitingClose(_), Closed) => Step::Settling(now.saturating_add(timing.settle)),
            // The connection is gone, and a source that still waits for `SHUT 0` will notice it.
            (Step::AwaitingClose(_), _) => Step::Settling(now.saturating_add(timing.claim_timeout)),
            (Step::Settling(_), _) => Step::Claiming(now.saturating_add(timing.claim_timeout)),
            (Step::Claiming(_), Claimed(Claim::Won)) if !self.asked => Step::Advancing,
            (Step::Claiming(_), Claimed(Claim::Undecidable))
                if !self.asked && (self.parted || self.mode == Mode::Postcopy) =>
            {
                Step::Advancing
            }
            (Step::Claiming(_), Claimed(Claim::Undecidable)) if !self.asked => Step::Refusing(self.kept()),
            // Without an exclusive resource, no other side can decide: the source will not run the guest any more.
            (Step::Claiming(_), Claimed(Claim::Won | Claim::Undecidable)) => Step::Confirming,
            (Step::Claiming(_), Claimed(Claim::Moved)) => Step::Refusing(DestinationPhase::Failed),
            (Step::Claiming(until), _) if now < until => Step::Waiting(until),
            (Step::Claiming(_), _) => Step::Refusing(self.kept()),
            (Step::Waiting(until), _) => Step::Claiming(until),
            // Whether it was sent or not: a source that does not receive it finds the resources taken.
            (Step::Confirming, _) if self.asked => Step::Advancing,
            (Step::Confirming, Done) => Step::AwaitingClose(now.saturating_add(timing.answer)),
            (Step::Confirming, Unheard) => Step::Claiming(now.saturating_add(timing.claim_timeout)),
            (Step::Confirming, _) => Step::Settling(now.saturating_add(timing.claim_timeout)),
            (Step::Advancing, Done) => Step::Resuming,
            (Step::Resuming, Done) if self.mode == Mode::Postcopy => Step::TakingPages,
            (Step::Resuming, Done) => Step::Over,
            (Step::TakingPages, Asked { number, .. }) => Step::Answering(number),
            (Step::TakingPages, Ended) => Step::Finishing,
            (Step::TakingPages | Step::Answering(_), Broken | Deadline) if self.mode == Mode::Postcopy => {
                Step::Disconnected(ResumeStep::TakingPages)
            }
            (Step::Resuming, Broken | Deadline) if self.mode == Mode::Postcopy => {
                Step::Disconnected(ResumeStep::Resuming)
            }
            (Step::TakingPages | Step::Finishing, _) => Step::Over,
            (Step::Answering(_), _) if self.mode == Mode::Postcopy => Step::Over,
            (Step::Disconnected(resume_step), Done) => Step::Recovering(resume_step),
            (Step::Disconnected(_), _) => Step::Over,
            (Step::Recovering(resume_step), Done) => resume_step.into(),
            // Another process may have connected.
            (Step::Recovering(resume_step), _) => Step::Disconnected(resume_step),
            // The source was informed that the guest runs here: this copy will be the only one, so it is completed and kept.
            (Step::Advancing | Step::Resuming, _) if self.mode == Mode::Postcopy => Step::TakingPages,
            (Step::Advancing | Step::Resuming, _) => Step::Over,
            (Step::Refusing(_) | Step::Over, _) => Step::Over,
            _ => Step::Refusing(DestinationPhase::Failed),
        }
    }

    /// The final phase of a guest whose resources cannot be taken. A whole copy may be the only one left, so it is kept: the
    /// resources may still become free. In post-copy only the source's copy is whole.
    fn kept(&self) -> DestinationPhase {
        match self.mode {
            Mode::Precopy => DestinationPhase::Stranded,
            Mode::Postcopy | Mode::PostcopyUnanswered => DestinationPhase::Failed,
        }
    }

    fn phase_at(&self, step: Step, event: DestinationEvent) -> DestinationPhase {
        use DestinationPhase::{
            Commit, Completed, Interrupted, Loading, Postcopy, PostcopyPaused, PostcopyRecover, Ready, Receiving,
            Setup, Stranded,
        };
        match (step, self.step) {
            (Step::Handshake | Step::Comparing, _) => Setup,
            (Step::Receiving, Step::Comparing) => Receiving,
            (Step::Receiving, _) if event == DestinationEvent::Stopped && self.phase == Receiving => Loading,
            (Step::Loading(_), _) if self.phase == Receiving => Loading,
            (Step::Answering(_), Step::Loading(_)) => Ready,
            (Step::Resuming, Step::Recovering(_)) => Postcopy,
            (Step::Claiming(_) | Step::Waiting(_), _) => Commit,
            (Step::Confirming | Step::AwaitingClose(_) | Step::Settling(_) | Step::Advancing | Step::Resuming, _) => {
                Commit
            }
            (Step::TakingPages, Step::Resuming) if event == DestinationEvent::Done => Postcopy,
            (Step::Disconnected(_), _) => PostcopyPaused,
            (Step::Recovering(_), _) => PostcopyRecover,
            (Step::TakingPages, Step::Recovering(_)) => Postcopy,
            (Step::Over, Step::Disconnected(_)) => Interrupted,
            (Step::Over, Step::Resuming) if event == DestinationEvent::Done => Completed,
            (Step::Over, Step::Advancing | Step::Resuming) => Stranded,
            // Whether it was sent or not: the guest has all of its memory.
            (Step::Over, Step::Finishing) if self.runs => Completed,
            (Step::Over, Step::Finishing) => Stranded,
            (Step::Over, Step::TakingPages | Step::Answering(_)) => Interrupted,
            (Step::Over, Step::Refusing(phase)) => phase,
            _ => self.phase,
        }
    }

    fn action(&self, now: Duration, timing: &Timing) -> DestinationAction {
        match self.step {
            Step::Handshake => DestinationAction::Receive(Some(self.handshake_ends)),
            Step::Comparing => DestinationAction::Compare,
            Step::Receiving => DestinationAction::Receive(None),
            Step::Loading(_) => DestinationAction::Load,
            Step::Answering(number) => DestinationAction::Answer(number),
            Step::Closing => DestinationAction::RefuseCancels,
            Step::AwaitingClose(until) => DestinationAction::AwaitClose(until),
            Step::Settling(until) => DestinationAction::Sleep(until),
            Step::Claiming(_) => DestinationAction::Claim,
            Step::Waiting(_) => DestinationAction::Sleep(now.saturating_add(timing.retry)),
            Step::Confirming if self.mode == Mode::Postcopy => DestinationAction::ConfirmRun,
            Step::Confirming | Step::Finishing => DestinationAction::Confirm,
            Step::TakingPages => DestinationAction::TakePages,
            Step::Disconnected(_) => DestinationAction::Reconnect,
            Step::Recovering(_) => DestinationAction::Recover(now.saturating_add(timing.answer)),
            Step::Advancing => DestinationAction::Advance,
            Step::Resuming => DestinationAction::Resume,
            Step::Refusing(_) => DestinationAction::Refuse,
            Step::Over => DestinationAction::End,
        }
    }
}
