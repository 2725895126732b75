//! The source's side of the protocol: from the handshake to a final [`SourcePhase`].
//!
//! ```text
//! SendHandshake ─► Await ─► Round … Round ─► Pause ─► SendRest ─► Await ─► RefuseCancels ─► Release ─► SendEnd ─► Await ─► End
//!     any failure up to here: Resume (if paused) ─► End                                │            any failure from here:
//!                                                                                      └─► Claim ─► Advance ─► Resume ─► End
//!
//! in post-copy:   … Pause ─► SendPackage ─► Await ─► RefuseCancels ─► Release ─► SendRun ─► Await ─► Serve ─► Await ─► End
//!     as above up to SendRun, and after it as well, until the destination has said that it runs the guest
//!     the wire breaks from Serve on: Reconnect ─► Recover ─► Serve ─► …
//!     the resources are elsewhere after that Claim: Reconnect, too, for the guest may run at the destination without its pages
//!     nobody connects again: End (Interrupted, or as after a commit that was not confirmed)
//!
//! in post-copy to a QEMU:   … Pause ─► RefuseCancels ─► Release ─► SendPackage ─► Serve ─► Await ─► End
//!     a failure of SendPackage: Claim ─► …, as after SendRun
//! ```

use std::time::Duration;

use super::{Mode, Timing, ping};
use crate::migrate::Claim;
use crate::migrate::phase::SourcePhase;
use crate::stream::Reply;

/// The next action of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceAction {
    /// Send header and configuration, identify the destination by the ping [`IDENTIFY`](ping::IDENTIFY), and send the early sections that
    /// it supports, the list of RAM blocks and the ping [`HANDSHAKE`](ping::HANDSHAKE).
    SendHandshake,
    /// Send one round of pages while the guest runs, and decide what follows.
    Round,
    /// Pause the guest.
    Pause,
    /// Send the last pages, the devices and the ping [`READY`](ping::READY), by this moment.
    SendRest(Duration),
    /// In post-copy, by this moment: send the list of pages that were written since they were sent, the devices in a package and
    /// the ping [`READY`](ping::READY); for a QEMU the command to run instead of the ping, within the package.
    SendPackage(Duration),
    /// Wait for an answer until this moment.
    Await(Duration),
    /// Refuse cancels from now on, unless one was granted already.
    RefuseCancels,
    /// Release the exclusive resources.
    Release,
    /// Send the end of the stream, by this moment. The guest belongs to the destination once the first byte has arrived.
    SendEnd(Duration),
    /// In post-copy: send the command to run, by this moment. The guest belongs to the destination once that has arrived.
    SendRun(Duration),
    /// In post-copy: send the requested pages first, all others meanwhile, and then the end of the stream.
    Serve,
    /// In post-copy, after the connection broke: wait for another connection.
    Reconnect,
    /// In post-copy, over another connection, by this moment: request the bitmaps of received pages, and resume.
    Recover(Duration),
    /// Try to take the exclusive resources.
    Claim,
    /// Wait until this moment; the wire is broken.
    Sleep(Duration),
    /// Advance the fence.
    Advance,
    /// Let the guest run here, if it ran before.
    Resume,
    /// No action: [`SourceProtocol::phase`] is final.
    End,
}

impl SourceAction {
    /// True if the machine executes the action, and not the wire.
    pub fn is_the_machines(self) -> bool {
        matches!(self, Self::Pause | Self::Release | Self::Claim | Self::Advance | Self::Resume)
    }
}

/// The result of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// The action succeeded.
    Done,
    /// This side's machine, devices or memory refused the action, or the policy gave up.
    Refused,
    /// A round is complete. With a way: the guest shall be handed over in this way.
    RoundOver(Option<Mode>),
    /// The destination has answered, to an action that waits or in the middle of one that sends.
    Replied(Reply),
    /// The result of taking the resources.
    Claimed(Claim),
    /// A granted cancel was noticed.
    Cancelled,
    /// The connection is broken, or carries data that the format does not allow.
    Broken,
    /// The action's deadline has passed.
    Deadline,
}

/// A source, between two actions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceProtocol {
    step: Step,
    mode: Mode,
    paused: bool,
    /// True if nothing more can come from the destination.
    deaf: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Handshaking,
    Greeting,
    Rounds,
    /// With the end of the pause budget.
    Pausing(Duration),
    Sending(Duration),
    Confirming(Duration),
    Closing,
    Releasing,
    Ending(Duration),
    Committing,
    Serving,
    AwaitingClose,
    /// The connection is broken. The phase if there is no other connection.
    Disconnected(SourcePhase),
    Recovering(SourcePhase),
    /// With the end of the time for claiming.
    Claiming(Duration),
    Waiting(Duration),
    Advancing,
    /// After the first phase, to the second.
    Resuming(SourcePhase, SourcePhase),
    Over(SourcePhase),
}

