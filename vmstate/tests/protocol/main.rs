//! Model checking of the hand-over, with every order of steps and faults: source, destination, a third party, the lock and the
//! ownership record of the guest's disk, a wire that delays, loses and breaks, crashes at any point, deadlines in any order. The
//! state machines are the engine's own ([`vmstate::raw::protocol`]); the oracle is a model of the world around them.
#![cfg(feature = "engine")]

mod explore;
mod model;
mod qemu;
mod total;
mod world;

use explore::{Explored, explore};
use vmstate::raw::protocol::Mode;
use world::{Disk, LOST, Rules, STALE_AT_DESTINATION, STALE_AT_SOURCE, TWO};

const SHARED: Rules =
    Rules { disk: Disk::Shared, fence: true, third_party: true, mode: Mode::Precopy, reconnects: false };
const POSTCOPY: Rules = Rules { mode: Mode::Postcopy, ..SHARED };
const RECOVERY: Rules = Rules { reconnects: true, ..POSTCOPY };

/// The violated rules in order; the test's output has the shortest path to each.
fn violations(rules: Rules) -> Vec<&'static str> {
    let explored = walked(rules);
    assert!(explored.taken_back, "{rules:?}: the model does not move");
    explored.violations.into_keys().collect()
}

fn walked(rules: Rules) -> Explored {
    let explored = explore(rules);
    println!("{rules:?}: {} states", explored.states);
    for (what, path) in &explored.violations {
        println!("  {what}: {}", path.join(" · "));
    }
    explored
}

#[test]
fn with_the_fence_one_guest_and_never_a_stale_one() {
    for third_party in [false, true] {
        let rules = Rules { third_party, ..SHARED };
        assert!(violations(rules).is_empty());
        assert!(explore(rules).completed, "no migration goes through");
    }
}

/// A destination that is killed while it holds the lock, and an end of the stream that comes late.
#[test]
fn a_lock_alone_loses_guests_and_starts_stale_ones() {
    let found = violations(Rules { fence: false, third_party: false, ..SHARED });
    assert_eq!(found, [LOST, STALE_AT_DESTINATION, STALE_AT_SOURCE]);
}

/// The destination has a copy of the image, or the file system's locks do not exclude.
#[test]
fn a_lock_that_does_not_exclude_is_found_before_the_commit() {
    for disk in [Disk::Copied, Disk::Unlocked] {
        let rules = Rules { disk, ..SHARED };
        assert!(violations(rules).is_empty());
        assert!(!explore(rules).completed, "{disk:?}: a migration goes through");
        assert!(violations(Rules { fence: false, ..rules }).contains(&TWO));
    }
}

/// Neither side can prove anything: the guest is paused rather than duplicated, and an operator decides.
#[test]
fn without_a_disk_never_two_guests() {
    let rules = Rules { disk: Disk::None, ..SHARED };
    assert!(violations(rules).is_empty());
    assert!(explore(rules).completed, "no migration goes through");
}

/// The command to run is the commit: all rules for the end of the stream apply to it. After that, a fault can only lose the guest's
/// memory, and no other guest takes its place.
#[test]
fn in_post_copy_one_guest_and_never_a_stale_one() {
    for third_party in [false, true] {
        let rules = Rules { third_party, ..POSTCOPY };
        assert!(violations(rules).is_empty());
        let explored = explore(rules);
        assert!(explored.completed && explored.interrupted, "the model does not move");
    }
}

/// Both sides connect again whenever the wire breaks, at any moment and any number of times.
#[test]
fn in_post_copy_over_further_connections_one_guest_and_never_a_stale_one() {
    for disk in [Disk::Shared, Disk::None] {
        for third_party in [false, true] {
            let rules = Rules { disk, third_party, ..RECOVERY };
            assert!(violations(rules).is_empty());
            let explored = explore(rules);
            assert!(explored.completed && explored.recovered && explored.interrupted, "the model does not move");
        }
    }
}

/// The command to run, which is in the package, gets no answer: the source has released its resources before, and takes nothing
/// back by itself. The destination is this library's, as with a QEMU source.
#[test]
fn in_post_copy_without_an_answer_one_guest_and_never_a_stale_one() {
    for reconnects in [false, true] {
        for third_party in [false, true] {
            let rules = Rules { mode: Mode::PostcopyUnanswered, reconnects, third_party, ..SHARED };
            let explored = walked(rules);
            assert!(explored.violations.is_empty());
            assert!(explored.completed && explored.interrupted && explored.recovered == reconnects);
        }
    }
}

#[test]
fn in_post_copy_the_lock_alone_is_too_little_as_well() {
    let found = violations(Rules { fence: false, third_party: false, ..POSTCOPY });
    assert_eq!(found, [LOST, STALE_AT_DESTINATION, STALE_AT_SOURCE]);
}

#[test]
fn in_post_copy_a_lock_that_does_not_exclude_is_found_before_the_commit() {
    for disk in [Disk::Copied, Disk::Unlocked] {
        let rules = Rules { disk, ..POSTCOPY };
        assert!(violations(rules).is_empty());
        assert!(!explore(rules).completed, "{disk:?}: a migration goes through");
    }
}

#[test]
fn in_post_copy_without_a_disk_never_two_guests() {
    let rules = Rules { disk: Disk::None, ..POSTCOPY };
    assert!(violations(rules).is_empty());
    assert!(explore(rules).completed, "no migration goes through");
}
