//! Derived code does not depend on names in the scope where it is used, and triggers no lint.
#![no_implicit_prelude]
#![deny(warnings, clippy::all, clippy::pedantic, clippy::nursery)]
#![deny(missing_docs, missing_debug_implementations, unreachable_pub, unused_qualifications, trivial_casts)]

extern crate vmstate as renamed;

use ::std::prelude::rust_2024::derive;

/// Names that careless derived code would resolve to.
#[allow(dead_code, non_camel_case_types, missing_debug_implementations, clippy::redundant_pub_crate)]
mod traps {
    pub(super) struct Result;
    pub(super) struct Option;
    pub(super) struct Some;
    pub(super) struct Ok;
    pub(super) struct Clone;
    pub(super) struct VmState;
    pub(super) mod core {}
    pub(super) mod std {}
    pub(super) mod vmstate {}
}

#[allow(unused_imports)]
use traps::*;

/// A device behind a renamed crate.
#[derive(renamed::VmState, Debug)]
#[vmstate(name = "dev", version = 2, minimum_version = 1, crate = renamed)]
#[vmstate(pre_save = Self::hook, post_save = Self::after, pre_load = Self::hook, post_load = Self::loaded)]
#[vmstate(validate = Self::check)]
#[vmstate(subsection(name = "dev/x", needed = Self::needed))]
#[vmstate(subsection(name = "dev/y"))]
pub struct Device<T, const N: usize> {
    value: T,
    words: [u16; N],
    #[vmstate(since = 2)]
    r#type: u8,
    #[vmstate(exists = Self::exists, must_exist = Self::exists, validate = Self::check)]
    maybe: bool,
    count: u8,
    #[vmstate(len = count, max = 4)]
    list: ::std::vec::Vec<u8>,
    #[vmstate(subsection = "dev/x", wire = u8)]
    narrow: u64,
    #[vmstate(subsection = "dev/y", buffer)]
    raw: [u8; 2],
    #[vmstate(subsection = "dev/y", buffer, len = count, max = 4)]
    bytes: ::std::vec::Vec<u8>,
    #[vmstate(subsection = "dev/y", counted = u8, max = 4)]
    text: ::std::string::String,
    #[vmstate(skip)]
    host: ::std::string::String,
}

type Verdict = ::std::result::Result<(), &'static str>;

#[allow(clippy::unnecessary_wraps, clippy::needless_pass_by_ref_mut, clippy::unused_self)]
impl<T, const N: usize> Device<T, N> {
    fn hook(&mut self) -> Verdict {
        self.host.clear();
        ::std::result::Result::Ok(())
    }

    fn after(&mut self) {
        self.host.push('s');
    }

    fn loaded(&mut self, version: u32) -> Verdict {
        self.host.push(if version == 2 { 'l' } else { 'o' });
        ::std::result::Result::Ok(())
    }

    const fn check(&self) -> Verdict {
        ::std::result::Result::Ok(())
    }

    const fn needed(&self) -> bool {
        self.narrow != 0
    }

    const fn exists(&self, _version: u32) -> bool {
        true
    }
}

/// Fields whose encoding is not given by their type alone.
#[derive(renamed::VmState, Debug, Default)]
#[vmstate(name = "parts", crate = renamed)]
pub struct Parts {
    #[vmstate(range = 1..)]
    count: u8,
    #[vmstate(len = count * 2, max = 4)]
    words: ::std::boxed::Box<[u16]>,
    #[vmstate(slice = 0..2)]
    slice: [u16; 3],
    #[vmstate(slice = 1.., buffer)]
    bytes: [u8; 2],
    #[vmstate(bitmap, len = count, max = 64)]
    bits: ::std::vec::Vec<u64>,
    #[vmstate(list, max = 4)]
    list: ::std::collections::VecDeque<u8>,
    #[vmstate(map, max = 4)]
    map: ::std::collections::BTreeMap<u8, u8>,
    pointer: ::std::option::Option<::std::boxed::Box<u8>>,
    timer: renamed::Timer,
}