impl SourceProtocol {
    /// A source whose guest may run, and its first action.
    pub fn begin() -> (Self, SourceAction) {
        (Self { step: Step::Handshaking, mode: Mode::Precopy, paused: false, deaf: false }, SourceAction::SendHandshake)
    }

    /// The source's phase.
    pub fn phase(&self) -> SourcePhase {
        match self.step {
            Step::Handshaking | Step::Greeting => SourcePhase::Setup,
            Step::Rounds => SourcePhase::Rounds,
            // It contains the command to run.
            Step::Sending(_) if self.is_unanswered() => SourcePhase::Commit,
            Step::Pausing(_) | Step::Sending(_) | Step::Confirming(_) | Step::Closing | Step::Releasing => {
                SourcePhase::SwitchOver
            }
            Step::Ending(_) | Step::Committing | Step::Claiming(_) | Step::Waiting(_) | Step::Advancing => {
                SourcePhase::Commit
            }
            Step::Serving | Step::AwaitingClose => SourcePhase::Postcopy,
            Step::Disconnected(_) => SourcePhase::PostcopyPaused,
            Step::Recovering(_) => SourcePhase::PostcopyRecover,
            Step::Resuming(from, _) => from,
            Step::Over(phase) => phase,
        }
    }

    /// Processes the result of the last action at the moment `now`, and returns the next action. Every event is allowed in every
    /// state: one that does not belong to the last action counts as a failure of that action.
    pub fn handle(&mut self, event: SourceEvent, now: Duration, timing: &Timing) -> SourceAction {
        let before = self.phase();
        self.deaf = (self.deaf || event == SourceEvent::Broken) && !matches!(self.step, Step::Disconnected(_));
        if let (Step::Rounds, SourceEvent::RoundOver(Some(mode))) = (self.step, event) {
            self.mode = mode;
        }
        self.step = self.next(event, now, timing);
        self.paused |= matches!(self.step, Step::Sending(_) | Step::Closing);
        let after = self.phase();
        debug_assert!(before == after || before.may_become(after), "{before:?} to {after:?}");
        self.action(now, timing)
    }

    fn next(&self, event: SourceEvent, now: Duration, timing: &Timing) -> Step {
        use SourceEvent::{Cancelled, Claimed, Deadline, Done, Refused, Replied, RoundOver};
        match (self.step, event) {
            (Step::Handshaking, Done) => Step::Greeting,
            (Step::Greeting, Replied(Reply::Pong(ping::HANDSHAKE))) => Step::Rounds,
            (Step::Rounds, RoundOver(None)) => Step::Rounds,
            (Step::Rounds, RoundOver(Some(_))) => Step::Pausing(now.saturating_add(timing.pause_budget)),
            (Step::Pausing(_), Done) if self.is_unanswered() => Step::Closing,
            (Step::Pausing(until), Done) => Step::Sending(until),
            (Step::Sending(_), Done) if self.is_unanswered() => Step::Serving,
            // The command to run may have arrived with the package.
            (Step::Sending(_), _) if self.is_unanswered() => Step::Claiming(now.saturating_add(timing.claim_timeout)),
            (Step::Sending(until), Done) => Step::Confirming(until),
            (Step::Confirming(_), Replied(Reply::Pong(ping::READY))) => Step::Closing,
            // The answer to a probe of a round that was not awaited. A destination that sends nothing but these is late.
            (Step::Confirming(until), Replied(Reply::Pong(ping::ROUND))) if now < until => Step::Confirming(until),
            (Step::Closing, Done) => Step::Releasing,
            (Step::Releasing, Done) if self.is_unanswered() => Step::Sending(now.saturating_add(timing.pause_budget)),
            (Step::Releasing, Done) => Step::Ending(now.saturating_add(timing.pause_budget)),
            (Step::Ending(_) | Step::Committing | Step::Waiting(_), Replied(reply)) if self.is_taken_over(reply) => {
                match self.mode {
                    Mode::Precopy => Step::Over(SourcePhase::Completed),
                    Mode::Postcopy | Mode::PostcopyUnanswered => Step::Serving,
                }
            }
            (Step::Serving, Done) => Step::AwaitingClose,
            (Step::AwaitingClose, Replied(Reply::Shut(0))) => Step::Over(SourcePhase::Completed),
            // The guest has run there: this side's copy is stale, whatever happened to the other.
            (Step::Serving | Step::AwaitingClose, SourceEvent::Broken | Deadline) => {
                Step::Disconnected(SourcePhase::Interrupted)
            }
            (Step::Serving | Step::AwaitingClose, _) => Step::Over(SourcePhase::Interrupted),
            (Step::Disconnected(into), Done) => Step::Recovering(into),
            (Step::Disconnected(into), _) => Step::Over(into),
            (Step::Recovering(_), Done) => Step::Serving,
            // Another process may have connected.
            (Step::Recovering(into), _) => Step::Disconnected(into),
            // Even if not all of it could be sent: the first byte is the end of the stream, and the destination may have read it;
            // the same holds for the command to run.
            (Step::Ending(_), _) => Step::Committing,
            (Step::Committing, _) => Step::Claiming(now.saturating_add(timing.claim_timeout)),
            (Step::Claiming(_), Claimed(Claim::Won)) => Step::Advancing,
            (Step::Claiming(_), Claimed(Claim::Moved)) => self.elsewhere(SourcePhase::Unacknowledged),
            (Step::Claiming(_), Claimed(Claim::Undecidable)) => self.elsewhere(SourcePhase::Undecided),
            (Step::Claiming(until), Claimed(Claim::Held)) if now >= until => {
                self.elsewhere(SourcePhase::Unacknowledged)
            }
            (Step::Claiming(until), Refused) if now >= until => Step::Over(SourcePhase::Undecided),
            (Step::Claiming(until), _) => Step::Waiting(until),
            (Step::Waiting(until), _) => Step::Claiming(until),
            (Step::Advancing, Done) => Step::Resuming(SourcePhase::Commit, SourcePhase::Failed),
            // The guest must not run here without an advanced fence: a late end of the stream would start the old copy at the
            // destination.
            (Step::Advancing, _) => Step::Over(SourcePhase::Undecided),
            (Step::Resuming(_, to), _) => Step::Over(to),
            (Step::Over(phase), _) => Step::Over(phase),
            (_, Cancelled) => self.take_back(SourcePhase::Cancelled),
            (_, Done | Refused | RoundOver(_) | Replied(_) | Claimed(_) | SourceEvent::Broken | Deadline) => {
                self.take_back(SourcePhase::Failed)
            }
        }
    }

