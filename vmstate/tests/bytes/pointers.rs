//! Pointers that may be null, and timers, with their bytes written out from QEMU's format (migration/vmstate-types.c,
//! `put_nullptr`; migration/savevm.c, `timer_put`).

use std::cell::Cell;
use std::sync::Mutex;
use std::time::Duration;

use vmstate::codec::{Limits, Reader, Strictness, Writer};
use vmstate::{Error, ErrorKind, Timer, VmState, Wire};

fn save<T: VmState>(state: &mut T) -> Vec<u8> {
    let mut out = Writer::new();
    state.save(&mut out).unwrap();
    out.into_bytes()
}

/// Checks that `bytes` load into `state`, which then saves to them, and that a failed load changes nothing.
fn round<T: VmState>(mut state: T, bytes: &[u8]) -> T {
    let before = save(&mut state);
    for end in 0..bytes.len() {
        let mut input = Reader::new(&bytes[..end], 0, Strictness::Strict, Limits::default());
        assert!(state.load_or_keep(&mut input, 1).unwrap_err().is_incomplete(), "cut at {end}");
        assert_eq!(save(&mut state), before, "cut at {end}");
    }
    state.load_or_keep(&mut Reader::strict(bytes), 1).unwrap();
    assert_eq!(save(&mut state), bytes);
    state
}

fn refused<T: VmState>(mut state: T, bytes: &[u8]) -> Error {
    state.load_or_keep(&mut Reader::strict(bytes), 1).unwrap_err()
}

/// As in QEMU's `TestStructTriv`.
#[derive(VmState, Default, Clone, Debug, PartialEq)]
#[vmstate(name = "test/tss")]
struct Triv {
    i: i32,
}

/// As in QEMU's `TestArrayOfPtrToStuct` and `TestArrayOfPtrToInt`.
#[derive(VmState, Default, Clone, Debug, PartialEq)]
#[vmstate(name = "test/array_of_pointer")]
struct Pointers {
    structs: [Option<Box<Triv>>; 4],
    integers: [Option<Box<i32>>; 4],
    one: Option<Box<u16>>,
    n: u8,
    #[vmstate(len = n, max = 3)]
    counted: Vec<Option<Box<u8>>>,
}

fn pointers(values: [i32; 3]) -> Pointers {
    let [a, b, c] = values;
    let triv = |i| Some(Box::new(Triv { i }));
    Pointers {
        structs: [triv(a), triv(b), None, triv(c)],
        integers: [Some(Box::new(a)), Some(Box::new(b)), None, Some(Box::new(c))],
        one: Some(Box::new(0x0102)),
        n: 2,
        counted: vec![None, Some(Box::new(7))],
    }
}

#[test]
fn a_null_pointer_is_a_30_and_others_are_what_they_point_to() {
    let bytes = b"\0\0\0\0\0\0\0\x01\x30\0\0\0\x04\0\0\0\0\0\0\0\x01\x30\0\0\0\x04\x01\x02\x02\x30\x07";
    assert_eq!(round(pointers([9, 9, 9]), bytes), pointers([0, 1, 4]));
    let nulls = Pointers { structs: [const { None }; 4], ..Pointers::default() };
    assert_eq!(round(nulls.clone(), b"000000000\0"), nulls);
}

#[test]
fn both_sides_have_the_same_pointers_null() {
    let mut bytes = save(&mut pointers([0, 1, 4]));
    bytes[8] = 0x31;
    let error = refused(pointers([9, 9, 9]), &bytes);
    let text = "structs[2] at 0x8: null on this machine, but the stream has 0x31: configure both alike";
    assert_eq!(error.to_string(), text);
    assert_eq!(error.kind(), ErrorKind::Incompatible);

    // Where a pointer is not null here, a 30 is the first byte of its pointee.
    let mut one = Pointers { one: Some(Box::default()), ..Pointers::default() };
    one.load_or_keep(&mut Reader::strict(b"00000000\x30\x31\0"), 1).unwrap();
    assert_eq!(one.one, Some(Box::new(0x3031)));
}

#[derive(VmState, Default, Clone, Debug, PartialEq)]
#[repr(u8)]
enum Mode {
    #[default]
    Off = 0,
    On = 0x31,
}

#[derive(VmState, Default, Clone, Debug, PartialEq)]
#[vmstate(name = "ranged")]
struct Ranged {
    #[vmstate(range = 0..=0x2fff)]
    level: u16,
    rest: u8,
}

/// No pointee begins with a `30`, so a `30` is a null pointer of the source.
#[derive(VmState, Default, Clone, Debug, PartialEq)]
#[vmstate(name = "told_apart")]
struct Unambiguous {
    flag: Option<Box<bool>>,
    mode: Option<Box<Mode>>,
    ranged: Option<Box<Ranged>>,
    pair: Option<Box<[Ranged; 2]>>,
}

