//! Explores all reachable states, breadth first, so that the reported paths are the shortest.

use std::collections::{BTreeMap, HashMap, VecDeque};

use vmstate::migrate::{DestinationPhase, SourcePhase};

use crate::world::{Rules, World};

/// The result of an exploration.
pub(crate) struct Explored {
    pub(crate) states: usize,
    /// True if the guest runs at the destination in some state, after a completed migration.
    pub(crate) completed: bool,
    /// True if the guest runs at the source again in some state, after a pause.
    pub(crate) taken_back: bool,
    /// True if the guest runs at the source again in some state, after the sides had lost each other.
    pub(crate) recovered: bool,
    /// True if the sides lost each other in some state while the guest ran at the destination without all of its memory.
    pub(crate) interrupted: bool,
    /// Violated rules, each with the shortest path to it.
    pub(crate) violations: BTreeMap<&'static str, Vec<&'static str>>,
}

pub(crate) fn explore(rules: Rules) -> Explored {
    let first = World::new();
    let mut known: HashMap<World, usize> = HashMap::from([(first.clone(), 0)]);
    // For the path: the step that led to each state, and its predecessor.
    let mut origin: Vec<(&'static str, usize)> = vec![("", 0)];
    let mut queue = VecDeque::from([(first, 0)]);
    let mut explored = Explored {
        states: 0,
        completed: false,
        taken_back: false,
        recovered: false,
        interrupted: false,
        violations: BTreeMap::new(),
    };
    while let Some((world, index)) = queue.pop_front() {
        let steps = world.steps(rules);
        explored.completed |= world.destination.phase() == DestinationPhase::Completed && world.destination_runs;
        explored.recovered |= world.reconnected
            && (world.source.phase(), world.destination.phase())
                == (SourcePhase::Completed, DestinationPhase::Completed)
            && world.destination_runs;
        explored.taken_back |= world.source.phase() == SourcePhase::Failed && world.source_runs && world.was_paused;
        explored.interrupted |= world.source.phase() == SourcePhase::Interrupted
            && world.destination.phase() == DestinationPhase::Interrupted;
        if let Some(what) = world.violation(rules, &steps) {
            explored.violations.entry(what).or_insert_with(|| path(&origin, index));
        }
        for (label, next) in steps {
            if !known.contains_key(&next) {
                let number = origin.len();
                origin.push((label, index));
                known.insert(next.clone(), number);
                queue.push_back((next, number));
            }
        }
    }
    explored.states = known.len();
    explored
}

fn path(origin: &[(&'static str, usize)], mut index: usize) -> Vec<&'static str> {
    let mut path = Vec::new();
    while index > 0 {
        let (label, from) = origin[index];
        path.push(label);
        index = from;
    }
    path.reverse();
    path
}
