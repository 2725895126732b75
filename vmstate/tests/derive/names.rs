//! A type's encoding does not depend on how it is written: spelled out, by an alias, from a macro, as an associated type, by its
//! full path, in parentheses. The bytes are literals for the spelled type.

#![allow(unused_parens)]

use std::fmt::Debug;

use vmstate::VmState;
use vmstate::codec::Reader;
use vmstate::testing::bytes;

type Slot = Option<Box<u8>>;
type Flag = bool;
type Register = u32;
type Row = [u16; 2];

trait Config {
    type Slot;
    type Register;
}

struct Here;

impl Config for Here {
    type Slot = Option<Box<u8>>;
    type Register = u32;
}

/// Declares a device with a subsection that is a `$slot`, and with plain fields.
macro_rules! device {
    ($name:ident, $slot:ty, $flag:ty, $register:ty, $row:ty) => {
        #[derive(VmState, Default, Debug, PartialEq)]
        #[vmstate(name = "dev", subsection(name = "dev/x"))]
        struct $name {
            flag: $flag,
            register: $register,
            row: $row,
            pointer: $slot,
            #[vmstate(subsection = "dev/x")]
            slot: $slot,
        }
    };
}

#[derive(VmState, Default, Debug, PartialEq)]
#[vmstate(name = "dev", subsection(name = "dev/x"))]
struct Spelled {
    flag: bool,
    register: u32,
    row: [u16; 2],
    pointer: Option<Box<u8>>,
    #[vmstate(subsection = "dev/x")]
    slot: Option<Box<u8>>,
}

#[derive(VmState, Default, Debug, PartialEq)]
#[vmstate(name = "dev", subsection(name = "dev/x"))]
struct ByAlias {
    flag: Flag,
    register: Register,
    row: Row,
    pointer: Slot,
    #[vmstate(subsection = "dev/x")]
    slot: Slot,
}

#[derive(VmState, Default, Debug, PartialEq)]
#[vmstate(name = "dev", subsection(name = "dev/x"))]
#[allow(unused_parens)]
struct ByPath {
    flag: ::core::primitive::bool,
    register: (u32),
    row: [::std::primitive::u16; 2],
    pointer: ::core::option::Option<::std::boxed::Box<u8>>,
    #[vmstate(subsection = "dev/x")]
    slot: (::core::option::Option<(Box<(u8)>)>),
}

#[derive(VmState, Default, Debug, PartialEq)]
#[vmstate(name = "dev", subsection(name = "dev/x"))]
struct Associated {
    flag: bool,
    register: <Here as Config>::Register,
    row: [u16; 2],
    pointer: <Here as Config>::Slot,
    #[vmstate(subsection = "dev/x")]
    slot: <Here as Config>::Slot,
}

#[derive(VmState, Default, Debug, PartialEq)]
#[vmstate(name = "dev", subsection(name = "dev/x"))]
struct Generic<R, S> {
    flag: bool,
    register: R,
    row: [u16; 2],
    pointer: S,
    #[vmstate(subsection = "dev/x")]
    slot: S,
}

/// The types are defined by the struct itself.
#[derive(VmState, Default, Debug, PartialEq)]
#[vmstate(name = "dev", subsection(name = "dev/x"))]
struct OfItself {
    flag: bool,
    register: <Self as Config>::Register,
    row: [u16; Self::COLUMNS],
    pointer: <Self as Config>::Slot,
    #[vmstate(subsection = "dev/x")]
    slot: <Self as Config>::Slot,
}

impl OfItself {
    const COLUMNS: usize = 2;
}

impl Config for OfItself {
    type Slot = Option<Box<u8>>;
    type Register = u32;
}

device!(FromMacro, Option<Box<u8>>, bool, u32, [u16; 2]);
device!(FromMacroByAlias, Slot, Flag, Register, Row);

const WITHOUT: &[u8] = b"\x01\0\0\0\x02\0\x03\0\x04\x30";
const WITH: &[u8] = b"\x01\0\0\0\x02\0\x03\0\x04\x30\x05\x05dev/x\0\0\0\x01\x30";

