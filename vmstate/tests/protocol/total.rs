//! Every event in every state, expected or not: no panic, no undocumented phase transition, and an end.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use vmstate::migrate::{Claim, DestinationPhase, SourcePhase};
use vmstate::raw::protocol::{
    DestinationAction, DestinationEvent, DestinationProtocol, Mode, SourceAction, SourceEvent, SourceProtocol, Timing,
    ping,
};
use vmstate::raw::stream::Reply;

const SECOND: Duration = Duration::from_secs(1);
const TIMING: Timing = Timing {
    answer: SECOND,
    pause_budget: SECOND,
    claim_timeout: SECOND,
    retry: Duration::ZERO,
    settle: Duration::ZERO,
};
const CLAIMS: [Claim; 4] = [Claim::Won, Claim::Held, Claim::Moved, Claim::Undecidable];

/// Time that passes between two events: none, or more than any timeout.
const STEPS: [Duration; 2] = [Duration::ZERO, Duration::from_secs(2)];

fn source_events() -> Vec<SourceEvent> {
    use SourceEvent::{Broken, Cancelled, Claimed, Deadline, Done, Refused, Replied, RoundOver};
    let pongs = [0, ping::HANDSHAKE, ping::READY, ping::ROUND, ping::RUNS].map(Reply::Pong);
    let rounds = [None, Some(Mode::Precopy), Some(Mode::Postcopy), Some(Mode::PostcopyUnanswered)].map(RoundOver);
    let mut events = vec![Done, Refused, Cancelled, Broken, Deadline];
    events.extend(rounds);
    events.extend([Reply::Shut(0), Reply::Shut(1)].into_iter().chain(pongs).map(Replied));
    events.extend(CLAIMS.map(Claimed));
    events
}

fn destination_events() -> Vec<DestinationEvent> {
    use DestinationEvent::{
        Asked, Broken, Cancelled, Claimed, Closed, Deadline, Done, Ended, HandshakeComplete, Refused, Run, Stopped,
        Unheard,
    };
    let mut events =
        vec![Done, Unheard, Refused, HandshakeComplete, Stopped, Ended, Run, Closed, Cancelled, Broken, Deadline];
    for number in [1, 5, 6] {
        events.extend([true, false].map(|complete| Asked { number, complete }));
    }
    events.extend(CLAIMS.map(Claimed));
    events
}

/// Applies every event to every reachable state, and returns the final phases.
fn walk<P: Clone + PartialEq, A: Copy, E: Copy + Debug, F: Copy + Debug + PartialEq>(
    first: (P, A),
    events: &[E],
    handle: fn(&mut P, E, Duration, &Timing) -> A,
    is_end: fn(A) -> bool,
    phase: fn(&P) -> F,
    may_become: fn(F, F) -> bool,
    is_final: fn(F) -> bool,
) -> BTreeSet<String> {
    let (mut seen, mut left) = (Vec::new(), vec![first]);
    let mut ends = BTreeSet::new();
    while let Some((protocol, action)) = left.pop() {
        if is_end(action) {
            assert!(is_final(phase(&protocol)), "{:?}", phase(&protocol));
            ends.insert(format!("{:?}", phase(&protocol)));
            continue;
        }
        for &event in events {
            for step in STEPS {
                let mut next = protocol.clone();
                let action = handle(&mut next, event, step, &TIMING);
                let (before, after) = (phase(&protocol), phase(&next));
                assert!(before == after || may_become(before, after), "{before:?} to {after:?} by {event:?}");
                if !seen.contains(&next) {
                    seen.push(next.clone());
                    left.push((next, action));
                }
            }
        }
    }
    ends
}

#[test]
fn a_source_takes_every_event_in_every_state() {
    let ends = walk(
        SourceProtocol::begin(),
        &source_events(),
        SourceProtocol::handle,
        |action| action == SourceAction::End,
        SourceProtocol::phase,
        SourcePhase::may_become,
        SourcePhase::is_final,
    );
    let all = ["Cancelled", "Completed", "Failed", "Interrupted", "Unacknowledged", "Undecided"];
    assert_eq!(ends.iter().map(String::as_str).collect::<Vec<_>>(), all);
}

#[test]
fn a_destination_takes_every_event_in_every_state() {
    let ends = walk(
        DestinationProtocol::begin(Duration::ZERO, &TIMING),
        &destination_events(),
        DestinationProtocol::handle,
        |action| action == DestinationAction::End,
        DestinationProtocol::phase,
        DestinationPhase::may_become,
        DestinationPhase::is_final,
    );
    assert_eq!(ends.iter().map(String::as_str).collect::<Vec<_>>(), ["Completed", "Failed", "Interrupted", "Stranded"]);
}
