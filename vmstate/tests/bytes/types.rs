//! Types that hold another value: their bytes are those of the value, as literals; and which bytes they refuse.

use std::cell::{Cell, RefCell};
use std::num::{NonZero, Wrapping};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64,
};
use std::sync::{Mutex, RwLock};

use vmstate::codec::{Reader, Writer};
use vmstate::raw::vmdesc;
use vmstate::testing::bytes;
use vmstate::{Error, ErrorKind, VmState, Wire};

/// Checks that `wire` loads into `state`, which then saves to it, and that the state after a failed load still saves to the same
/// bytes.
fn round<T: VmState>(mut state: T, wire: &[u8]) -> T {
    state.load_or_keep(&mut Reader::strict(wire), 1).unwrap();
    assert_eq!(bytes(&mut state), wire);
    for end in 0..wire.len() {
        let other: Vec<u8> = wire[..end].iter().map(|byte| byte ^ 1).collect();
        assert!(state.load_or_keep(&mut Reader::strict(&other), 1).is_err());
        assert_eq!(bytes(&mut state), wire, "cut at {end}");
    }
    state
}

fn refused<T: VmState>(mut state: T, bytes: &[u8]) -> Error {
    state.load_or_keep(&mut Reader::strict(bytes), 1).unwrap_err()
}

#[derive(VmState, Default)]
#[vmstate(name = "atomics")]
struct Atomics(AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicI8, AtomicI16, AtomicI32, AtomicI64);

#[test]
fn atomics_are_the_integers_they_hold() {
    let atomics = round(
        Atomics::default(),
        b"\x01\x12\x12\x34\x12\x34\x56\x78\x12\x34\x56\x78\x9a\xbc\xde\xf0\
          \xfe\xff\xfd\xff\xff\xff\xfc\xff\xff\xff\xff\xff\xff\xff\xfb",
    );
    assert!(atomics.0.into_inner());
    assert_eq!(atomics.4.into_inner(), 0x1234_5678_9abc_def0);
    assert_eq!(atomics.8.into_inner(), -5);
}

#[derive(VmState, Default)]
#[vmstate(name = "cells")]
struct Cells {
    cell: Cell<u16>,
    ref_cell: RefCell<[u8; 2]>,
    mutex: Mutex<u32>,
    rw_lock: RwLock<Wrapping<i8>>,
    pair: Mutex<(u8, u16)>,
}

#[test]
fn cells_and_locks_add_no_bytes() {
    let cells = round(Cells::default(), b"\x12\x34\x01\x02\x12\x34\x56\x78\xff\x07\x00\x08");
    assert_eq!(cells.cell.get(), 0x1234);
    assert_eq!(*cells.ref_cell.borrow(), [1, 2]);
    assert_eq!(*cells.mutex.lock().unwrap(), 0x1234_5678);
    assert_eq!(cells.rw_lock.read().unwrap().0, -1);
    assert_eq!(*cells.pair.lock().unwrap(), (7, 8));
}

#[test]
fn a_poisoned_lock_is_refused_with_its_place() {
    let mut cells = Cells::default();
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let _guard = cells.mutex.lock().unwrap();
        std::panic::resume_unwind(Box::new(()));
    }));
    let error = cells.save(&mut Writer::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    let text = "the Mutex is poisoned: a thread panicked while it held it, so its value may be half changed";
    assert_eq!(error.to_string(), format!("mutex: {text}"));
    let error = cells.load_or_keep(&mut Reader::strict(&[1; 12]), 1).unwrap_err();
    assert_eq!(error.to_string(), format!("mutex at 0x4: {text}"));
    assert_eq!(cells.cell.get(), 0, "the fields before it are put back");
}

#[test]
fn a_leaked_guard_is_refused_and_nothing_panics() {
    let mut cells = Cells::default();
    std::mem::forget(cells.ref_cell.borrow_mut());
    let error = cells.load_or_keep(&mut Reader::strict(&[1; 12]), 1).unwrap_err();
    assert_eq!(error.to_string(), "ref_cell at 0x2: the RefCell is held by a guard that was never dropped");
    assert_eq!(cells.save(&mut Writer::new()).unwrap_err().kind(), ErrorKind::Misuse);
}

#[derive(VmState)]
#[vmstate(name = "nonzero")]
struct Divisors(NonZero<u8>, NonZero<u16>, NonZero<u32>, NonZero<u64>, NonZero<i8>);

const ONES: Divisors =
    Divisors(NonZero::<u8>::MIN, NonZero::<u16>::MIN, NonZero::<u32>::MIN, NonZero::<u64>::MIN, NonZero::<i8>::MIN);

#[test]
fn a_nonzero_refuses_0() {
    let bytes = b"\x12\x12\x34\x12\x34\x56\x78\x12\x34\x56\x78\x9a\xbc\xde\xf0\xff";
    assert_eq!(round(ONES, bytes).4.get(), -1);
    let mut zero = *bytes;
    zero[1..3].fill(0);
    let error = refused(ONES, &zero);
    assert_eq!(error.to_string(), "1 at 0x1: 0 is not allowed");
    assert_eq!(error.kind(), ErrorKind::Malformed);
}

