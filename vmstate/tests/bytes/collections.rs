//! Lists and maps, with their bytes written out from QEMU's format (migration/vmstate-types.c, `put_qtailq`,
//! `put_gtree`) and the values of its own tests (tests/unit/test-vmstate.c).

use std::collections::{BTreeMap, VecDeque};

use vmstate::codec::{Limits, Reader, Strictness, Writer};
use vmstate::{Error, ErrorKind, VmState, Wire};

fn save<T: VmState>(mut state: T) -> Vec<u8> {
    let mut out = Writer::new();
    state.save(&mut out).unwrap();
    out.into_bytes()
}

fn load<T: VmState>(mut state: T, bytes: &[u8], strictness: Strictness) -> vmstate::Result<T> {
    let mut input = Reader::new(bytes, 0, strictness, Limits::default()).complete();
    state.load_or_keep(&mut input, 1)?;
    assert_eq!(input.rest(), b"", "all bytes belong to the state");
    Ok(state)
}

/// Checks that `state` saves to `bytes`, that `bytes` load to `state`, and that no prefix of them changes the device.
fn both_ways<T: VmState + Default + Clone + PartialEq + std::fmt::Debug>(state: T, other: T, bytes: &[u8]) {
    assert_eq!(save(state.clone()), bytes);
    for strictness in [Strictness::Strict, Strictness::QemuCompatible] {
        assert_eq!(load(T::default(), bytes, strictness).unwrap(), state);
        assert_eq!(load(other.clone(), bytes, strictness).unwrap(), state, "what was there is replaced");
    }
    for end in 0..bytes.len() {
        let mut kept = other.clone();
        let mut input = Reader::new(&bytes[..end], 0, Strictness::Strict, Limits::default());
        assert!(kept.load_or_keep(&mut input, 1).unwrap_err().is_incomplete(), "cut at {end}");
        assert_eq!(kept, other, "cut at {end}");
    }
}

fn refused<T: VmState>(state: T, bytes: &[u8]) -> Error {
    match load(state, bytes, Strictness::Strict) {
        Ok(_) => panic!("{bytes:x?} loaded"),
        Err(error) => error,
    }
}

#[derive(VmState, Default, Clone, PartialEq, Debug)]
#[vmstate(name = "test/queue element")]
struct Element {
    i: u32,
}

#[derive(VmState, Default, Clone, PartialEq, Debug)]
#[vmstate(name = "test/boxed")]
struct Boxed {
    #[vmstate(list, max = 3)]
    stack: Box<[u16]>,
}

#[test]
fn a_list_may_be_a_boxed_slice() {
    both_ways(Boxed { stack: [1, 2].into() }, Boxed { stack: [9, 8, 7].into() }, &[1, 0, 1, 1, 0, 2, 0]);
    let error = refused(Boxed::default(), &[1, 0, 1, 1, 0, 2, 1, 0, 3, 1, 0, 4, 0]);
    assert_eq!(error.to_string(), "stack at 0xa: more than 3 elements");
}

/// As in QEMU's `TestQtailq`, whose elements are 70000 and 100000 there.
#[derive(VmState, Default, Clone, PartialEq, Debug)]
#[vmstate(name = "test/queue")]
struct Queue {
    i16: i16,
    #[vmstate(list, max = 3)]
    q: VecDeque<Element>,
    i32: i32,
    #[vmstate(list, max = 3)]
    stack: Vec<u8>,
}

#[test]
fn a_list_has_a_1_before_each_element_and_a_0_behind_the_last() {
    let queue = |i16, elements: &[u32], i32, stack: &[u8]| {
        let q = elements.iter().map(|i| Element { i: *i }).collect();
        Queue { i16, q, i32, stack: stack.to_vec() }
    };
    both_ways(
        queue(-512, &[70000, 100_000], 80000, &[7]),
        queue(1, &[2, 3, 4], 5, &[]),
        b"\xfe\x00\x01\x00\x01\x11\x70\x01\x00\x01\x86\xa0\x00\x00\x01\x38\x80\x01\x07\x00",
    );
    both_ways(Queue::default(), queue(1, &[2], 3, &[4, 5]), b"\0\0\0\0\0\0\0\0");
}

#[test]
fn a_marker_is_0_or_1_and_qemu_takes_any_byte_for_more() {
    let bytes = b"\0\0\x05\0\0\0\x09\0\0\0\0\0\0";
    let error = refused(Queue::default(), bytes);
    assert_eq!(error.to_string(), "q at 0x2: 1 comes before an element and 0 behind the last, got 5");
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert_eq!(load(Queue::default(), bytes, Strictness::QemuCompatible).unwrap().q[0].i, 9);
}

#[test]
fn a_list_is_accepted_up_to_max() {
    let bytes = b"\0\0\0\0\0\0\0\x01\x01\x01\x02\x01\x03\x01\x04\0";
    let error = refused(Queue::default(), bytes);
    assert_eq!(error.to_string(), "stack at 0xe: more than 3 elements");
    assert_eq!(error.kind(), ErrorKind::Malformed);
    let error = Queue { stack: vec![0; 4], ..Queue::default() }.save(&mut Writer::new()).unwrap_err();
    assert_eq!(error.to_string(), "stack: it holds 4, from 0 to 3 elements are allowed");
    assert_eq!(error.kind(), ErrorKind::Rejected);
}

