//! `counted`: the number of elements comes right before them, and a peer's number is limited.

use std::collections::VecDeque;

use vmstate::codec::{Limits, Reader, Strictness, Writer};
use vmstate::raw::vmdesc;
use vmstate::schema::{Kind, Length};
use vmstate::testing::bytes;
use vmstate::{ErrorKind, VmState};

#[derive(VmState, Default, Debug, PartialEq)]
#[vmstate(name = "pair")]
struct Pair {
    sent: u8,
    #[vmstate(skip)]
    kept: u32,
}

#[derive(VmState, Default, Debug, PartialEq)]
#[vmstate(name = "dev")]
struct Dev {
    #[vmstate(counted = u16, max = 3)]
    words: Vec<u16>,
    #[vmstate(counted = u8, max = 4)]
    queue: VecDeque<Pair>,
    #[vmstate(counted = u32, max = 2)]
    boxed: Box<[u8]>,
    #[vmstate(counted = u64, max = 6)]
    name: String,
}

fn dev() -> Dev {
    Dev {
        words: vec![0x102, 3], queue: [Pair { sent: 4, kept: 0 }].into(), boxed: Box::new([5, 6]), name: "né".into()
    }
}

const DEV: &[u8] = b"\0\x02\x01\x02\0\x03\x01\x04\0\0\0\x02\x05\x06\0\0\0\0\0\0\0\x03n\xc3\xa9";

fn refused(wire: &[u8]) -> (ErrorKind, String) {
    let mut device = dev();
    let error = device.load_or_keep(&mut Reader::strict(wire), 1).unwrap_err();
    assert_eq!(device, dev(), "a failed load leaves what was there");
    (error.kind(), error.to_string())
}

#[test]
fn the_number_stands_before_the_elements() {
    assert_eq!(bytes(&mut dev()), DEV);
    let mut empty = Dev::default();
    assert_eq!(bytes(&mut empty), [0; 15]);
    empty.load_or_keep(&mut Reader::strict(DEV), 1).unwrap();
    assert_eq!((empty.queue[0].sent, empty.queue[0].kept), (4, 0));
    assert_eq!(bytes(&mut empty), DEV);
}

#[test]
fn present_elements_are_loaded_in_place() {
    let mut device = dev();
    device.queue.push_front(Pair { sent: 0, kept: 7 });
    device.load_or_keep(&mut Reader::strict(DEV), 1).unwrap();
    assert_eq!(device.queue, [Pair { sent: 4, kept: 7 }]);
    device.load_or_keep(&mut Reader::strict(&[0; 15]), 1).unwrap();
    assert_eq!(device, Dev::default());
}

#[test]
fn a_truncated_load_changes_nothing() {
    for end in 0..DEV.len() {
        assert_eq!(refused(&DEV[..end]).0, ErrorKind::Incomplete, "cut at {end}");
    }
}

#[test]
fn a_number_above_max_is_refused_before_anything_is_allocated() {
    let text = |place: &str, count: u64, max| {
        (ErrorKind::Malformed, format!("{place}: it has {count} elements, from 0 to {max} are allowed"))
    };
    assert_eq!(refused(b"\0\x04"), text("words at 0x0", 4, 3));
    assert_eq!(refused(b"\xff\xff"), text("words at 0x0", 0xffff, 3));
    assert_eq!(refused(b"\0\0\x05"), text("queue at 0x2", 5, 4));
    assert_eq!(refused(b"\0\0\0\xff\xff\xff\xff"), text("boxed at 0x3", 0xffff_ffff, 2));
    assert_eq!(refused(b"\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"), text("name at 0x7", u64::MAX, 6));
}

#[test]
fn more_than_max_is_not_sent() {
    let mut device = Dev { words: vec![0; 4], ..dev() };
    let error = vmstate::Wire::save(&mut device, &mut Writer::new()).unwrap_err();
    let text = "words: it holds 4, from 0 to 3 elements are allowed";
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Rejected, text));
    let mut device = Dev { name: "seven b".into(), ..dev() };
    assert_eq!(vmstate::Wire::save(&mut device, &mut Writer::new()).unwrap_err().path(), "name");
}

#[test]
fn a_string_must_be_utf_8() {
    let expected = |offset| (ErrorKind::Malformed, format!("name at {offset:#x}: these bytes are not UTF-8"));
    assert_eq!(refused(b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02n\xc3"), expected(0x10));
    // The first half of a surrogate pair, encoded like UTF-8.
    assert_eq!(refused(b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x03\xed\xa0\x80"), expected(0xf));
}

#[test]
fn an_element_is_named_in_its_errors() {
    let (_, text) = refused(b"\0\x02\0\0\0");
    assert_eq!(text, "words[1] at 0x4: 2 bytes expected, 1 left");
}

#[test]
fn elements_are_charged_to_the_budget_of_the_load() {
    #[derive(VmState, Default)]
    #[vmstate(name = "big")]
    struct Big {
        #[vmstate(counted = u32, max = 1_000_000_000)]
        words: Vec<u64>,
    }
    let mut input = Reader::new(b"\x3b\x9a\xca\0", 0, Strictness::Strict, Limits::default());
    let error = Big::default().load_or_keep(&mut input, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed, "{error}");
}

#[test]
fn the_description_says_what_is_refused() {
    let Kind::Struct(counted) = &Dev::DESCRIPTION.fields[0].kind else { panic!("{:?}", Dev::DESCRIPTION) };
    let kinds: Vec<_> = counted.fields.iter().map(|field| (&*field.name, &field.kind)).collect();
    let words = Kind::CountedArray(Kind::Unsigned(2).into());
    assert_eq!(kinds, [("count", &Kind::Unsigned(2)), ("elements", &words)]);
    let count = counted.fields[1].count.as_ref().unwrap();
    assert_eq!((&count.length, count.most), (&Some(Length::Field("count".into())), 3));
    let mut out = Writer::recording();
    vmstate::Wire::save(&mut dev(), &mut out).unwrap();
    let said = serde_json::Value::from(vmdesc(Dev::DESCRIPTION, &out.into_parts().1).unwrap());
    assert_eq!(said["fields"][0]["struct"]["fields"][0]["size"], 2);
    assert_eq!(said["fields"][0]["struct"]["fields"][1]["array_len"], 2);
    assert_eq!(said["fields"][3]["size"], 8 + 3);
}
