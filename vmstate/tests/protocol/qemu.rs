//! The hand-over from a QEMU: every order of steps and faults from its end of the stream on. The destination is the engine's
//! state machine; the QEMU is a model of migration/migration.c while it waits for `SHUT 0` (`migration_completion`,
//! `migration_iteration_finish`): it completes if it receives that; otherwise it takes its image's lock if that is free, and runs
//! its guest in any case.
//!
//! One assumption: a QEMU that can notice the loss of the wire has done so, and has taken the lock, before `Timing::settle` or
//! `Timing::claim_timeout` have passed.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use vmstate::migrate::{Claim, DestinationPhase};
use vmstate::raw::protocol::{DestinationAction, DestinationEvent, DestinationProtocol, ping};

use crate::model::{NOW, TIMING};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Qemu {
    /// Everything is sent and the lock is released.
    Waits,
    /// The wire is gone, without `SHUT 0`.
    WireGone,
    /// The guest runs at the source.
    Runs,
    /// `SHUT 0` was received.
    Completed,
    Killed,
}

/// What the destination reads after the last bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wire {
    Open,
    /// The connection was closed in order: by the QEMU, by the kernel of a killed one, or by a relay in between.
    Closed,
    Broken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Nobody,
    Qemu,
    Destination,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    qemu: Qemu,
    /// `None`: the guest has no disk.
    disk: Option<Holder>,
    wire: Wire,
    /// True while `SHUT 0` is on its way.
    answered: bool,
    /// True if the wire was silent for longer than the destination waits.
    silent: bool,
    protocol: DestinationProtocol,
    action: DestinationAction,
    destination_runs: bool,
}

impl World {
    /// The QEMU has sent everything, and the destination has loaded it.
    fn new(disk: bool, listens: bool) -> Self {
        use DestinationEvent::{Asked, Done, Ended, HandshakeComplete, Stopped};
        let (mut protocol, mut action) = DestinationProtocol::begin(NOW, &TIMING);
        let ping = Asked { number: ping::HANDSHAKE, complete: false };
        let asks: &[_] = if listens { &[ping, Done] } else { &[] };
        for event in asks.iter().copied().chain([HandshakeComplete, Done, Stopped, Ended, Done]) {
            action = protocol.handle(event, NOW, &TIMING);
        }
        assert_eq!(action, DestinationAction::RefuseCancels);
        let disk = disk.then_some(Holder::Nobody);
        let (qemu, wire) = (if listens { Qemu::Waits } else { Qemu::Completed }, Wire::Open);
        Self { qemu, disk, wire, answered: false, silent: false, protocol, action, destination_runs: false }
    }

    fn destination(&self, event: DestinationEvent, now: Duration) -> Self {
        let mut next = self.clone();
        next.action = next.protocol.handle(event, now, &TIMING);
        next
    }

    fn claim(&self) -> Claim {
        match self.disk {
            None => Claim::Undecidable,
            Some(Holder::Qemu) => Claim::Held,
            Some(_) => Claim::Won,
        }
    }

