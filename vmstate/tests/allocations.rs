//! Allocations of a save and a load: none for a single field. Counted by a global allocator, on the machine of the benchmark.
#![cfg(feature = "engine")]

#[path = "../benches/machine/mod.rs"]
mod machine;

use allocation_counter::measure;
use machine::Machine;
use machine::sections::{load, save};
use vmstate::codec::Writer;

/// Non-empty `Vec`s of the machine: the queues of two disks and two cards, the disks' requests, the cards' tables of addresses. A
/// load keeps a copy of each until it has succeeded.
const VECS: u64 = 4 + 2 + 2;

#[test]
fn a_save_into_a_used_buffer_allocates_only_the_list_of_sections() {
    let mut machine = Machine::new(1);
    let mut sections = machine.sections();
    let mut out = Writer::new();
    save(&mut sections, &mut out).unwrap();
    out.buffer().clear();
    let counted = measure(|| save(&mut sections, &mut out).unwrap());
    assert_eq!(counted.count_total, 1, "{} devices: {counted:?}", Machine::DEVICES);
}

#[test]
fn a_load_allocates_only_what_an_undo_of_vecs_needs() {
    let (mut from, mut to) = (Machine::new(1), Machine::new(2));
    let mut out = Writer::new();
    save(&mut from.sections(), &mut out).unwrap();
    let mut sections = to.sections();
    let counted = measure(|| load(&mut sections, out.as_slice()).unwrap());
    assert_eq!(counted.count_total, VECS, "{} devices: {counted:?}", Machine::DEVICES);
    drop(sections);
    assert_eq!(to, from);
}
