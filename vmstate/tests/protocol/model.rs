//! Both processes: the engine's state machines, and the possible results of their actions.

use std::time::Duration;

use vmstate::migrate::{Claim, DestinationPhase, SourcePhase};
use vmstate::raw::protocol::{
    DestinationAction, DestinationEvent, DestinationProtocol, Mode, SourceAction, SourceEvent, SourceProtocol, Timing,
    ping,
};
use vmstate::raw::stream::Reply;

use crate::world::{ENDS, Line, Message, Rules, Who, World, was_given_away};

/// Time does not advance; where it decides something, both cases are explored.
pub(crate) const NOW: Duration = Duration::ZERO;
const LATE: Duration = Duration::from_secs(1000);
pub(crate) const TIMING: Timing = Timing {
    answer: Duration::from_secs(1),
    pause_budget: Duration::from_secs(1),
    claim_timeout: Duration::from_secs(1),
    retry: Duration::from_secs(1),
    settle: Duration::from_secs(1),
};

/// A user's `cont` in progress: `Machine::claim`, `Machine::advance`, `Machine::resume`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Continue {
    Idle,
    Won,
    Advanced,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    protocol: SourceProtocol,
    action: SourceAction,
    pub(crate) alive: bool,
    pub(crate) committed: bool,
    /// The generation with which this side began, or to which it advanced the record.
    expects: u8,
    cont: Continue,
    /// True once it has requested the bitmap of received pages.
    asked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Destination {
    protocol: DestinationProtocol,
    action: DestinationAction,
    pub(crate) alive: bool,
    expects: u8,
    cont: Continue,
}