/// A tuple struct: positions are names, too.
#[derive(renamed::VmState, Debug)]
#[vmstate(name = "pair", crate = ::vmstate)]
pub struct Pair(u8, #[vmstate(skip)] u8, u8);

/// A struct without fields.
#[derive(renamed::VmState, Debug)]
#[vmstate(name = "nothing", crate = ::vmstate)]
pub struct Nothing;

/// A struct of another crate.
#[derive(Debug, ::std::clone::Clone)]
pub struct Theirs {
    /// A field.
    pub a: u8,
}

/// Its mirror.
#[derive(renamed::VmState, Debug)]
#[vmstate(name = "mirror", version = 2, minimum_version = 1, crate = ::vmstate, remote = Theirs)]
pub struct Mirror {
    a: u8,
}

/// A struct made from the whole of another.
#[derive(renamed::VmState, Debug)]
#[vmstate(name = "tmp", crate = ::vmstate)]
pub struct Tmp {
    host: u8,
}

impl ::std::convert::From<&Represented> for Tmp {
    fn from(of: &Represented) -> Self {
        Self { host: of.host }
    }
}

type Refused = ::std::boxed::Box<dyn ::std::error::Error + ::std::marker::Send + ::std::marker::Sync>;

impl renamed::Temporary<Represented> for Tmp {
    fn apply(self, of: &mut Represented) -> ::std::result::Result<(), Refused> {
        of.host = self.host;
        ::std::result::Result::Ok(())
    }
}

/// Each field in another representation.
#[derive(renamed::VmState, Debug)]
#[vmstate(name = "represented", priority = 1, needed = Self::needed, early_setup, unmigratable)]
#[vmstate(instance_id = 1, alias_id = 2, crate = ::vmstate)]
#[vmstate(subsection(name = "represented/x"), subsection(name = "represented/x/y"))]
pub struct Represented {
    #[vmstate(via = Mirror)]
    theirs: Theirs,
    #[vmstate(via = [Mirror; 2])]
    each: [Theirs; 2],
    #[vmstate(struct_version = 1)]
    mirror: Mirror,
    #[vmstate(tmp = Tmp)]
    tmp: (),
    #[vmstate(subsection = "represented/x")]
    x: u8,
    #[vmstate(subsection = "represented/x/y")]
    y: ::std::option::Option<u8>,
    #[vmstate(skip)]
    host: u8,
}

impl Represented {
    const fn needed(&self) -> bool {
        self.host != 0
    }
}

#[::std::prelude::v1::test]
fn representations_move() {
    use ::std::assert_eq;
    let theirs = |a| Theirs { a };
    let each = [theirs(2), theirs(3)];
    let y = ::std::option::Option::None;
    let mut state = Represented { theirs: theirs(1), each, mirror: Mirror { a: 4 }, tmp: (), x: 6, y, host: 5 };
    let mut out = renamed::codec::Writer::new();
    renamed::Wire::save(&mut state, &mut out).unwrap();
    assert_eq!(out.as_slice(), b"\x01\x02\x03\x04\x05\x05\x0drepresented/x\0\0\0\x01\x06");
    assert_eq!(<Represented as renamed::VmState>::SECTION.alias_id, ::std::option::Option::Some(2));
}

#[::std::prelude::v1::test]
fn generic_device_moves() {
    use ::std::{assert_eq, iter::Iterator as _, string::String, vec};
    let new = || Device::<i16, 2> {
        value: 0,
        words: [0; 2],
        r#type: 0,
        maybe: false,
        count: 0,
        list: vec![],
        narrow: 0,
        raw: [0; 2],
        bytes: vec![],
        text: String::new(),
        host: String::new(),
    };
    let mut device = new();
    device.value = -2;
    device.r#type = 9;
    device.count = 1;
    device.list = vec![5];
    device.bytes = vec![6];
    let mut out = renamed::codec::Writer::new();
    renamed::Wire::save(&mut device, &mut out).unwrap();
    assert_eq!(device.host, "s");
    assert_eq!(out.as_slice(), b"\xff\xfe\0\0\0\0\x09\0\x01\x05\x05\x05dev/y\0\0\0\x01\0\0\x06\0");

    let mut loaded = new();
    let mut input = renamed::codec::Reader::strict(out.as_slice());
    renamed::VmState::load_or_keep(&mut loaded, &mut input, 2).unwrap();
    assert_eq!((loaded.value, loaded.r#type, &*loaded.bytes, &*loaded.host), (-2, 9, &[6][..], "l"));
    let names = <Device<i16, 2> as renamed::VmState>::DESCRIPTION.fields.iter().map(|field| &*field.name);
    assert_eq!(
        names.collect::<vec::Vec<_>>(),
        ["value", "words", "type", "Self::exists", "maybe", "Self::check", "count", "list"]
    );
}

#[::std::prelude::v1::test]
fn parts_move() {
    use ::std::{assert_eq, convert::Into as _, default::Default as _, vec};
    let mut parts = Parts { count: 1, words: [2, 3].into(), bits: vec![1], ..Parts::default() };
    parts.list.push_back(4);
    parts.map.insert(5, 6);
    let mut out = renamed::codec::Writer::new();
    renamed::Wire::save(&mut parts, &mut out).unwrap();
    let expected = b"\x01\0\x02\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\x01\x01\x04\0\0\0\0\x01\x01\x05\x06\0\x30\
                     \xff\xff\xff\xff\xff\xff\xff\xff";
    assert_eq!(out.as_slice(), expected);
    let mut loaded = Parts { words: [0, 0].into(), ..Parts::default() };
    renamed::VmState::load_or_keep(&mut loaded, &mut renamed::codec::Reader::strict(expected), 1).unwrap();
    assert_eq!((loaded.map, loaded.list), (parts.map, parts.list));
}

#[::std::prelude::v1::test]
fn tuple_struct_moves() {
    use ::std::{assert_eq, iter::Iterator as _};
    let mut out = renamed::codec::Writer::new();
    let mut pair = Pair(1, 2, 3);
    renamed::Wire::save(&mut pair, &mut out).unwrap();
    assert_eq!(pair.1, 2);
    renamed::Wire::save(&mut Nothing, &mut out).unwrap();
    assert_eq!(out.as_slice(), [1, 3]);
    let names = <Pair as renamed::VmState>::DESCRIPTION.fields.iter().map(|field| &*field.name);
    assert_eq!(names.collect::<::std::vec::Vec<_>>(), ["0", "2"]);
}