    fn steps(&self, listens: bool) -> Vec<Self> {
        let mut steps = Vec::new();
        let mut change = |change: fn(&mut Self)| {
            let mut next = self.clone();
            change(&mut next);
            steps.push(next);
        };
        match self.qemu {
            Qemu::Waits if self.answered => change(|world| (world.qemu, world.wire) = (Qemu::Completed, Wire::Closed)),
            Qemu::Waits if self.wire != Wire::Open => change(|world| world.qemu = Qemu::WireGone),
            Qemu::WireGone => change(|world| {
                world.qemu = Qemu::Runs;
                world.disk = world.disk.map(|holder| if holder == Holder::Nobody { Holder::Qemu } else { holder });
            }),
            _ => {}
        }
        if self.qemu == Qemu::Waits && self.wire == Wire::Open && !self.silent {
            // Data on its way may be lost with the connection, or not.
            change(|world| (world.wire, world.answered) = (Wire::Closed, false));
            change(|world| (world.wire, world.answered) = (Wire::Broken, false));
            change(|world| world.wire = Wire::Broken);
            change(|world| (world.qemu, world.wire) = (Qemu::Killed, Wire::Closed));
            change(|world| (world.qemu, world.wire) = (Qemu::Killed, Wire::Broken));
        }
        let notices = (self.qemu == Qemu::Waits && self.wire != Wire::Open) || self.qemu == Qemu::WireGone;
        use DestinationEvent::{Broken, Claimed, Closed, Deadline, Done, Unheard};
        match self.action {
            DestinationAction::RefuseCancels => steps.push(self.destination(Done, NOW)),
            DestinationAction::Confirm if !listens => steps.push(self.destination(Unheard, NOW)),
            DestinationAction::Confirm => {
                // A kernel accepts bytes for a lost peer until it notices.
                let mut answered = self.destination(Done, NOW);
                answered.answered = self.wire == Wire::Open;
                steps.push(answered);
                if self.wire != Wire::Open {
                    steps.push(self.destination(Broken, NOW));
                }
            }
            DestinationAction::AwaitClose(_) => match self.wire {
                Wire::Closed => steps.push(self.destination(Closed, NOW)),
                Wire::Broken => steps.push(self.destination(Broken, NOW)),
                Wire::Open => {
                    let mut late = self.destination(Deadline, NOW);
                    late.silent = true;
                    steps.push(late);
                }
            },
            DestinationAction::Sleep(_) if notices => {}
            DestinationAction::Sleep(_) => steps.push(self.destination(Deadline, NOW)),
            DestinationAction::Claim => {
                for now in [NOW, Duration::from_secs(1000)] {
                    let mut next = self.destination(Claimed(self.claim()), now);
                    next.disk =
                        next.disk.map(|holder| if holder == Holder::Nobody { Holder::Destination } else { holder });
                    steps.push(next);
                }
            }
            DestinationAction::Advance | DestinationAction::Refuse => steps.push(self.destination(Done, NOW)),
            DestinationAction::Resume => {
                let mut next = self.destination(Done, NOW);
                next.destination_runs = true;
                steps.push(next);
            }
            DestinationAction::End => {}
            action => panic!("{action:?}"),
        }
        steps
    }
}

/// The final states in which no side has anything left to do, and whether two guests run in some state.
fn walk(disk: bool, listens: bool) -> (BTreeSet<String>, bool) {
    let first = World::new(disk, listens);
    let (mut known, mut left) = (HashSet::from([first.clone()]), vec![first]);
    let (mut ends, mut two) = (BTreeSet::new(), false);
    while let Some(world) = left.pop() {
        two |= world.destination_runs && world.qemu == Qemu::Runs;
        let steps = world.steps(listens);
        if steps.is_empty() {
            ends.insert(format!("{:?}, {:?}", world.qemu, world.protocol.phase()));
        }
        left.extend(steps.into_iter().filter(|next| known.insert(next.clone())));
    }
    (ends, two)
}

#[test]
fn a_qemu_that_misses_the_final_answer_keeps_its_guest() {
    let (ends, two) = walk(true, true);
    assert!(!two, "two guests run");
    let expected = ["Completed, Completed", "Killed, Completed", "Runs, Stranded"];
    assert_eq!(ends.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

/// Then nothing decides. A QEMU that closes in order is assumed to have received the final answer; if the wire breaks, the guest
/// stays paused.
#[test]
fn without_a_disk_only_an_orderly_close_counts_as_success() {
    let (ends, two) = walk(false, true);
    assert!(two, "a relay that closes the wire in order and loses the last word");
    assert!(ends.contains("Completed, Stranded") && ends.contains("Killed, Stranded"), "{ends:?}");
}

/// It treats every migration whose bytes it could send as completed, so there is nothing to wait for.
#[test]
fn a_qemu_that_does_not_listen_has_given_its_guest_away() {
    for disk in [true, false] {
        let (ends, two) = walk(disk, false);
        assert!(!two && ends == BTreeSet::from(["Completed, Completed".to_owned()]), "{ends:?}");
    }
}

/// The opposite order: the lock is taken first, so a QEMU that receives no answer does not get it, and runs its guest all the
/// same.
#[test]
fn a_source_of_this_library_finds_the_lock_taken() {
    let (mut protocol, _) = DestinationProtocol::begin(NOW, &TIMING);
    use DestinationEvent::{Asked, Claimed, Done, Ended, HandshakeComplete, Stopped};
    let ready = Asked { number: ping::READY, complete: true };
    let mut actions = Vec::new();
    for event in
        [HandshakeComplete, Done, Stopped, ready, Done, Done, Ended, Done, Claimed(Claim::Won), Done, Done, Done]
    {
        actions.push(protocol.handle(event, NOW, &TIMING));
    }
    use DestinationAction::{Advance, Claim as Take, Confirm, End, RefuseCancels, Resume};
    assert_eq!(actions[6..], [RefuseCancels, Take, Confirm, Advance, Resume, End]);
    assert_eq!(protocol.phase(), DestinationPhase::Completed);
}
