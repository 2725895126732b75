//! The world around the two state machines: disk, wire, third party, and the rules that must hold.

use vmstate::migrate::{Claim, DestinationPhase, SourcePhase};
use vmstate::raw::protocol::{DestinationProtocol, Mode, SourceProtocol};
use vmstate::raw::stream::Reply;

use crate::model::{Destination, Source};

/// The violations.
pub(crate) const TWO: &str = "two guests run";
pub(crate) const STALE_AT_SOURCE: &str = "the source starts a stale guest";
pub(crate) const STALE_AT_DESTINATION: &str = "the destination starts a stale guest";
pub(crate) const UNLOCKED: &str = "a guest runs without the disk's lock";
pub(crate) const LOST: &str = "a guest is lost";
/// A destination whose guest cannot continue ends with its process.
pub(crate) const ENDS: &str = "D ends";
pub(crate) const INCOMPLETE: &str = "a guest that lacks pages counts as complete";

/// The guest's exclusive resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// One file that both sides lock.
    Shared,
    /// The destination has its own copy, with a lock of its own.
    Copied,
    /// One file, whose lock does not exclude.
    Unlocked,
    /// The guest has no exclusive resource.
    None,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) disk: Disk,
    /// True if there is an ownership record, and it is compared.
    pub(crate) fence: bool,
    /// True if another process takes the disk's lock and runs guests of its own.
    pub(crate) third_party: bool,
    /// How the source hands its guest over.
    pub(crate) mode: Mode,
    /// True if both sides are connected again after a break.
    pub(crate) reconnects: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    Source,
    Destination,
    Third,
}

/// Messages to the destination. The model leaves out pages and devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Message {
    Handshake,
    Ping(u32),
    Stopped,
    Run,
    /// In post-copy, over another connection: the request for received pages, and the order to continue.
    Resume,
    Eof,
}

