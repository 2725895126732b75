//! A load that fails leaves the device unchanged, whatever fails and wherever.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use vmstate::codec::{Limits, Reader, Strictness, Writer};
use vmstate::{ErrorKind, Timer, VmState, Wire};

#[derive(VmState, Default, Clone, Debug, PartialEq)]
#[vmstate(name = "leaf", post_load = Self::thaw)]
struct Leaf {
    value: u16,
    derived: u16,
}

impl Leaf {
    fn thaw(&mut self, _version: u32) -> Result<(), &'static str> {
        self.derived = self.value.wrapping_mul(3);
        if self.value == 0xffff { Err("leaf says no") } else { Ok(()) }
    }
}

mod text {
    use vmstate::codec::{Reader, Writer};
    use vmstate::schema::{Kind, MaybeStatic};

    pub(crate) const KIND: Kind = Kind::Custom(MaybeStatic::Static("text"));

    pub(crate) fn save(value: &String, out: &mut Writer) -> vmstate::Result<()> {
        out.u8(u8::try_from(value.len()).unwrap());
        out.bytes(value.as_bytes());
        Ok(())
    }

    pub(crate) fn load(input: &mut Reader<'_>) -> vmstate::Result<String> {
        let length = input.u8()?;
        let bytes = input.take(length.into())?;
        String::from_utf8(bytes.to_vec()).map_err(|_| input.malformed("no UTF-8"))
    }
}

/// One field of every kind, and hooks that change fields which the stream does not carry.
#[derive(VmState, Default, Clone, Debug, PartialEq)]
#[vmstate(name = "all", version = 3, minimum_version = 1)]
#[vmstate(pre_load = Self::reset, post_load = Self::thaw, validate = Self::check)]
#[vmstate(subsection(name = "all/a", needed = Self::has_a, post_load = Self::thaw_a))]
#[vmstate(subsection(name = "all/b", needed = Self::has_b))]
struct EveryKind {
    verdict: u8,
    flag: bool,
    leaf: Leaf,
    leaves: [Leaf; 2],
    boxed: Box<i64>,
    count: u8,
    #[vmstate(len = count, max = 4)]
    list: Vec<Leaf>,
    #[vmstate(len = count, max = 4, buffer)]
    bytes: Vec<u8>,
    #[vmstate(buffer)]
    fixed: [u8; 3],
    #[vmstate(with = text)]
    text: String,
    #[vmstate(wire = u16)]
    wide: u64,
    #[vmstate(since = 3)]
    new: u32,
    #[vmstate(exists = Self::old)]
    gone: u32,
    #[vmstate(list, max = 4)]
    queue: VecDeque<Leaf>,
    #[vmstate(map, max = 4)]
    map: BTreeMap<u8, Leaf>,
    #[vmstate(slice = 1..3)]
    slice: [Leaf; 4],
    #[vmstate(bitmap, len = count, max = 4)]
    bits: Vec<u64>,
    pointers: [Option<Box<Leaf>>; 2],
    timer: Timer,
    #[vmstate(subsection = "all/a")]
    a: u32,
    #[vmstate(subsection = "all/b")]
    b: Leaf,
}