#[test]
fn each_element_is_charged_to_the_budget_before_it_is_created() {
    let mut queue = Queue::default();
    let limits = Limits::new(7);
    let mut input = Reader::new(b"\0\0\x01\0\0\0\x01\x01\0\0\0\x02\0", 0, Strictness::Strict, limits);
    let error = queue.load_or_keep(&mut input, 1).unwrap_err();
    assert_eq!(error.to_string(), "q at 0x8: needs 4 bytes of memory, 3 are left of this section's limit");
    assert_eq!(queue, Queue::default());
}

#[test]
fn an_error_names_the_element() {
    let error = refused(Queue::default(), b"\0\0\x01\0\0\0\x01\x01\0\0");
    assert_eq!(error.to_string(), "q[1] › i at 0x8: 4 bytes expected, 2 left");
}

/// A skipped field of an element keeps its value.
#[derive(VmState, Default, Clone, PartialEq, Debug)]
#[vmstate(name = "port")]
struct Port {
    state: u8,
    #[vmstate(skip)]
    backend: &'static str,
}

#[derive(VmState, Default, Clone, PartialEq, Debug)]
#[vmstate(name = "ports")]
struct Ports {
    #[vmstate(list, max = 9)]
    list: Vec<Port>,
    #[vmstate(map, max = 9)]
    map: BTreeMap<u8, Port>,
}

#[test]
fn elements_and_values_that_were_there_are_loaded_in_place() {
    let port = |state, backend| Port { state, backend };
    let before =
        Ports { list: vec![port(1, "a"), port(2, "b")], map: BTreeMap::from([(3, port(3, "c")), (4, port(4, "d"))]) };
    let bytes = b"\x01\x11\0\0\0\0\x02\x01\x04\x14\x01\x05\x15\0";
    let loaded = load(before.clone(), bytes, Strictness::Strict).unwrap();
    assert_eq!(loaded.list, [port(0x11, "a")]);
    assert_eq!(loaded.map, BTreeMap::from([(4, port(0x14, "d")), (5, port(0x15, ""))]));

    let mut kept = before.clone();
    kept.load_or_keep(&mut Reader::strict(&bytes[..12]), 1).unwrap_err();
    assert_eq!(kept.map, before.map, "an undo finds the values that the load had taken out");
}

#[derive(VmState, Default, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[vmstate(name = "interval")]
struct Interval {
    low: u64,
    high: u64,
}

#[derive(VmState, Default, Clone, PartialEq, Debug)]
#[vmstate(name = "mapping")]
struct Mapping {
    phys_addr: u64,
    flags: u32,
}

/// As in QEMU's `TestGTreeDomain` and its tree of `TestGTreeMapping`.
#[derive(VmState, Default, Clone, PartialEq, Debug)]
#[vmstate(name = "domain")]
struct Domain {
    id: i32,
    #[vmstate(map, max = 3)]
    mappings: BTreeMap<Interval, Mapping>,
}

const DOMAIN: &[u8] = b"\0\0\0\x06\0\0\0\x02\
    \x01\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x1f\xff\0\0\0\0\0\0\xa0\0\0\0\0\x01\
    \x01\0\0\0\0\0\0\x40\0\0\0\0\0\0\0\x4f\xff\0\0\0\0\0\0\xe0\0\0\0\0\x02\0";

#[test]
fn a_map_has_its_number_of_entries_before_them() {
    let mapping = |phys_addr, flags| Mapping { phys_addr, flags };
    let interval = |low, high| Interval { low, high };
    let domain = Domain {
        id: 6,
        mappings: BTreeMap::from([
            (interval(0x4000, 0x4fff), mapping(0xe000, 2)),
            (interval(0x1000, 0x1fff), mapping(0xa000, 1)),
        ]),
    };
    let other = Domain { id: 7, mappings: BTreeMap::from([(interval(0x1000, 0x1fff), mapping(5, 6))]) };
    both_ways(domain, other.clone(), DOMAIN);
    both_ways(Domain::default(), other, b"\0\0\0\0\0\0\0\0\0");
    let error = refused(Domain::default(), &DOMAIN[..0x30]);
    assert_eq!(error.to_string(), "mappings[1] › key › high at 0x2e: 8 bytes expected, 2 left");
    let error = refused(Domain::default(), &DOMAIN[..0x37]);
    assert_eq!(error.to_string(), "mappings[1] › value › phys_addr at 0x36: 8 bytes expected, 1 left");
}

/// `GTREE_DIRECT_KEY_V`: an integer key, in 8 bytes.
#[derive(VmState, Default, Clone, PartialEq, Debug)]
#[vmstate(name = "iommu")]
struct Iommu {
    #[vmstate(map, max = 2)]
    domains: BTreeMap<u64, u8>,
}

