//! Enums with fields: the number of the variant, then its fields; every byte is written out.

use vmstate::VmState;
use vmstate::codec::{Reader, Writer};
use vmstate::compat::Direction;
use vmstate::raw::vmdesc;
use vmstate::testing::bytes;

#[derive(VmState, Default, Debug, PartialEq)]
#[vmstate(name = "frame", subsection(name = "frame/late"))]
struct Frame {
    length: u16,
    #[vmstate(subsection = "frame/late")]
    late: Option<u8>,
}

#[derive(VmState, Default, Debug, PartialEq)]
#[repr(u8)]
enum State {
    #[default]
    Idle = 0,
    Reading(u32, Box<u8>) = 2,
    Writing {
        address: u16,
        data: [u8; 2],
        r#final: bool,
    } = 0x10,
    Framed(Frame) = 3,
}

#[derive(VmState, Debug, PartialEq)]
#[repr(i16)]
enum Slot<T> {
    Empty = -1,
    Full(T) = 1,
}

#[derive(VmState, Debug, PartialEq)]
#[vmstate(name = "dev")]
struct Dev {
    slots: [Slot<u16>; 2],
    #[vmstate(list, max = 4)]
    queue: Vec<State>,
    state: State,
}

fn dev(state: State) -> Dev {
    Dev { slots: [Slot::Empty, Slot::Full(0x0102)], queue: vec![State::Reading(1, Box::new(2))], state }
}

const SLOTS: &[u8] = b"\xff\xff\0\x01\x01\x02";
const QUEUE: &[u8] = b"\x01\x02\0\0\0\x01\x02\0";

fn round(state: fn() -> State, last: &[u8]) {
    let expected = [SLOTS, QUEUE, last].concat();
    assert_eq!(bytes(&mut dev(state())), expected);
    for other in [State::Idle, State::Reading(9, Box::new(9)), state()] {
        let mut loaded = Dev { slots: [Slot::Full(7), Slot::Empty], queue: vec![], state: other };
        loaded.load_or_keep(&mut Reader::strict(&expected), 1).unwrap();
        assert_eq!(loaded, dev(state()));
    }
}

#[test]
fn a_variant_is_its_number_and_its_fields() {
    round(|| State::Idle, b"\0");
    round(|| State::Reading(0x0102_0304, Box::new(5)), b"\x02\x01\x02\x03\x04\x05");
    round(|| State::Writing { address: 0x0102, data: [3, 4], r#final: true }, b"\x10\x01\x02\x03\x04\x01");
    round(|| State::Framed(Frame { length: 7, late: None }), b"\x03\0\x07");
    round(|| State::Framed(Frame { length: 7, late: Some(8) }), b"\x03\0\x07\x05\x0aframe/late\0\0\0\x01\x08");
}

#[test]
fn what_is_refused_is_named_and_leaves_all_as_it_was() {
    let refused = |last: &[u8]| {
        let mut device = dev(State::Writing { address: 1, data: [2, 3], r#final: false });
        let before = bytes(&mut device);
        let error =
            device.load_or_keep(&mut Reader::strict(&[b"\0\x01\0\x09\xff\xff\0", last].concat()), 1).unwrap_err();
        assert_eq!(bytes(&mut device), before);
        error.to_string()
    };
    assert_eq!(
        refused(b"\x01"),
        "state at 0x7: 1 is no State; known are 0 (Idle), 2 (Reading), 16 (Writing), 3 (Framed)"
    );
    assert_eq!(refused(b"\x02\0\0\0\x01"), "state › Reading › 1 at 0xc: 1 bytes expected, 0 left");
    assert_eq!(refused(b"\x10\0\x01\0\0\x02"), "state › Writing › final at 0xc: a bool is 0 or 1, got 2");
    assert_eq!(refused(b""), "state › tag at 0x7: 1 bytes expected, 0 left");
    // The variant that it has is loaded in place, and put back, too.
    assert_eq!(refused(b"\x10\0\x09\x09"), "state › Writing › data[1] at 0xb: 1 bytes expected, 0 left");
}

#[test]
fn it_describes_itself_as_a_tag_and_a_struct_for_each_variant() {
    let mut device = dev(State::Writing { address: 1, data: [2, 3], r#final: false });
    let mut out = Writer::recording();
    vmstate::Section::save(&mut device, &mut out).unwrap();
    let (_, outcomes) = out.into_parts();
    let all = vmdesc(Dev::DESCRIPTION, &outcomes).unwrap();
    let state = all["fields"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(state["struct"]["vmsd_name"], "State");
    let fields = state["struct"]["fields"].as_array().unwrap();
    let names: Vec<_> = fields.iter().map(|field| field["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["tag", "16"]);
    assert_eq!(fields[1]["struct"]["vmsd_name"], "Writing");
    assert_eq!(fields[1]["size"], 5);
}

#[test]
fn a_new_variant_is_found_by_the_checker() {
    mod old {
        #[derive(vmstate::VmState)]
        #[repr(u8)]
        pub(super) enum Mode {
            Off = 0,
            Level(u8) = 1,
        }
    }
    mod new {
        #[derive(vmstate::VmState)]
        #[repr(u8)]
        pub(super) enum Mode {
            Off = 0,
            Level(u8) = 1,
            Wide(u16) = 2,
        }
    }
    #[derive(VmState)]
    #[vmstate(name = "dev")]
    struct Of<T> {
        mode: T,
    }
    let loads = |from, to, given: &[&str]| {
        let given: Vec<_> = given.iter().map(ToString::to_string).collect();
        let report = vmstate::compat::check(from, to);
        let mut crossings = report.crossings.iter();
        crossings.all(|crossing| crossing.direction != Direction::OldToNew || crossing.verdict.loads_given(&given))
    };
    let (old, new) = (Of::<old::Mode>::DESCRIPTION, Of::<new::Mode>::DESCRIPTION);
    assert!(loads(old, old, &[]) && loads(new, new, &[]));
    // The checker does not know that the number decides what follows: it asks.
    let no_wide = "the predicate of mode.2 is false";
    assert!(!loads(old, new, &[]) && loads(old, new, &[no_wide]));
    assert!(!loads(new, old, &[no_wide]), "a value of 2 is refused");
    let _ = (old::Mode::Off, old::Mode::Level(1), new::Mode::Off, new::Mode::Level(1), new::Mode::Wide(1));
}
