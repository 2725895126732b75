//! Attributes on the fields of variants: every byte is a literal, and a refused load changes nothing.

use std::collections::BTreeMap;

use crate::seat;
use vmstate::VmState;
use vmstate::codec::{Reader, Writer};
use vmstate::compat::check;
use vmstate::schema::{Count, Field, Kind, Length, Limit};
use vmstate::testing::bytes;

use crate::percent::Percent;

impl Default for Percent {
    fn default() -> Self {
        Self(0.0)
    }
}

#[derive(VmState, Clone, Debug, Default, PartialEq)]
#[repr(u8)]
enum Request {
    #[default]
    Idle = 0,
    Read {
        #[vmstate(wire = u16, name = "start")]
        sector: u64,
        #[vmstate(range = 1..=3)]
        count: u8,
        #[vmstate(len = count, max = 3)]
        data: Vec<u16>,
    } = 1,
    Names(#[vmstate(counted = u8, max = 4)] String, #[vmstate(list, max = 2, via = u8)] Vec<Percent>) = 2,
    Table {
        #[vmstate(map, max = 2, with = (_, seat))]
        seats: BTreeMap<u8, (char, u8)>,
        #[vmstate(skip)]
        host: u32,
        #[vmstate(validate = Self::is_even)]
        level: u8,
    } = 3,
    Coded(#[vmstate(with = seat)] (char, u8), #[vmstate(via = [u8; 2])] [Percent; 2], #[vmstate(buffer)] [u8; 3]) = 4,
    Kept(#[vmstate(skip)] String) = 5,
}

impl Request {
    fn is_even(&self) -> Result<(), &'static str> {
        match self {
            Self::Table { level, .. } if level % 2 == 1 => Err("it is odd"),
            _ => Ok(()),
        }
    }
}

#[derive(VmState, Clone, Debug, PartialEq)]
#[vmstate(name = "dev")]
struct Dev {
    requests: [Request; 2],
}

fn dev(request: Request) -> Dev {
    Dev { requests: [Request::Idle, request] }
}

fn table(host: u32) -> Request {
    Request::Table { seats: [(1, ('a', 2))].into(), host, level: 4 }
}

fn examples() -> [(Request, &'static [u8]); 6] {
    [
        (Request::Idle, b"\0\0"),
        (Request::Read { sector: 0x0102, count: 2, data: vec![3, 4] }, b"\0\x01\x01\x02\x02\0\x03\0\x04"),
        (Request::Names("abc".into(), vec![Percent(5.0)]), b"\0\x02\x03abc\x01\x05\0"),
        (table(0), b"\0\x03\0\0\0\x01\x01\x01a2\0\x04"),
        (Request::Coded(('b', 3), [Percent(6.0), Percent(7.0)], [8, 9, 10]), b"\0\x04b3\x06\x07\x08\x09\x0a"),
        (Request::Kept(String::new()), b"\0\x05"),
    ]
}

#[test]
fn fields_are_on_the_wire_as_their_attributes_say() {
    for (request, wire) in examples() {
        assert_eq!(bytes(&mut dev(request.clone())), wire);
        for (other, _) in examples() {
            let mut loaded = dev(other);
            loaded.load_or_keep(&mut Reader::strict(wire), 1).unwrap();
            assert_eq!(loaded, dev(request.clone()));
        }
    }
    // A skipped field keeps its value while the variant stays the same.
    let mut loaded = dev(table(7));
    loaded.load_or_keep(&mut Reader::strict(b"\0\x03\0\0\0\0\0\x02"), 1).unwrap();
    assert_eq!(loaded, dev(Request::Table { seats: BTreeMap::new(), host: 7, level: 2 }));
}

#[test]
fn a_refused_load_names_the_field_and_changes_nothing() {
    let holders = [table(7), Request::Kept("kept".into()), Request::Read { sector: 1, count: 1, data: vec![9] }];
    let refused = |wire: &[u8], says: &str| {
        for before in holders.clone().map(dev) {
            let mut device = before.clone();
            let error = device.load_or_keep(&mut Reader::strict(wire), 1).unwrap_err();
            assert_eq!((error.to_string().as_str(), &device), (says, &before));
        }
    };
    refused(b"\0\x01\0\x01\x04", "requests[1] › Read › count at 0x5: range: 4 is not in 1..=3");
    refused(b"\0\x02\x05", "requests[1] › Names › 0 at 0x2: it has 5 elements, from 0 to 4 are allowed");
    refused(b"\0\x02\0\x01\x65", "requests[1] › Names › 1[0] at 0x4: via: 101 % is more than all");
    refused(b"\0\x03\0\0\0\0\0\x03", "requests[1] › Table › level at 0x8: validate: it is odd");
    refused(b"\0\x04b", "requests[1] › Coded › 0 at 0x2: 2 bytes expected, 1 left");
    for (_, wire) in examples() {
        for before in holders.clone().map(dev) {
            for end in 0..wire.len() {
                let mut device = before.clone();
                device.load_or_keep(&mut Reader::strict(&wire[..end]), 1).unwrap_err();
                assert_eq!(device, before, "{wire:?} cut at {end}");
            }
        }
    }
    let unsent = |request| vmstate::Wire::save(&mut dev(request), &mut Writer::new()).unwrap_err().to_string();
    assert_eq!(
        unsent(Request::Read { sector: 1, count: 0, data: vec![] }),
        "requests[1] › Read › count: range: 0 is not in 1..=3"
    );
    let odd = Request::Table { seats: BTreeMap::new(), host: 0, level: 1 };
    assert_eq!(unsent(odd), "requests[1] › Table › level: validate: it is odd");
    assert!(
        unsent(Request::Read { sector: 1 << 16, count: 1, data: vec![0] }).starts_with("requests[1] › Read › start: ")
    );
}

#[test]
fn the_description_says_what_a_load_refuses() {
    let [requests] = &*Dev::DESCRIPTION.fields else { panic!("one field") };
    let Kind::Array(element, 2) = &requests.kind else { panic!("an array") };
    let Kind::Struct(request) = &**element else { panic!("an enum is a struct of its variants") };
    let variant = |name: &str| {
        let field = request.fields.iter().find(|field| &*field.name == name).expect("a variant with fields");
        let Kind::Struct(variant) = &field.kind else { panic!("a struct") };
        variant.fields.to_vec()
    };
    let names = |fields: &[Field]| fields.iter().map(|field| field.name.to_string()).collect::<Vec<_>>();
    let read = variant("1");
    assert_eq!(names(&read), ["start", "count", "data"]);
    assert_eq!(read[1].kind, Kind::Limited(Kind::Unsigned(1).into(), Limit::Within(1, 3)));
    assert_eq!(read[2].count, Some(Count::new(Some(Length::Field("count".into())), 1, 3, false)));
    // The variant's check is in the description, too, without bytes.
    assert_eq!(names(&variant("3")), ["seats", "level", "Self::is_even"]);
    assert_eq!(variant("4")[0].kind, seat::KIND);
    assert_eq!(variant("4")[0].conversion.as_deref(), Some("with = seat"));
    // A variant without migrated fields has no fields there.
    assert!(request.fields.iter().all(|field| &*field.name != "5"));
    let report = check(Dev::DESCRIPTION, Dev::DESCRIPTION).to_string();
    assert!(report.contains("version 1: loads") && report.contains("the check Self::is_even of Table"), "{report}");
}

/// A type parameter needs the bounds that the field's attributes require.
#[test]
fn variants_of_generic_fields_load() {
    #[derive(VmState, Debug, PartialEq)]
    #[repr(u8)]
    enum Slot<T, S> {
        Empty = 0,
        Full {
            #[vmstate(counted = u8, max = 4)]
            items: Vec<T>,
            #[vmstate(skip)]
            note: S,
        } = 1,
    }
    #[derive(VmState, Debug, PartialEq)]
    #[vmstate(name = "dev")]
    struct Of {
        slot: Slot<u16, &'static str>,
    }
    let full = || Of { slot: Slot::Full { items: vec![1, 2], note: "" } };
    assert_eq!(bytes(&mut full()), b"\x01\x02\0\x01\0\x02");
    let mut loaded = Of { slot: Slot::Empty };
    loaded.load_or_keep(&mut Reader::strict(b"\x01\x02\0\x01\0\x02"), 1).unwrap();
    assert_eq!(loaded, full());
}
