//! `via` and `with` on the elements of collections.

use std::collections::VecDeque;

use vmstate::codec::{Reader, Writer};
use vmstate::schema::Kind;
use vmstate::testing::bytes;
use vmstate::{ErrorKind, VmState};

use crate::percent::Percent;

/// An address of three bytes.
mod mac {
    use vmstate::codec::{Reader, Writer};
    use vmstate::schema::{Kind, MaybeStatic};

    pub(crate) const KIND: Kind = Kind::Custom(MaybeStatic::Static("mac"));

    pub(crate) fn save(mac: &[char; 3], out: &mut Writer) -> vmstate::Result<()> {
        mac.iter().for_each(|part| out.u8(*part as u8));
        Ok(())
    }

    pub(crate) fn load(input: &mut Reader<'_>) -> vmstate::Result<[char; 3]> {
        Ok(input.array()?.map(char::from))
    }
}

#[derive(VmState, Clone, Debug, PartialEq)]
#[vmstate(name = "fans")]
struct Fans {
    #[vmstate(list, max = 3, via = u8)]
    list: Vec<Percent>,
    #[vmstate(counted = u16, max = 3, via = u8)]
    counted: VecDeque<Percent>,
    count: u8,
    #[vmstate(len = count, max = 3, via = u8)]
    len: Box<[Percent]>,
    #[vmstate(list, max = 2, with = mac)]
    macs: VecDeque<[char; 3]>,
    #[vmstate(counted = u8, max = 2, with = mac)]
    more_macs: Vec<[char; 3]>,
    #[vmstate(len = count, max = 2, with = mac)]
    last_macs: Vec<[char; 3]>,
    #[vmstate(with = [mac; 2])]
    two_macs: [[char; 3]; 2],
}

fn fans() -> Fans {
    let mac = ['a', 'b', 'c'];
    Fans {
        list: vec![Percent(1.0), Percent(2.0)],
        counted: [Percent(3.0)].into(),
        count: 1,
        len: Box::new([Percent(4.0)]),
        macs: [mac].into(),
        more_macs: vec![],
        last_macs: vec![['d', 'e', 'f']],
        two_macs: [mac; 2],
    }
}

const FANS: &[u8] = b"\x01\x01\x01\x02\0\0\x01\x03\x01\x04\x01abc\0\0defabcabc";

#[test]
fn each_element_is_made_for_the_wire() {
    assert_eq!(bytes(&mut fans()), FANS);
    let mut empty = Fans {
        list: vec![],
        counted: [].into(),
        count: 0,
        len: Box::new([]),
        macs: [].into(),
        more_macs: vec![['x'; 3]],
        last_macs: vec![],
        two_macs: [['x'; 3]; 2],
    };
    assert_eq!(bytes(&mut empty), b"\0\0\0\0\0\x01xxxxxxxxx");
    empty.load_or_keep(&mut Reader::strict(FANS), 1).unwrap();
    assert_eq!(empty, fans());
}

#[test]
fn a_failed_load_changes_nothing() {
    let mut device = fans();
    for end in 0..FANS.len() {
        device.load_or_keep(&mut Reader::strict(&FANS[..end]), 1).unwrap_err();
        assert_eq!(device, fans(), "cut at {end}");
    }
    let refusals: [(&[u8], ErrorKind, &str); 5] = [
        (b"\x01\x01\x01\x65", ErrorKind::Rejected, "list[1] at 0x3: via: 101 % is more than all"),
        (b"\x01\x01\x01\x01\x01\x01\x01", ErrorKind::Malformed, "list at 0x7: more than 3 elements"),
        (b"\0\0\x04", ErrorKind::Malformed, "counted at 0x1: it has 4 elements, from 0 to 3 are allowed"),
        (b"\0\0\x02\x01\x66", ErrorKind::Rejected, "counted[1] at 0x4: via: 102 % is more than all"),
        (b"\0\0\0\x04", ErrorKind::Malformed, "len at 0x4: count is 4, from 0 to 3 elements are allowed"),
    ];
    for (wire, kind, text) in refusals {
        let error = device.load_or_keep(&mut Reader::strict(wire), 1).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, text));
        assert_eq!(device, fans());
    }
}

#[test]
fn more_than_max_or_another_number_than_its_length_is_not_sent() {
    let refused = |mut device: Fans| vmstate::Wire::save(&mut device, &mut Writer::new()).unwrap_err().to_string();
    let four = vec![Percent(0.0); 4];
    let text = "it holds 4, from 0 to 3 elements are allowed";
    assert_eq!(refused(Fans { list: four.clone(), ..fans() }), format!("list: {text}"));
    assert_eq!(refused(Fans { counted: four.into(), ..fans() }), format!("counted: {text}"));
    assert_eq!(refused(Fans { count: 0, ..fans() }), "len: its length field says 0, but it holds 1");
}

#[test]
fn the_description_has_what_an_element_is_on_the_wire() {
    let kinds: Vec<_> = Fans::DESCRIPTION.fields.iter().map(|field| field.kind.clone()).collect();
    assert_eq!(kinds[0], Kind::List(Kind::Unsigned(1).into()));
    assert_eq!(kinds[3], Kind::CountedArray(Kind::Unsigned(1).into()));
    assert_eq!(kinds[4], Kind::List(mac::KIND.into()));
    assert_eq!(kinds[7], Kind::Array(mac::KIND.into(), 2));
}