impl Unambiguous {
    fn none_null() -> Self {
        Self {
            flag: Some(Box::default()),
            mode: Some(Box::default()),
            ranged: Some(Box::default()),
            pair: Some(Box::default()),
        }
    }
}

#[test]
fn a_null_pointer_of_the_source_is_refused_where_it_is_unambiguous() {
    let bytes = b"\x01\x31\x2f\xff\x30\x01\x02\x03\0\0\0";
    let loaded = round(Unambiguous::none_null(), bytes);
    assert_eq!((loaded.flag, loaded.mode), (Some(Box::new(true)), Some(Box::new(Mode::On))));
    for (null, place) in [(0, "flag at 0x0"), (1, "mode at 0x1"), (2, "ranged at 0x2"), (5, "pair at 0x5")] {
        let mut bytes = *bytes;
        bytes[null] = 0x30;
        let error = refused(Unambiguous::none_null(), &bytes);
        let text = format!("{place}: null in the stream, but not on this machine: configure both alike");
        assert_eq!((error.kind(), error.to_string()), (ErrorKind::Incompatible, text));
    }
    // QEMU loads the byte as the pointee: `get_bool` takes any byte but 0 for true.
    let mut flag = Unambiguous::none_null();
    let mut input = Reader::new(b"\x30\x31\0\0\0\0\0\0\0\0\0", 0, Strictness::QemuCompatible, Limits::default());
    flag.load_or_keep(&mut input, 1).unwrap();
    assert_eq!(flag.flag, Some(Box::new(true)));
}

/// Pointers that a hook created or removed are put back.
#[derive(VmState, Default, Clone, Debug, PartialEq)]
#[vmstate(name = "hooked", pre_load = Self::swap, post_load = Self::refuse)]
struct Hooked {
    a: Option<Box<Triv>>,
    b: Option<Box<Triv>>,
}

impl Hooked {
    fn swap(&mut self) -> Result<(), &'static str> {
        std::mem::swap(&mut self.a, &mut self.b);
        Ok(())
    }

    fn refuse(&mut self, _version: u32) -> Result<(), &'static str> {
        Err("no")
    }
}

#[test]
fn changes_of_hooks_to_pointers_are_undone() {
    let before = Hooked { a: Some(Box::new(Triv { i: 5 })), b: None };
    let mut kept = before.clone();
    let error = kept.load_or_keep(&mut Reader::strict(b"\x30\0\0\0\x06"), 1).unwrap_err();
    assert_eq!(error.to_string(), "at 0x5: post_load: no");
    assert_eq!(kept, before);
}

/// In a subsection, an `Option` is the presence of the subsection, whatever its type.
#[derive(VmState, Default, Clone, Debug, PartialEq)]
#[vmstate(name = "net", subsection(name = "net/frame"))]
struct Net {
    #[vmstate(subsection = "net/frame")]
    frame: Option<Box<u16>>,
}

#[test]
fn an_option_that_is_a_subsection_is_no_pointer() {
    assert_eq!(save(&mut Net { frame: Some(Box::new(0x0102)) }), b"\x05\x09net/frame\0\0\0\x01\x01\x02");
    assert_eq!(save(&mut Net { frame: None }), b"");
}

#[derive(VmState, Default)]
#[vmstate(name = "timers")]
struct Timers {
    one: Timer,
    two: [Timer; 2],
    cell: Cell<Timer>,
    locked: Mutex<Option<Box<Timer>>>,
}

#[test]
fn a_timer_is_its_expiry_in_ns_or_all_ones() {
    let timers = Timers { locked: Mutex::new(Some(Box::default())), ..Timers::default() };
    let bytes = b"\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\x3b\x9a\xca\x01\0\0\0\0\0\0\0\0\
                  \xff\xff\xff\xff\xff\xff\xff\xfe\0\0\0\0\0\0\0\x07";
    let timers = round(timers, bytes);
    assert_eq!(timers.one, Timer(None));
    assert_eq!(timers.two, [Timer(Some(Duration::new(1, 1))), Timer(Some(Duration::ZERO))]);
    assert_eq!(timers.cell.get(), Timer(Some(Duration::from_nanos(u64::MAX - 1))));
    assert_eq!(**timers.locked.into_inner().unwrap().as_ref().unwrap(), Timer(Some(Duration::from_nanos(7))));
}

#[test]
fn an_expiry_that_does_not_fit_is_not_saved() {
    for expiry in [Duration::from_nanos(u64::MAX), Duration::MAX] {
        let mut timers = Timers { one: Timer(Some(expiry)), ..Timers::default() };
        let error = timers.save(&mut Writer::new()).unwrap_err();
        assert_eq!(error.to_string(), format!("one: {expiry:?} does not fit 64 bits of ns"));
        assert_eq!(error.kind(), ErrorKind::Rejected);
    }
}