impl EveryKind {
    fn reset(&mut self) -> Result<(), &'static str> {
        self.new = 0xaaaa;
        self.a = 0xbbbb;
        self.list.clear();
        self.queue.pop_front();
        self.map.clear();
        self.slice = Default::default();
        self.bits.clear();
        self.pointers = [None, Some(Box::default())];
        self.timer = Timer(None);
        self.bytes.push(9);
        if self.gone == 0xdead { Err("pre_load says no") } else { Ok(()) }
    }

    fn thaw(&mut self, _version: u32) -> Result<(), &'static str> {
        self.gone = 0xcccc;
        self.text.push('!');
        self.list.push(Leaf::default());
        self.queue.push_front(Leaf::default());
        self.map.insert(0xff, Leaf::default());
        self.pointers.reverse();
        if self.verdict == 1 { Err("post_load says no") } else { Ok(()) }
    }

    fn thaw_a(&mut self, _version: u32) -> Result<(), &'static str> {
        self.wide = 7;
        if self.a == 1 { Err("the subsection says no") } else { Ok(()) }
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.verdict == 2 { Err("validate says no") } else { Ok(()) }
    }

    fn old(&self, version: u32) -> bool {
        version < 3
    }

    fn has_a(&self) -> bool {
        self.a != 0
    }

    fn has_b(&self) -> bool {
        self.b.value != 0
    }

    fn full() -> Self {
        let leaf = |value| Leaf { value, derived: !value };
        Self {
            verdict: 0,
            flag: true,
            leaf: leaf(1),
            leaves: [leaf(2), leaf(3)],
            boxed: Box::new(-4),
            count: 2,
            list: vec![leaf(5), leaf(6)],
            bytes: vec![7, 8],
            fixed: [9, 10, 11],
            text: "text".into(),
            wide: 12,
            new: 13,
            gone: 14,
            queue: [leaf(20), leaf(21)].into(),
            map: BTreeMap::from([(22, leaf(23)), (24, leaf(25))]),
            slice: [leaf(26), leaf(27), leaf(28), leaf(29)],
            bits: vec![3],
            pointers: [None, Some(Box::new(leaf(30)))],
            timer: Timer(Some(Duration::from_nanos(31))),
            a: 15,
            b: leaf(16),
        }
    }

    fn bytes(mut self) -> Vec<u8> {
        let mut out = Writer::new();
        self.save(&mut out).unwrap();
        out.into_bytes()
    }
}

/// Loads `bytes` into devices of different shapes: each must refuse, and stay unchanged.
fn refuses(bytes: &[u8], version: u32, limits: Limits, kind: ErrorKind, text: &str) {
    let other = EveryKind {
        count: 4,
        list: vec![Leaf::default(); 4],
        bytes: vec![1; 4],
        queue: vec![Leaf::default(); 4].into(),
        map: BTreeMap::from([(1, Leaf::default()), (22, Leaf::default())]),
        pointers: [Some(Box::default()), Some(Box::default())],
        ..EveryKind::default()
    };
    for before in [EveryKind::default(), EveryKind::full(), other] {
        let mut every_kind = before.clone();
        let mut input = Reader::new(bytes, 0, Strictness::Strict, limits).complete();
        let error = every_kind.load_or_keep(&mut input, version).unwrap_err();
        assert_eq!(every_kind, before, "after {error}");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().ends_with(text), "{error} should end with {text}");
    }
}

fn refuses_by_default(every_kind: EveryKind, kind: ErrorKind, text: &str) {
    refuses(&unchecked(every_kind), 3, Limits::default(), kind, text);
}

/// The bytes of a device that would not pass its own checks.
fn unchecked(every_kind: EveryKind) -> Vec<u8> {
    let verdict = every_kind.verdict;
    let mut bytes = EveryKind { verdict: 0, ..every_kind }.bytes();
    bytes[0] = verdict;
    bytes
}

#[test]
fn the_whole_loads() {
    let mut every_kind = EveryKind::default();
    every_kind.load_or_keep(&mut Reader::strict(&EveryKind::full().bytes()), 3).unwrap();
    assert_eq!(
        (every_kind.leaves[1].value, every_kind.list[1].value, &*every_kind.text, every_kind.b.value),
        (3, 6, "text!", 16)
    );
}

#[test]
fn cut_short() {
    let bytes = EveryKind::full().bytes();
    for cut in 0..bytes.len() {
        let before = EveryKind::full();
        let mut every_kind = before.clone();
        let mut input = Reader::new(&bytes[..cut], 0, Strictness::Strict, Limits::default());
        let error = every_kind.load_or_keep(&mut input, 3).unwrap_err();
        assert!(error.is_incomplete(), "cut at {cut}: {error}");
        assert_eq!(every_kind, before, "cut at {cut}");
    }
}