#[derive(VmState, Default)]
#[vmstate(name = "tuples")]
struct Tuples {
    pairs: [(u8, u16); 2],
    six: (u8, i8, bool, u16, [u8; 2], (u8,)),
}

#[test]
fn tuples_are_their_parts_in_a_row() {
    let bytes = b"\x01\x00\x02\x03\x00\x04\x05\xff\x01\x12\x34\x06\x07\x08";
    let tuples = round(Tuples::default(), bytes);
    assert_eq!(tuples.pairs, [(1, 2), (3, 4)]);
    assert_eq!(tuples.six, (5, -1, true, 0x1234, [6, 7], (8,)));
    let error = refused(Tuples::default(), &bytes[..5]);
    assert_eq!(error.to_string(), "pairs[1] › 1 at 0x4: 2 bytes expected, 1 left");
}

#[test]
fn a_tuple_describes_itself_as_a_struct() {
    let fields = vmdesc(Tuples::DESCRIPTION, &[]).unwrap()["fields"].clone();
    let expected = serde_json::json!({
        "name": "pairs", "array_len": 2, "type": "struct", "size": 3,
        "struct": {
            "vmsd_name": "tuple", "version": 1,
            "fields": [{"name": "0", "type": "uint8", "size": 1}, {"name": "1", "type": "uint16", "size": 2}],
        },
    });
    assert_eq!(fields[0], expected);
}

#[derive(VmState, Default, Debug, PartialEq)]
#[repr(u16)]
enum Mode {
    #[default]
    Off = 0,
    Slow = 0x1234,
    Fast = 1 << 15,
}

/// Signed, and neither `Copy` nor `Default`.
#[derive(VmState, Debug, PartialEq)]
#[repr(i8)]
enum Level {
    Low = -1,
    High = 1,
}

#[derive(VmState)]
#[vmstate(name = "enums")]
struct Enums {
    modes: [Mode; 2],
    level: Level,
}

const OFF: Enums = Enums { modes: [Mode::Off, Mode::Off], level: Level::High };

#[test]
fn an_enum_is_its_discriminant() {
    let enums = round(OFF, b"\x12\x34\x80\x00\xff");
    assert_eq!((enums.modes, enums.level), ([Mode::Slow, Mode::Fast], Level::Low));
    assert_eq!(vmdesc(Enums::DESCRIPTION, &[]).unwrap()["fields"][1]["type"], "int8");
}

#[test]
fn an_unknown_value_of_an_enum_is_refused_with_its_place() {
    let error = refused(OFF, b"\x12\x34\x00\x07\xff");
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert_eq!(error.to_string(), "modes[1] at 0x2: 7 is no Mode; known are 0 (Off), 4660 (Slow), 32768 (Fast)");
    let mut enums = OFF;
    enums.load_or_keep(&mut Reader::strict(b"\x12\x34\x12\x34\x00"), 1).unwrap_err();
    assert_eq!(bytes(&mut enums), b"\0\0\0\0\x01", "the modes that were loaded are put back");
    let error = refused(OFF, b"\0\0\0\0\xfe");
    assert_eq!(error.to_string(), "level at 0x4: -2 is no Level; known are -1 (Low), 1 (High)");
}

#[derive(VmState, Default)]
#[vmstate(name = "floats")]
struct Floats {
    fpr: [f64; 2],
    last: f64,
}

/// IEEE 754: 1.0 is 0x3ff0 << 48, -2.5 is 0xc004 << 48; a signalling NaN keeps its bits.
#[test]
fn a_double_is_its_bits() {
    let bytes = b"\x3f\xf0\0\0\0\0\0\0\xc0\x04\0\0\0\0\0\0\x7f\xf0\0\0\0\0\0\x01";
    let mut floats = round(Floats::default(), bytes);
    assert_eq!(floats.fpr, [1.0, -2.5]);
    let mut out = Writer::recording();
    floats.save(&mut out).unwrap();
    let expected = serde_json::json!([
        {"name": "fpr", "array_len": 2, "type": "CPU_Double_U", "size": 8},
        {"name": "last", "type": "CPU_Double_U", "size": 8},
    ]);
    assert_eq!(vmdesc(Floats::DESCRIPTION, &out.into_parts().1).unwrap()["fields"], expected);
}

#[derive(VmState, Default, Debug, PartialEq)]
#[vmstate(transparent)]
struct Address(u64);

#[derive(VmState, Default)]
#[vmstate(transparent)]
struct Of<T> {
    it: T,
}

#[derive(VmState, Default)]
#[vmstate(name = "newtypes")]
struct Newtypes {
    base: Address,
    of: Of<[u8; 2]>,
}

#[test]
fn a_transparent_struct_is_its_field() {
    let newtypes = round(Newtypes::default(), b"\x12\x34\x56\x78\x9a\xbc\xde\xf0\x01\x02");
    assert_eq!((newtypes.base, newtypes.of.it), (Address(0x1234_5678_9abc_def0), [1, 2]));
    let base = &vmdesc(Newtypes::DESCRIPTION, &[]).unwrap()["fields"][0];
    assert_eq!(*base, serde_json::json!({"name": "base", "type": "uint64", "size": 8}));
    let error = refused(Newtypes::default(), &[0; 9]);
    assert_eq!(error.to_string(), "of[1] at 0x9: 1 bytes expected, 0 left", "the path does not show it");
}
