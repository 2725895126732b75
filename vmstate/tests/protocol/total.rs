//! Every event in every state, sensible or not: no panic, no phase that the pictures of the phases do not have, and an end.

use std::collections::BTreeSet;
use std::time::Duration;

use vmstate::migrate::Claim;
use vmstate::migrate::protocol::{
    DestinationAction, DestinationEvent, DestinationProtocol, SourceAction, SourceEvent, SourceProtocol, Timing,
};
use vmstate::stream::Reply;

const SECOND: Duration = Duration::from_secs(1);
const TIMING: Timing = Timing { answer: SECOND, pause_budget: SECOND, patience: SECOND, retry: Duration::ZERO };
const CLAIMS: [Claim; 4] = [Claim::Won, Claim::Held, Claim::Moved, Claim::Undecidable];

/// Time that passes between two events: none, or more than any wait.
const STEPS: [Duration; 2] = [Duration::ZERO, Duration::from_secs(2)];

fn source_events() -> Vec<SourceEvent> {
    use SourceEvent::{Broken, Cancelled, Claimed, Deadline, Done, Refused, Replied, RoundOver};
    let replies = [Reply::Shut(0), Reply::Shut(1), Reply::Pong(0), Reply::Pong(1), Reply::Pong(5), Reply::Pong(6)];
    let mut events = vec![Done, Refused, RoundOver(false), RoundOver(true), Cancelled, Broken, Deadline];
    events.extend(replies.map(Replied));
    events.extend(CLAIMS.map(Claimed));
    events
}

fn destination_events() -> Vec<DestinationEvent> {
    use DestinationEvent::{Asked, Broken, Cancelled, Claimed, Deadline, Done, Ended, Introduced, Refused, Stopped};
    let mut events = vec![Done, Refused, Introduced, Stopped, Ended, Cancelled, Broken, Deadline];
    for number in [1, 5, 6] {
        events.extend([true, false].map(|complete| Asked { number, complete }));
    }
    events.extend(CLAIMS.map(Claimed));
    events
}

#[test]
fn a_source_takes_every_event_in_every_state() {
    let (source, first) = SourceProtocol::begin();
    // Moments count from now on, so that there are few states.
    let (mut seen, mut left) = (Vec::new(), vec![(source, first)]);
    let mut ends = BTreeSet::new();
    while let Some((source, action)) = left.pop() {
        if action == SourceAction::End {
            assert!(source.phase().is_final(), "{:?}", source.phase());
            ends.insert(format!("{:?}", source.phase()));
            continue;
        }
        for event in source_events() {
            for step in STEPS {
                let mut next = source.clone();
                let before = next.phase();
                let action = next.handle(event, step, &TIMING);
                let after = next.phase();
                assert!(before == after || before.may_become(after), "{before:?} to {after:?} by {event:?}");
                if !seen.contains(&next) {
                    seen.push(next.clone());
                    left.push((next, action));
                }
            }
        }
    }
    let all = ["Cancelled", "Completed", "Failed", "Unacknowledged", "Undecided"];
    assert_eq!(ends.iter().map(String::as_str).collect::<Vec<_>>(), all);
}

#[test]
fn a_destination_takes_every_event_in_every_state() {
    let (destination, first) = DestinationProtocol::begin(Duration::ZERO, &TIMING);
    let (mut seen, mut left) = (Vec::new(), vec![(destination, first)]);
    let mut ends = BTreeSet::new();
    while let Some((destination, action)) = left.pop() {
        if action == DestinationAction::End {
            assert!(destination.phase().is_final(), "{:?}", destination.phase());
            ends.insert(format!("{:?}", destination.phase()));
            continue;
        }
        for event in destination_events() {
            for step in STEPS {
                let mut next = destination.clone();
                let before = next.phase();
                let action = next.handle(event, step, &TIMING);
                let after = next.phase();
                assert!(before == after || before.may_become(after), "{before:?} to {after:?} by {event:?}");
                if !seen.contains(&next) {
                    seen.push(next.clone());
                    left.push((next, action));
                }
            }
        }
    }
    assert_eq!(ends.iter().map(String::as_str).collect::<Vec<_>>(), ["Completed", "Failed", "Stranded"]);
}