#[test]
fn refused_by_a_version() {
    refuses(&EveryKind::full().bytes(), 4, Limits::default(), ErrorKind::Incompatible, "version 4 is newer than 3");
    refuses(&[], 0, Limits::default(), ErrorKind::Incompatible, "version 0 is older than 1, the oldest that loads");
}

#[test]
fn refused_by_a_nested_struct() {
    let mut every_kind = EveryKind::full();
    every_kind.leaves[1].value = 0xffff;
    refuses_by_default(every_kind, ErrorKind::Rejected, "leaves[1] at 0xe: post_load: leaf says no");
    let mut every_kind = EveryKind::full();
    every_kind.list[0].value = 0xffff;
    refuses_by_default(every_kind, ErrorKind::Rejected, "list[0] at 0x1b: post_load: leaf says no");
}

#[test]
fn refused_by_a_subsection() {
    refuses_by_default(
        EveryKind { a: 1, ..EveryKind::full() },
        ErrorKind::Rejected,
        "post_load: the subsection says no",
    );
    let b = Leaf { value: 0xffff, derived: 0 };
    refuses_by_default(EveryKind { b, ..EveryKind::full() }, ErrorKind::Rejected, "post_load: leaf says no");
    let mut bytes = EveryKind::full().bytes();
    bytes.extend(b"\x05\x05all/c\0\0\0\x01");
    refuses(&bytes, 3, Limits::default(), ErrorKind::Incompatible, "subsection \"all/c\" is not known to \"all\"");
}

#[test]
fn refused_by_the_device() {
    refuses_by_default(
        EveryKind { verdict: 1, ..EveryKind::full() },
        ErrorKind::Rejected,
        "post_load: post_load says no",
    );
    refuses_by_default(
        EveryKind { verdict: 2, ..EveryKind::full() },
        ErrorKind::Rejected,
        "validate: validate says no",
    );
    let before = EveryKind { gone: 0xdead, ..EveryKind::full() };
    let mut every_kind = before.clone();
    let error = every_kind.load_or_keep(&mut Reader::strict(&EveryKind::full().bytes()), 3).unwrap_err();
    assert_eq!((every_kind, error.message()), (before, "pre_load: pre_load says no"));
}

#[test]
fn refused_by_a_value() {
    let mut bytes = EveryKind::full().bytes();
    bytes[1] = 2;
    refuses(&bytes, 3, Limits::default(), ErrorKind::Malformed, "flag at 0x1: a bool is 0 or 1, got 2");
    let mut bytes = EveryKind::full().bytes();
    bytes[0x16] = 5;
    let text = "list at 0x17: count is 5, from 0 to 4 elements are allowed";
    refuses(&bytes, 3, Limits::default(), ErrorKind::Malformed, text);
    let limits = Limits::new(9);
    let text = "bytes at 0x1f: needs 2 bytes of memory, 1 are left of this section's limit";
    refuses(&EveryKind::full().bytes(), 3, limits, ErrorKind::Malformed, text);
}

proptest! {
    /// Whatever the bytes, a load succeeds or changes nothing.
    #[test]
    fn any_bytes(at in 0_usize..160, change in 1_u8.., cut in 0_usize..300, version in 0_u32..5) {
        let mut bytes = EveryKind::full().bytes();
        let length = bytes.len();
        bytes[at % length] ^= change;
        bytes.truncate(cut);
        for strictness in [Strictness::Strict, Strictness::QemuCompatible] {
            let before = EveryKind::full();
            let mut every_kind = before.clone();
            let mut input = Reader::new(&bytes, 0, strictness, Limits::default());
            if every_kind.load_or_keep(&mut input, version).is_err() {
                prop_assert_eq!(every_kind, before);
            }
        }
    }
}
