//! Enums with fields: the number of the variant, then its fields; every byte is a literal.

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
fn a_refused_load_names_the_field_and_changes_nothing() {
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
    // The present variant is loaded in place, and put back, too.
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

/// The verdicts on streams of one release in the other, without the remedies.
fn verdicts<Old: VmState, New: VmState>() -> [String; 2] {
    let report = vmstate::compat::check(Old::DESCRIPTION, New::DESCRIPTION);
    [Direction::OldToNew, Direction::NewToOld].map(|direction| {
        let mut comparisons = report.comparisons.iter().filter(|comparison| comparison.direction == direction);
        let comparison = comparisons.next().expect("one version each way");
        assert!(comparison.warnings.is_empty() && comparison.relies_on.is_empty(), "{comparison}");
        let sentence = comparison.verdict.to_string();
        let cases = sentence.split("; and ").map(|case| case.split(" -> ").next().unwrap_or_default());
        cases.collect::<Vec<_>>().join("; and ")
    })
}

#[test]
fn a_variant_that_ends_in_subsections_need_not_be_the_last_one() {
    #[derive(VmState, Debug, PartialEq)]
    #[repr(u8)]
    enum Mode {
        Framed(Frame) = 1,
        Level(u8) = 2,
    }
    #[derive(VmState, Debug, PartialEq)]
    #[vmstate(name = "dev")]
    struct Last {
        mode: Mode,
    }
    let framed = || Last { mode: Mode::Framed(Frame { length: 7, late: Some(8) }) };
    assert_eq!(bytes(&mut framed()), b"\x01\0\x07\x05\x0aframe/late\0\0\0\x01\x08");
    let mut loaded = Last { mode: Mode::Level(0) };
    loaded.load_or_keep(&mut Reader::strict(&bytes(&mut framed())).complete(), 1).unwrap();
    assert_eq!(loaded, framed());
}

#[test]
fn the_checker_determines_the_fields_of_a_tag() {
    mod old {
        #[derive(vmstate::VmState, Default)]
        #[repr(u8)]
        pub(super) enum Mode {
            #[default]
            Off = 0,
            Level(u8) = 1,
        }
    }
    mod new {
        #[derive(vmstate::VmState, Default)]
        #[repr(u8)]
        pub(super) enum Mode {
            #[default]
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
    mod other {
        #[derive(vmstate::VmState)]
        #[repr(u8)]
        pub(super) enum Mode {
            Level(u16) = 1,
            Off = 0,
        }
    }
    // Elements are not distinguished: one of them is enough.
    #[derive(VmState)]
    #[vmstate(name = "dev")]
    struct Each<T> {
        #[vmstate(list, max = 4)]
        modes: Vec<T>,
    }
    let loads = || "loads".to_owned();
    assert_eq!(verdicts::<Of<new::Mode>, Of<new::Mode>>(), [loads(), loads()]);
    let added = "loads if mode.tag is not 2, else breaks at mode.tag because the reader takes only 0 or 1";
    assert_eq!(verdicts::<Of<old::Mode>, Of<new::Mode>>(), [loads(), added.to_owned()]);
    let each = "loads if modes[].tag is not 2, else breaks at modes[].tag because the reader takes only 0 or 1";
    assert_eq!(verdicts::<Each<old::Mode>, Each<new::Mode>>(), [loads(), each.to_owned()]);
    let longer = "loads if mode.tag is 0, else breaks at mode.1.0 because mode.1.0 (u8) is read as mode.1.0 (u16)";
    let shorter = "loads if mode.tag is 0, else breaks at mode.1.0 because mode.1.0 (u16) is read as mode.1.0 (u8)";
    assert_eq!(verdicts::<Of<old::Mode>, Of<other::Mode>>(), [longer, shorter].map(str::to_owned));
    let lost_and_longer = "loads if mode.tag is not 2, else breaks at mode.tag because the reader takes only 0 or 1; \
        and if mode.tag is not 1, else breaks at mode.1.0 because mode.1.0 (u8) is read as mode.1.0 (u16)";
    assert_eq!(verdicts::<Of<new::Mode>, Of<other::Mode>>(), [lost_and_longer, shorter].map(str::to_owned));
    let _ = (old::Mode::Off, old::Mode::Level(1), new::Mode::Off, new::Mode::Level(1), new::Mode::Wide(1));
    let _ = (other::Mode::Off, other::Mode::Level(1));
}
