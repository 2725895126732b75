//! `via` and `with` on the keys and values of maps and sets.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::seat;
use vmstate::codec::{Reader, Writer};
use vmstate::compat::{Assumption, check};
use vmstate::schema::{Count, Kind};
use vmstate::testing::bytes;
use vmstate::{ErrorKind, VmState};

/// A type without a default and without an encoding of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Id(u64);

impl From<&Id> for u16 {
    fn from(id: &Id) -> u16 {
        id.0 as u16
    }
}

impl TryFrom<u16> for Id {
    type Error = &'static str;

    fn try_from(wire: u16) -> Result<Self, &'static str> {
        if wire == 0 { Err("0 is nobody") } else { Ok(Self(wire.into())) }
    }
}

#[derive(VmState, Default, Clone, Debug, PartialEq)]
#[vmstate(name = "own")]
struct Own {
    level: u8,
    #[vmstate(skip)]
    host: u8,
}

#[derive(VmState, Clone, Debug, PartialEq)]
#[vmstate(name = "room")]
struct Room {
    #[vmstate(map, max = 3, via = (u16, u16))]
    both: BTreeMap<Id, Id>,
    #[vmstate(map, max = 3, via = (u16, _))]
    keys: HashMap<Id, Own>,
    #[vmstate(map, max = 3, with = (_, seat))]
    values: BTreeMap<i8, (char, u8)>,
    #[vmstate(map, max = 3, with = (seat, _))]
    seats: BTreeMap<(char, u8), u8>,
    #[vmstate(map, max = 3, via = (u16, _), with = (_, seat))]
    mixed: BTreeMap<Id, (char, u8)>,
    #[vmstate(map, max = 3, via = (u16, _))]
    set: BTreeSet<Id>,
}

fn room() -> Room {
    Room {
        both: [(Id(2), Id(3)), (Id(1), Id(4))].into(),
        keys: [(Id(5), Own { level: 6, host: 0 })].into(),
        values: [(-1, ('a', 1)), (1, ('b', 2))].into(),
        seats: [(('c', 3), 7)].into(),
        mixed: [(Id(8), ('d', 4))].into(),
        set: [Id(9)].into(),
    }
}

const BOTH: &[u8] = b"\0\0\0\x02\x01\0\x01\0\x04\x01\0\x02\0\x03\0";
const KEYS: &[u8] = b"\0\0\0\x01\x01\0\x05\x06\0";
const VALUES: &[u8] = b"\0\0\0\x02\x01\xffa1\x01\x01b2\0";
const SEATS: &[u8] = b"\0\0\0\x01\x01c3\x07\0";
const MIXED: &[u8] = b"\0\0\0\x01\x01\0\x08d4\0";
const SET: &[u8] = b"\0\0\0\x01\x01\0\x09\0";

fn wire() -> Vec<u8> {
    [BOTH, KEYS, VALUES, SEATS, MIXED, SET].concat()
}

#[test]
fn keys_and_values_are_made_for_the_wire() {
    assert_eq!(bytes(&mut room()), wire());
    let mut other = Room {
        both: [(Id(1), Id(9)), (Id(7), Id(7))].into(),
        // The value of an existing key is loaded in place: its skipped field keeps its value.
        keys: [(Id(5), Own { level: 1, host: 77 }), (Id(6), Own::default())].into(),
        values: [].into(),
        seats: [].into(),
        mixed: [].into(),
        set: [Id(1)].into(),
    };
    other.load_or_keep(&mut Reader::strict(&wire()), 1).unwrap();
    assert_eq!(other, Room { keys: [(Id(5), Own { level: 6, host: 77 })].into(), ..room() });
}

#[test]
fn a_failed_load_changes_nothing() {
    let before = Room { keys: [(Id(5), Own { level: 1, host: 77 })].into(), set: [Id(1), Id(3)].into(), ..room() };
    let mut device = before.clone();
    for end in 0..wire().len() {
        device.load_or_keep(&mut Reader::strict(&wire()[..end]), 1).unwrap_err();
        assert_eq!(device, before, "cut at {end}");
    }
    let refusals: [(&[u8], ErrorKind, &str); 5] = [
        (b"\0\0\0\x01\x01\0\0\0\x04\0", ErrorKind::Rejected, "both[0] › key at 0x5: via: 0 is nobody"),
        (b"\0\0\0\x01\x01\0\x01\0\0\0", ErrorKind::Rejected, "both[0] › value at 0x7: via: 0 is nobody"),
        (
            b"\0\0\0\x02\x01\0\x02\0\x04\x01\0\x01\0\x03\0",
            ErrorKind::Malformed,
            "both[1] › key at 0xa: the keys are not in order",
        ),
        (b"\0\0\0\x04", ErrorKind::Malformed, "both at 0x0: it has 4 entries, from 0 to 3 are allowed"),
        (b"\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x01\x01a ", ErrorKind::Malformed, "values[0] › value at 0x12: no seat"),
    ];
    for (wire, kind, text) in refusals {
        let error = device.load_or_keep(&mut Reader::strict(wire), 1).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, text));
        assert_eq!(device, before);
    }
    let four = (1..=4).map(|id| (Id(id), Id(id))).collect();
    let mut large = Room { both: four, ..room() };
    let refused = vmstate::Wire::save(&mut large, &mut Writer::new()).unwrap_err().to_string();
    assert_eq!(refused, "both: it holds 4, from 0 to 3 elements are allowed");
    assert_eq!(large.both.len(), 4);
}

#[test]
fn the_description_names_the_encoding_and_the_conversion() {
    let fields = &Room::DESCRIPTION.fields;
    let map = |key: Kind, value: Kind| Kind::Map(key.into(), value.into());
    let u16 = || Kind::Unsigned(2);
    let expected = [
        (map(u16(), u16()), "via = (u16,u16)"),
        (map(u16(), Kind::Struct(Own::DESCRIPTION.clone().into())), "via = (u16,_)"),
        (map(Kind::Signed(1), seat::KIND), "with = (_,seat)"),
        (map(seat::KIND, Kind::Unsigned(1)), "with = (seat,_)"),
        (map(u16(), seat::KIND), "via = (u16,_), with = (_,seat)"),
        (map(u16(), Kind::Unused(0)), "via = (u16,_)"),
    ];
    for (field, (kind, conversion)) in fields.iter().zip(expected) {
        assert_eq!((&field.kind, field.conversion.as_deref()), (&kind, Some(conversion)));
        assert_eq!(field.count, Some(Count::new(None, 1, 3, false)));
    }
    let report = check(Room::DESCRIPTION, Room::DESCRIPTION);
    let relied = report.comparisons[0].relies_on.iter().find_map(|assumption| match assumption {
        Assumption::Hooks(hooks) => Some(hooks.join("; ")),
        _ => None,
    });
    assert!(relied.unwrap().contains("via = (u16,_), with = (_,seat) of mixed"));
}