/// In the subsection, the value is 0x30, which could be mistaken for a null pointer.
fn loads_and_saves<T: VmState + Default + Debug + PartialEq>() {
    for expected in [WITHOUT, WITH] {
        let mut device = T::default();
        device.load_or_keep(&mut Reader::strict(expected), 1).unwrap();
        assert_eq!(bytes(&mut device), expected, "{device:?}");
    }
    // Present before, absent in the stream.
    let mut device = T::default();
    device.load_or_keep(&mut Reader::strict(WITH), 1).unwrap();
    device.load_or_keep(&mut Reader::strict(WITHOUT), 1).unwrap();
    assert_eq!(bytes(&mut device), WITHOUT);
}

#[test]
fn a_types_bytes_do_not_depend_on_its_name() {
    loads_and_saves::<Spelled>();
    loads_and_saves::<ByAlias>();
    loads_and_saves::<ByPath>();
    loads_and_saves::<Associated>();
    loads_and_saves::<Generic<u32, Option<Box<u8>>>>();
    loads_and_saves::<OfItself>();
    loads_and_saves::<FromMacro>();
    loads_and_saves::<FromMacroByAlias>();
    for other in [
        ByAlias::DESCRIPTION,
        ByPath::DESCRIPTION,
        Associated::DESCRIPTION,
        Generic::<u32, Option<Box<u8>>>::DESCRIPTION,
        OfItself::DESCRIPTION,
        FromMacro::DESCRIPTION,
        FromMacroByAlias::DESCRIPTION,
    ] {
        assert_eq!(other, Spelled::DESCRIPTION);
    }
}

/// User-defined types with names of standard types are treated as user-defined.
mod mine {
    #[derive(vmstate::VmState, Default, Debug, PartialEq)]
    #[vmstate(name = "mine")]
    pub(super) struct Option<T> {
        pub(super) value: T,
    }
}

#[derive(VmState, Default)]
#[vmstate(name = "dev", subsection(name = "dev/x"))]
struct Impostor {
    own: mine::Option<u8>,
    #[vmstate(subsection = "dev/x")]
    value: mine::Option<u8>,
}

#[test]
fn a_user_defined_struct_called_option_is_a_struct() {
    let mut device = Impostor { own: mine::Option { value: 1 }, value: mine::Option { value: 2 } };
    assert_eq!(bytes(&mut device), b"\x01\x05\x05dev/x\0\0\0\x01\x02");
}

/// Numbers, types and names whose syntax contains commas, products and raw identifiers.
#[derive(VmState, Default)]
#[vmstate(name = "syntax")]
struct Syntax {
    r#type: u8,
    #[vmstate(len = r#type * (2 + 1), max = 9)]
    rows: Vec<u8>,
    #[vmstate(via = Pair<u8, u16>, name = "level")]
    level: Level,
    #[vmstate(slice = ..Self::SHOWN)]
    shown: [u8; 4],
    #[vmstate(skip)]
    next: Option<Box<Self>>,
}

impl Syntax {
    const SHOWN: usize = 2;
}

type Pair<A, B> = (A, B);

#[derive(Clone, Default, Debug, PartialEq)]
struct Level(u8, u16);

impl From<&Level> for (u8, u16) {
    fn from(level: &Level) -> Self {
        (level.0, level.1)
    }
}

impl From<(u8, u16)> for Level {
    fn from((a, b): (u8, u16)) -> Self {
        Self(a, b)
    }
}

#[test]
fn a_value_is_read_as_rust_reads_it() {
    let mut device = Syntax { r#type: 1, rows: vec![7, 8, 9], level: Level(1, 2), shown: [3, 4, 5, 6], next: None };
    assert_eq!(bytes(&mut device), b"\x01\x07\x08\x09\x01\0\x02\x03\x04");
    assert!(device.next.is_none());
    let error = Syntax::default().load_or_keep(&mut Reader::strict(&[4]), 1).unwrap_err();
    assert_eq!(error.to_string(), "rows at 0x1: type is 4 times 3, from 0 to 9 elements are allowed");
}