/// One direction of the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Line<T> {
    pub(crate) queue: Vec<T>,
    pub(crate) cut: bool,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { queue: Vec::new(), cut: false }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) source: Source,
    pub(crate) destination: Destination,
    pub(crate) forward: Line<Message>,
    pub(crate) back: Line<Reply>,
    pub(crate) holder: Option<Who>,
    /// True if the process was killed and the kernel has not released its lock yet.
    pub(crate) lingers: bool,
    /// The record's generation; the migration began with 0.
    pub(crate) generation: u8,
    /// True if the user asked to cancel.
    pub(crate) cancel: bool,
    pub(crate) source_runs: bool,
    pub(crate) destination_runs: bool,
    pub(crate) was_paused: bool,
    /// True if the guest has run at the source since the source released the disk.
    pub(crate) source_ran: bool,
    pub(crate) destination_ran: bool,
    pub(crate) third_ran: bool,
    /// The side that ran a guest although another had run on its disk since that guest was paused.
    pub(crate) stale: Option<Who>,
    /// True if the destination has the source's confirmation that the guest is handed over.
    pub(crate) given: bool,
    /// True if all of the guest's memory is at the destination.
    pub(crate) whole: bool,
    /// True if both sides have connected again.
    pub(crate) reconnected: bool,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            source: Source::new(SourceProtocol::begin()),
            destination: Destination::new(DestinationProtocol::begin(crate::model::NOW, &crate::model::TIMING)),
            forward: Line::default(),
            back: Line::default(),
            holder: Some(Who::Source),
            lingers: false,
            generation: 0,
            cancel: false,
            source_runs: true,
            destination_runs: false,
            was_paused: false,
            source_ran: false,
            destination_ran: false,
            third_ran: false,
            stale: None,
            given: false,
            whole: false,
            reconnected: false,
        }
    }

    /// Every step that any participant can take.
    pub(crate) fn steps(&self, rules: Rules) -> Vec<(&'static str, Self)> {
        let mut steps = Vec::new();
        self.source_steps(rules, &mut steps);
        self.destination_steps(rules, &mut steps);
        self.faults(rules, &mut steps);
        steps
    }

    fn faults(&self, rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        if rules.reconnects && self.source.reconnects() && self.destination.reconnects() {
            let mut next = self.clone();
            (next.forward, next.back, next.reconnected) = (Line::default(), Line::default(), true);
            next.both_connect();
            steps.push(("both connect again", next));
        }
        let mut step = |label, change: fn(&mut Self)| {
            let mut next = self.clone();
            change(&mut next);
            steps.push((label, next));
        };
        if !self.cancel && !self.source.committed {
            step("the user cancels", |world| world.cancel = true);
        }
        if !self.forward.cut {
            step("the wire forward breaks", |world| world.forward.cut = true);
            step("the wire forward breaks and loses all", |world| world.forward = Line { queue: vec![], cut: true });
        }
        if !self.back.cut {
            step("the wire back breaks", |world| world.back.cut = true);
            step("the wire back breaks and loses all", |world| world.back = Line { queue: vec![], cut: true });
        }
        if self.source.alive {
            step("the source is killed", |world| {
                world.source.alive = false;
                world.source_runs = false;
                world.lingers |= world.holder == Some(Who::Source);
                (world.forward.cut, world.back) = (true, Line { queue: vec![], cut: true });
            });
        }
        if self.destination.alive {
            step("the destination is killed", |world| {
                world.destination.alive = false;
                world.destination_runs = false;
                world.lingers |= world.holder == Some(Who::Destination);
                (world.back.cut, world.forward) = (true, Line { queue: vec![], cut: true });
            });
        }
        if self.lingers {
            step("the kernel frees the lock of the killed", |world| (world.lingers, world.holder) = (false, None));
        }
        if rules.disk == Disk::None || !rules.third_party {
            return;
        }
        if self.holder.is_none() {
            step("a third party locks the disk", |world| world.holder = Some(Who::Third));
        }
        if self.holder == Some(Who::Third) {
            step("the third party unlocks the disk", |world| world.holder = None);
            if !self.third_ran {
                step("the third party runs a guest of its own", |world| {
                    world.third_ran = true;
                    world.generation += 1;
                });
            }
        }
    }

    /// The result and effect of `Machine::claim` for `who`.
    pub(crate) fn claim(&mut self, who: Who, expects: u8, rules: Rules) -> Claim {
        let own_lock = rules.disk == Disk::Copied && who == Who::Destination;
        if rules.disk == Disk::None {
            return Claim::Undecidable;
        }
        if !own_lock && rules.disk == Disk::Shared && self.holder.is_some_and(|holder| holder != who) {
            return Claim::Held;
        }
        if rules.fence && self.generation != expects {
            return Claim::Moved;
        }
        if !own_lock {
            (self.holder, self.lingers) = (Some(who), false);
        }
        Claim::Won
    }

    /// The result of the destination's proof before it reports that it is ready.
    pub(crate) fn is_proved(&self, rules: Rules) -> bool {
        match rules.disk {
            // The source has released its resources by then.
            _ if rules.mode == Mode::PostcopyUnanswered => true,
            // A copy has another token, or a lock that no process holds; a lock without effect appears to be free.
            Disk::Copied | Disk::Unlocked => !rules.fence,
            Disk::Shared => !rules.fence || (self.holder.is_some_and(|holder| holder != Who::Destination)),
            Disk::None => true,
        }
    }

    pub(crate) fn source_starts(&mut self) {
        self.stale = self.stale.or((self.destination_ran || self.third_ran).then_some(Who::Source));
        (self.source_runs, self.source_ran) = (true, true);
    }

    pub(crate) fn destination_starts(&mut self) {
        self.stale = self.stale.or((self.source_ran || self.third_ran).then_some(Who::Destination));
        (self.destination_runs, self.destination_ran) = (true, true);
    }

    /// The violated rule, if there is one.
    pub(crate) fn violation(&self, rules: Rules, steps: &[(&'static str, Self)]) -> Option<&'static str> {
        if self.source_runs && self.destination_runs {
            return Some(TWO);
        }
        if let Some(who) = self.stale {
            return Some(if who == Who::Source { STALE_AT_SOURCE } else { STALE_AT_DESTINATION });
        }
        let runs = [(self.source_runs, Who::Source), (self.destination_runs, Who::Destination)];
        let locked = |who| rules.disk != Disk::Shared || self.holder == Some(who);
        if runs.iter().any(|&(runs, who)| runs && !locked(who)) {
            return Some(UNLOCKED);
        }
        let complete = self.destination.phase() == DestinationPhase::Completed
            || self.source.phase() == SourcePhase::Completed && self.destination.alive;
        if complete && !self.whole {
            return Some(INCOMPLETE);
        }
        if self.is_lost(rules, steps) {
            return Some(LOST);
        }
        None
    }

    /// Both sides have nothing left to do, no process holds the disk or has run on it, a whole copy of the guest exists, and
    /// still no side can run it. A guest ends with the process that runs it, or that has just recorded that it will.
    fn is_lost(&self, rules: Rules, steps: &[(&'static str, Self)]) -> bool {
        let quiet = self.source.is_over() && self.destination.is_over();
        let nobody = !self.source_runs && !self.destination_runs && !self.destination_ran && !self.third_ran;
        let free = !self.lingers && self.holder != Some(Who::Third);
        let marked = self.generation > 0 && !self.source.alive | !self.destination.alive;
        let source = self.source.alive;
        // A destination that had the end of the stream, or all pages after the command to run, and has not given the guest up.
        let gone = matches!(self.destination.phase(), DestinationPhase::Failed | DestinationPhase::Interrupted);
        let destination = self.destination.alive && self.given && !gone;
        let undecided = rules.disk == Disk::None;
        quiet
            && nobody
            && free
            && !marked
            && !undecided
            && (source || destination)
            && !steps.iter().any(|(label, _)| label.contains("is continued") || *label == ENDS)
    }
}

/// True if the guest may no longer belong to the source.
pub(crate) fn was_given_away(phase: SourcePhase) -> bool {
    matches!(
        phase,
        SourcePhase::Completed | SourcePhase::Unacknowledged | SourcePhase::Undecided | SourcePhase::Interrupted
    )
}