#[test]
fn a_direct_key_has_8_bytes() {
    let state = Iommu { domains: BTreeMap::from([(7, 9), (6, 8)]) };
    let bytes = b"\0\0\0\x02\x01\0\0\0\0\0\0\0\x06\x08\x01\0\0\0\0\0\0\0\x07\x09\0";
    both_ways(state, Iommu { domains: BTreeMap::from([(6, 1), (1, 2)]) }, bytes);
}

#[test]
fn a_map_has_as_many_entries_as_it_says() {
    let error = refused(Iommu::default(), b"\0\0\0\x02\x01\0\0\0\0\0\0\0\x06\x08\0");
    assert_eq!(error.to_string(), "domains at 0xf: ends after 1 of 2 entries");
    let error = refused(Iommu::default(), b"\0\0\0\0\x01\0\0\0\0\0\0\0\x06\x08\0");
    assert_eq!(error.to_string(), "domains at 0x5: more than the 0 announced entries");
    let error = refused(Iommu::default(), b"\0\0\0\x03");
    assert_eq!(error.to_string(), "domains at 0x0: it has 3 entries, from 0 to 2 are allowed");
    assert_eq!(error.kind(), ErrorKind::Malformed);
    let domains = BTreeMap::from([(1, 1), (2, 2), (3, 3)]);
    let error = Iommu { domains }.save(&mut Writer::new()).unwrap_err();
    assert_eq!(error.to_string(), "domains: it holds 3, from 0 to 2 elements are allowed");
}

#[test]
fn keys_come_in_order_and_once_unless_qemu_sent_them() {
    let falling = b"\0\0\0\x02\x01\0\0\0\0\0\0\0\x07\x09\x01\0\0\0\0\0\0\0\x06\x08\0";
    let error = refused(Iommu::default(), falling);
    assert_eq!(error.to_string(), "domains[1] › key at 0xf: the keys are not in order");
    let loaded = load(Iommu::default(), falling, Strictness::QemuCompatible).unwrap();
    assert_eq!(loaded.domains, BTreeMap::from([(6, 8), (7, 9)]));

    let twice = b"\0\0\0\x02\x01\0\0\0\0\0\0\0\x07\x09\x01\0\0\0\0\0\0\0\x07\x08\0";
    let error = refused(Iommu::default(), twice);
    assert_eq!(error.to_string(), "domains[1] › key at 0xf: the key comes twice");
    let loaded = load(Iommu::default(), twice, Strictness::QemuCompatible).unwrap();
    assert_eq!(loaded.domains, BTreeMap::from([(7, 8)]), "the last one holds");
}

#[test]
fn each_entry_is_charged_to_the_budget() {
    let limits = Limits::new(2 * 16 + 31);
    let bytes = b"\0\0\0\x02\x01\0\0\0\0\0\0\0\x06\x08\x01\0\0\0\0\0\0\0\x07\x09\0";
    let error = Iommu::default().load_or_keep(&mut Reader::new(bytes, 0, Strictness::Strict, limits), 1).unwrap_err();
    let text = "domains[1] at 0xf: needs 32 bytes of memory, 31 are left of this section's limit";
    assert_eq!(error.to_string(), text);
}

/// Changes of hooks to lists and maps are undone, too.
#[derive(VmState, Default, Clone, PartialEq, Debug)]
#[vmstate(name = "hooked", pre_load = Self::reset, post_load = Self::refuse)]
struct Hooked {
    #[vmstate(list, max = 9)]
    list: VecDeque<u8>,
    #[vmstate(map, max = 9)]
    map: BTreeMap<u8, u8>,
}

impl Hooked {
    fn reset(&mut self) -> Result<(), &'static str> {
        self.list.clear();
        self.map.clear();
        Ok(())
    }

    fn refuse(&mut self, _version: u32) -> Result<(), &'static str> {
        self.list.push_front(9);
        Err("no")
    }
}

#[test]
fn a_load_that_hooks_refuse_changes_nothing() {
    let before = Hooked { list: [1, 2].into(), map: BTreeMap::from([(1, 2), (3, 4)]) };
    let mut kept = before.clone();
    kept.load_or_keep(&mut Reader::strict(b"\x01\x05\0\0\0\0\x01\x01\x03\x06\0"), 1).unwrap_err();
    assert_eq!(kept, before);
}

/// Types of the elements are known only when the struct is used.
#[derive(VmState, Default, Clone, PartialEq, Debug)]
#[vmstate(name = "generic")]
struct Generic<K: Ord, V> {
    #[vmstate(list, max = 2)]
    list: Vec<V>,
    #[vmstate(map, max = 2)]
    map: BTreeMap<K, V>,
}

#[test]
fn lists_and_maps_may_be_of_generic_types() {
    let state = Generic::<u8, (u8, bool)> { list: vec![(1, true)], map: BTreeMap::from([(2, (3, false))]) };
    both_ways(state, Generic::default(), b"\x01\x01\x01\0\0\0\0\x01\x01\x02\x03\0\0");
}