type Steps = Vec<(&'static str, World)>;

impl Source {
    pub(crate) fn new((protocol, action): (SourceProtocol, SourceAction)) -> Self {
        Self { protocol, action, alive: true, committed: false, expects: 0, cont: Continue::Idle, asked: false }
    }

    pub(crate) fn phase(&self) -> SourcePhase {
        self.protocol.phase()
    }

    pub(crate) fn is_over(&self) -> bool {
        !self.alive || (self.action == SourceAction::End && self.cont == Continue::Idle)
    }
}

impl Destination {
    pub(crate) fn new((protocol, action): (DestinationProtocol, DestinationAction)) -> Self {
        Self { protocol, action, alive: true, expects: 0, cont: Continue::Idle }
    }

    pub(crate) fn phase(&self) -> DestinationPhase {
        self.protocol.phase()
    }

    pub(crate) fn is_over(&self) -> bool {
        !self.alive || (self.action == DestinationAction::End && self.cont == Continue::Idle)
    }
}

/// A `RESUME_ACK`, which is no [`Reply`]: a number that no ping has.
const RESUME_ACK: Reply = Reply::Pong(u32::MAX);

impl Source {
    pub(crate) fn reconnects(&self) -> bool {
        self.alive && self.action == SourceAction::Reconnect
    }
}

impl Destination {
    pub(crate) fn reconnects(&self) -> bool {
        self.alive && self.action == DestinationAction::Reconnect
    }
}

impl World {
    /// Gives both sides another connection.
    pub(crate) fn both_connect(&mut self) {
        self.source.asked = false;
        self.source.action = self.source.protocol.handle(SourceEvent::Done, NOW, &TIMING);
        self.destination.action = self.destination.protocol.handle(DestinationEvent::Done, NOW, &TIMING);
    }

    /// All possible results of the source's action.
    pub(crate) fn source_steps(&self, rules: Rules, steps: &mut Steps) {
        if !self.source.alive {
            return;
        }
        let mut step = |label, event, now, change: &dyn Fn(&mut World)| {
            let mut next = self.clone();
            change(&mut next);
            next.source.action = next.source.protocol.handle(event, now, &TIMING);
            steps.push((label, next));
        };
        let nothing = |_: &mut World| ();
        use SourceEvent::{Broken, Cancelled, Claimed, Deadline, Done, Refused, Replied, RoundOver};
        let commits = matches!(self.source.action, SourceAction::SendEnd(_) | SourceAction::SendRun(_));
        let sends = commits
            || matches!(
                self.source.action,
                SourceAction::SendHandshake
                    | SourceAction::Round
                    | SourceAction::SendRest(_)
                    | SourceAction::SendPackage(_)
                    | SourceAction::Serve
            );
        if sends {
            // The wire has accepted nothing of it.
            step("S cannot send", if self.forward.cut { Broken } else { Deadline }, NOW, &nothing);
            if !commits {
                step("S refuses to send", Refused, NOW, &nothing);
            }
        }
        if self.cancel && (sends || matches!(self.source.action, SourceAction::Await(_))) && !self.source.committed {
            step("S notices the cancel", Cancelled, NOW, &nothing);
        }
        let put = |messages: &'static [Message]| {
            move |world: &mut World| {
                if !world.forward.cut {
                    world.forward.queue.extend(messages);
                }
            }
        };
        match self.source.action {
            SourceAction::SendHandshake => {
                let messages = put(&[Message::Handshake, Message::Ping(ping::HANDSHAKE)]);
                step("S sends the handshake", Done, NOW, &messages);
            }
            SourceAction::Round => step("S has sent its rounds", RoundOver(Some(rules.mode)), NOW, &nothing),
            SourceAction::Pause => {
                step("S does not pause", Refused, NOW, &nothing);
                step("S pauses", Done, NOW, &|world| (world.source_runs, world.was_paused) = (false, true));
            }
            // As to a QEMU: the command to run is in the package.
            SourceAction::SendPackage(_) if rules.mode == Mode::PostcopyUnanswered => {
                step("S sends the package", Done, NOW, &put(&[Message::Stopped, Message::Run]));
                step(
                    "S sends the package and then cannot send",
                    Deadline,
                    NOW,
                    &put(&[Message::Stopped, Message::Run]),
                );
            }
            SourceAction::SendRest(_) | SourceAction::SendPackage(_) => {
                step("S sends the rest", Done, NOW, &put(&[Message::Stopped, Message::Ping(ping::READY)]));
            }
            SourceAction::Await(_) => {
                step("S waits no longer", Deadline, NOW, &nothing);
                match self.back.queue.first() {
                    Some(&reply) => step("S hears an answer", Replied(reply), NOW, &|world| {
                        world.back.queue.remove(0);
                    }),
                    None if self.back.cut => step("S finds the wire broken", Broken, NOW, &nothing),
                    None => {}
                }
            }
            SourceAction::RefuseCancels if self.cancel => step("S was cancelled", Cancelled, NOW, &nothing),
            SourceAction::RefuseCancels => step("S refuses cancels", Done, NOW, &|world| world.source.committed = true),
            SourceAction::Release => {
                step("S cannot release the disk", Refused, NOW, &nothing);
                step("S releases the disk", Done, NOW, &|world| world.holder = None);
            }
            SourceAction::SendEnd(_) => {
                step("S sends EOF", Done, NOW, &put(&[Message::Eof]));
                step("S sends EOF and then cannot send", Deadline, NOW, &put(&[Message::Eof]));
            }
            SourceAction::SendRun(_) => {
                step("S says RUN", Done, NOW, &put(&[Message::Run]));
                step("S says RUN and then cannot send", Deadline, NOW, &put(&[Message::Run]));
            }
            SourceAction::Serve => {
                step("S has served all pages", Done, NOW, &put(&[Message::Eof]));
                step("S has served all pages and then cannot send", Deadline, NOW, &put(&[Message::Eof]));
            }
            SourceAction::Reconnect => step("S is not connected again", Refused, NOW, &nothing),
            SourceAction::Recover(_) => {
                step("S waits no longer for received pages", Deadline, NOW, &nothing);
                match self.back.queue.first() {
                    _ if !self.source.asked => {
                        let mut next = self.clone();
                        next.source.asked = true;
                        put(&[Message::Resume])(&mut next);
                        steps.push(("S asks for received pages", next));
                    }
                    Some(&RESUME_ACK) => step("S hears of received pages", Done, NOW, &|world| {
                        world.back.queue.remove(0);
                    }),
                    Some(other) => unreachable!("{other:?} over a new connection"),
                    None if self.back.cut => step("S finds the wire broken", Broken, NOW, &nothing),
                    None => {}
                }
            }
            // A QEMU does not advance the record, which then proves nothing.
            SourceAction::Claim if rules.mode == Mode::PostcopyUnanswered => {
                step("S claims nothing", Claimed(Claim::Undecidable), NOW, &nothing);
            }
            SourceAction::Claim => {
                let mut next = self.clone();
                let claim = next.claim(Who::Source, self.source.expects, rules);
                let claims = move |world: &mut World| *world = next.clone();
                step("S claims", Claimed(claim), NOW, &claims);
                if claim == Claim::Held {
                    step("S claims for the last time", Claimed(claim), LATE, &claims);
                }
                step("S fails to claim", Refused, NOW, &nothing);
                step("S fails to claim for the last time", Refused, LATE, &nothing);
            }
            SourceAction::Sleep(_) => step("S sleeps", Deadline, NOW, &nothing),
            SourceAction::Advance => {
                step("S cannot advance", Refused, NOW, &nothing);
                step("S advances", Done, NOW, &|world| world.advance_source());
            }
            SourceAction::Resume => step("S resumes", Done, NOW, &|world| world.source_starts()),
            SourceAction::End => self.source_continues(rules, steps),
        }
    }

    /// The user continues a source whose guest was handed over.
    fn source_continues(&self, rules: Rules, steps: &mut Steps) {
        if self.source_runs || !was_given_away(self.source.phase()) {
            return;
        }
        let mut next = self.clone();
        match self.source.cont {
            // A lock alone proves nothing, and an operator who checks the destination is not part of this model.
            Continue::Idle if !rules.fence => return,
            Continue::Idle if next.claim(Who::Source, self.source.expects, rules) != Claim::Won => return,
            Continue::Idle => next.source.cont = Continue::Won,
            Continue::Won => {
                next.advance_source();
                next.source.cont = Continue::Advanced;
            }
            Continue::Advanced => {
                next.source.cont = Continue::Idle;
                next.source_starts();
            }
        }
        steps.push(("S is continued", next));
    }

    fn advance_source(&mut self) {
        self.generation += 1;
        self.source.expects = self.generation;
    }

    fn advance_destination(&mut self) {
        self.generation += 1;
        self.destination.expects = self.generation;
    }

    /// All possible results of the destination's action.
    pub(crate) fn destination_steps(&self, rules: Rules, steps: &mut Steps) {
        if !self.destination.alive {
            return;
        }
        let mut step = |label, event, now, change: &dyn Fn(&mut World)| {
            let mut next = self.clone();
            change(&mut next);
            next.destination.action = next.destination.protocol.handle(event, now, &TIMING);
            steps.push((label, next));
        };
        let nothing = |_: &mut World| ();
        use DestinationEvent::{
            Asked, Broken, Claimed, Deadline, Done, Ended, HandshakeComplete, Refused, Run, Stopped,
        };
        let say = |reply: Reply| {
            move |world: &mut World| {
                if !world.back.cut {
                    world.back.queue.push(reply);
                }
            }
        };
        match self.destination.action {
            DestinationAction::Receive(_) | DestinationAction::TakePages => {
                step("D waits no longer", Deadline, NOW, &nothing);
                step("D cannot load what comes", Refused, NOW, &nothing);
                let take = |world: &mut World| {
                    world.forward.queue.remove(0);
                };
                match self.forward.queue.first() {
                    Some(Message::Handshake) => step("D receives the handshake", HandshakeComplete, NOW, &take),
                    Some(&Message::Ping(number)) => {
                        step("D is asked", Asked { number, complete: number == ping::READY }, NOW, &take);
                    }
                    Some(Message::Stopped) => step("D loads the rest", Stopped, NOW, &take),
                    Some(Message::Eof) => step("D reads EOF", Ended, NOW, &|world| {
                        take(world);
                        (world.given, world.whole) = (true, true);
                    }),
                    Some(Message::Run) => step("D reads RUN", Run, NOW, &|world| {
                        take(world);
                        world.given = true;
                    }),
                    // The bitmap is requested on a connection of its own.
                    Some(Message::Resume) => unreachable!("a request for received pages outside of a recovery"),
                    None if self.forward.cut => step("D finds the wire broken", Broken, NOW, &nothing),
                    None => {}
                }
            }
            DestinationAction::Reconnect => step("D is not connected again", Refused, NOW, &nothing),
            DestinationAction::Recover(_) => {
                step("D waits no longer for a question", Deadline, NOW, &nothing);
                match self.forward.queue.first() {
                    Some(Message::Resume) => step("D tells received pages", Done, NOW, &|world| {
                        world.forward.queue.remove(0);
                        say(RESUME_ACK)(world);
                    }),
                    Some(other) => unreachable!("{other:?} in place of a request for received pages"),
                    None if self.forward.cut => step("D finds the wire broken", Broken, NOW, &nothing),
                    None => {}
                }
            }
            DestinationAction::Compare => {
                step("D refuses the machine", Refused, NOW, &nothing);
                step("D accepts the machine", Done, NOW, &nothing);
            }
            DestinationAction::Load => {
                step("D refuses the state", Refused, NOW, &nothing);
                if self.is_proved(rules) {
                    step("D is ready", Done, NOW, &nothing);
                }
            }
            DestinationAction::Answer(number) => {
                step("D answers", if self.back.cut { Broken } else { Done }, NOW, &say(Reply::Pong(number)));
                step("D cannot answer", Deadline, NOW, &nothing);
            }
            DestinationAction::RefuseCancels => step("D refuses cancels", Done, NOW, &nothing),
            DestinationAction::Claim => {
                let mut next = self.clone();
                let claim = next.claim(Who::Destination, self.destination.expects, rules);
                let claims = move |world: &mut World| *world = next.clone();
                step("D claims", Claimed(claim), NOW, &claims);
                if claim == Claim::Held {
                    step("D claims for the last time", Claimed(claim), LATE, &claims);
                }
                step("D fails to claim for the last time", Refused, LATE, &nothing);
            }
            DestinationAction::Sleep(_) => step("D sleeps", Deadline, NOW, &nothing),
            DestinationAction::Confirm => step("D says SHUT 0", Done, NOW, &say(Reply::Shut(0))),
            DestinationAction::ConfirmRun => {
                step("D says that it runs", Done, NOW, &say(Reply::Pong(ping::RUNS)));
                step("D cannot say that it runs", Deadline, NOW, &nothing);
            }
            DestinationAction::AwaitClose(_) => unreachable!("this source asks whether everything is loaded"),
            DestinationAction::Advance => {
                step("D cannot advance", Refused, NOW, &nothing);
                step("D advances", Done, NOW, &|world| world.advance_destination());
            }
            DestinationAction::Resume => {
                step("D does not start", Refused, NOW, &nothing);
                step("D runs", Done, NOW, &|world| world.destination_starts());
                if self.forward.cut && rules.mode == Mode::Postcopy {
                    step("D finds the wire broken while it starts", Broken, NOW, &nothing);
                }
            }
            DestinationAction::Refuse => step("D says SHUT 1", Done, NOW, &say(Reply::Shut(1))),
            DestinationAction::End => self.destination_continues(rules, steps),
        }
    }

    /// The user continues a destination that has the guest and could not let it run.
    fn destination_continues(&self, rules: Rules, steps: &mut Steps) {
        if self.destination.phase() == DestinationPhase::Interrupted && !self.destination_runs {
            let mut next = self.clone();
            next.destination.alive = false;
            next.lingers |= next.holder == Some(Who::Destination);
            next.back.cut = true;
            next.forward = Line { queue: vec![], cut: true };
            steps.push((ENDS, next));
            return;
        }
        if self.destination_runs || self.destination.phase() != DestinationPhase::Stranded {
            return;
        }
        let mut next = self.clone();
        match self.destination.cont {
            Continue::Idle => {
                let claim = next.claim(Who::Destination, self.destination.expects, rules);
                if claim != Claim::Won || !(rules.fence || self.holder == Some(Who::Destination)) {
                    return;
                }
                next.destination.cont = Continue::Won;
            }
            Continue::Won => {
                next.advance_destination();
                next.destination.cont = Continue::Advanced;
            }
            Continue::Advanced => {
                next.destination.cont = Continue::Idle;
                next.destination_starts();
            }
        }
        steps.push(("D is continued", next));
    }
}