    /// True if the destination reports that it runs the guest.
    fn is_taken_over(&self, reply: Reply) -> bool {
        match self.mode {
            Mode::Precopy => reply == Reply::Shut(0),
            Mode::Postcopy => reply == Reply::Pong(ping::RUNS),
            Mode::PostcopyUnanswered => false,
        }
    }

    fn is_unanswered(&self) -> bool {
        self.mode == Mode::PostcopyUnanswered
    }

    /// After a commit that was not confirmed: the guest may run at the destination, which in post-copy then lacks pages.
    fn elsewhere(&self, phase: SourcePhase) -> Step {
        match self.mode {
            Mode::Precopy => Step::Over(phase),
            Mode::Postcopy | Mode::PostcopyUnanswered => Step::Disconnected(phase),
        }
    }

    /// Before the commit: the guest belongs to this side.
    fn take_back(&self, into: SourcePhase) -> Step {
        if self.paused { Step::Resuming(self.phase(), into) } else { Step::Over(into) }
    }

    fn action(&self, now: Duration, timing: &Timing) -> SourceAction {
        match self.step {
            Step::Handshaking => SourceAction::SendHandshake,
            Step::Greeting => SourceAction::Await(now.saturating_add(timing.answer)),
            Step::Rounds => SourceAction::Round,
            Step::Pausing(_) => SourceAction::Pause,
            Step::Sending(until) => match self.mode {
                Mode::Precopy => SourceAction::SendRest(until),
                Mode::Postcopy | Mode::PostcopyUnanswered => SourceAction::SendPackage(until),
            },
            Step::Confirming(until) => SourceAction::Await(until),
            Step::Closing => SourceAction::RefuseCancels,
            Step::Releasing => SourceAction::Release,
            Step::Ending(until) => match self.mode {
                Mode::Precopy => SourceAction::SendEnd(until),
                Mode::Postcopy | Mode::PostcopyUnanswered => SourceAction::SendRun(until),
            },
            Step::Serving => SourceAction::Serve,
            Step::AwaitingClose => SourceAction::Await(now.saturating_add(timing.answer)),
            Step::Disconnected(_) => SourceAction::Reconnect,
            Step::Recovering(_) => SourceAction::Recover(now.saturating_add(timing.answer)),
            Step::Committing => SourceAction::Await(now.saturating_add(timing.pause_budget)),
            Step::Claiming(_) => SourceAction::Claim,
            Step::Waiting(_) if self.deaf => SourceAction::Sleep(now.saturating_add(timing.retry)),
            Step::Waiting(_) => SourceAction::Await(now.saturating_add(timing.retry)),
            Step::Advancing => SourceAction::Advance,
            Step::Resuming(..) => SourceAction::Resume,
            Step::Over(_) => SourceAction::End,
        }
    }
}
