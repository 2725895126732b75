//! Target: a struct with one field of every kind that the derive has. A new kind is one line in [`Zoo`].
//!
//! ```text
//! byte 0: version (low 7 bits), QEMU-compatible (high bit) | body
//! ```

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::num::{NonZero, Wrapping};
use std::sync::atomic::{AtomicBool, AtomicI8, AtomicI64, AtomicU16, AtomicU32};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use vmstate::codec::{Reader, Strictness};
use vmstate::{Section, Timer, Unused, VmState};

use crate::Target;
use crate::machine::LIMITS;
use crate::unharmed::Unharmed;

pub(crate) const TARGET: Target = Target { name: "zoo", memory: 4 << 20, body, seeds };

/// One of each.
#[derive(VmState)]
#[vmstate(name = "zoo", version = 3, minimum_version = 1)]
#[vmstate(pre_load = Self::reset, validate = Self::check, post_load = Self::thaw)]
#[vmstate(subsection(name = "zoo/needed", needed = Self::is_needed, version = 2, minimum_version = 1))]
#[vmstate(subsection(name = "zoo/option"))]
#[vmstate(subsection(name = "zoo/nested", needed = Self::is_needed, validate = Self::check))]
pub(crate) struct Zoo {
    verdict: u8,
    signed: (i8, i16, i32, i64),
    on: bool,
    double: f64,
    mode: Mode,
    address: Address,
    atomics: (AtomicBool, AtomicI8, AtomicU16, AtomicU32, AtomicI64),
    cells: (Cell<u8>, RefCell<u16>, Mutex<u8>),
    boxed: (RwLock<Wrapping<i8>>, Box<u32>),
    divisor: NonZero<u16>,
    leaf: Leaf,
    grid: [[Leaf; 2]; 2],
    #[vmstate(name = "twice")]
    first: u8,
    #[vmstate(name = "twice")]
    second: [u16; 3],
    count: u8,
    #[vmstate(len = count, max = 6)]
    list: Vec<Leaf>,
    #[vmstate(len = count, max = 6)]
    some: [u16; 6],
    #[vmstate(len = count, max = 6, buffer)]
    bytes: Vec<u8>,
    many: i32,
    #[vmstate(len = many, max = 0x10_0000)]
    large: Vec<u64>,
    #[vmstate(buffer)]
    fixed: [u8; 5],
    gap: Unused<3>,
    #[vmstate(wire = u16)]
    narrow: u64,
    #[vmstate(wire = i8)]
    wide: i64,
    #[vmstate(with = text)]
    text: String,
    #[vmstate(equal)]
    sectors: u16,
    #[vmstate(at_most_current)]
    queues: i32,
    #[vmstate(range = 1..=3)]
    state: u8,
    #[vmstate(validate = Self::lines_are_even)]
    lines: u8,
    #[vmstate(must_exist = Self::has_lines)]
    line: u8,
    #[vmstate(since = 2)]
    newer: u32,
    #[vmstate(since = 3)]
    newest: Leaf,
    #[vmstate(exists = Self::is_old)]
    old: u32,
    #[vmstate(unframed)]
    generic: Pair<Leaf>,
    #[vmstate(unframed)]
    parent: Parent,
    #[vmstate(list, max = 6)]
    queue: VecDeque<Leaf>,
    #[vmstate(map, max = 6)]
    map: BTreeMap<u16, Leaf>,
    #[vmstate(slice = 1..3)]
    part: [Leaf; 4],
    #[vmstate(slice = ..2, buffer)]
    start: [u8; 4],
    #[vmstate(len = count * 3, max = 18)]
    triples: Box<[u16]>,
    #[vmstate(bitmap)]
    flags: [u64; 1],
    #[vmstate(len = many, max = 0x10_0000, bitmap)]
    bits: Vec<u64>,
    pointers: [Option<Box<Leaf>>; 2],
    timer: Timer,
    #[vmstate(skip)]
    derived: u32,
    #[vmstate(subsection = "zoo/needed")]
    needed: u16,
    #[vmstate(subsection = "zoo/needed", since = 2)]
    needed_newer: [u8; 2],
    #[vmstate(subsection = "zoo/option")]
    option: Option<[u16; 2]>,
    #[vmstate(subsection = "zoo/nested")]
    nested: Parent,
}

#[derive(VmState, Debug, Default)]
#[repr(u16)]
enum Mode {
    #[default]
    Off = 0,
    Slow = 0x1234,
    Fast = 0x8000,
}

#[derive(VmState, Debug, Default)]
#[vmstate(transparent)]
struct Address(u64);

#[derive(VmState, Debug, Default)]
#[vmstate(name = "leaf", validate = Self::check, post_load = Self::thaw)]
struct Leaf {
    value: u16,
    #[vmstate(skip)]
    derived: u16,
}

impl Leaf {
    fn check(&self) -> Result<(), &'static str> {
        if self.value == 0xffff { Err("leaf says no") } else { Ok(()) }
    }

    fn thaw(&mut self, _version: u32) -> Result<(), &'static str> {
        self.derived = self.value.wrapping_mul(3);
        Ok(())
    }
}

#[derive(VmState, Debug, Default)]
#[vmstate(name = "pair")]
struct Pair<T: vmstate::Wire> {
    one: T,
    other: T,
}

#[derive(VmState, Debug, Default)]
#[vmstate(name = "parent")]
#[vmstate(subsection(name = "parent/child", needed = Self::has_child))]
struct Parent {
    children: u8,
    #[vmstate(subsection = "parent/child")]
    child: Leaf,
}

impl Parent {
    fn has_child(&self) -> bool {
        self.children > 0
    }
}

mod text {
    use vmstate::codec::{Reader, Writer};
    use vmstate::schema::{Kind, Shared};

    pub(crate) const KIND: Kind = Kind::Custom(Shared::Static("text"));

    pub(crate) fn save(value: &str, out: &mut Writer) -> vmstate::Result<()> {
        out.u8(u8::try_from(value.len()).unwrap_or(u8::MAX));
        out.bytes(value.as_bytes());
        Ok(())
    }

    pub(crate) fn load(input: &mut Reader<'_>) -> vmstate::Result<String> {
        let length = input.u8()?;
        let bytes = input.take(length.into())?;
        String::from_utf8(bytes.to_vec()).map_err(|_| input.malformed("no UTF-8"))
    }
}

impl Zoo {
    fn reset(&mut self) -> Result<(), &'static str> {
        (self.newer, self.old, self.derived) = (7, 8, 9);
        (self.needed, self.needed_newer) = (0, [0; 2]);
        self.newest = Leaf::default();
        self.nested.children = 0;
        Ok(())
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.verdict == 2 { Err("validate says no") } else { Ok(()) }
    }

    fn thaw(&mut self, _version: u32) -> Result<(), &'static str> {
        self.derived = self.narrow.count_ones();
        if self.verdict == 1 { Err("post_load says no") } else { Ok(()) }
    }

    fn is_needed(&self) -> bool {
        self.needed != 0
    }

    fn is_old(&self, version: u32) -> bool {
        version < 3
    }

    fn lines_are_even(&self) -> Result<(), &'static str> {
        if self.lines.is_multiple_of(2) { Ok(()) } else { Err("lines come in pairs") }
    }

    fn has_lines(&self, _version: u32) -> bool {
        self.lines > 0
    }

    /// One with something in each field.
    pub(crate) fn full() -> Self {
        let leaf = |value| Leaf { value, derived: 0 };
        let parent = |children| Parent { children, child: leaf(20) };
        Self {
            verdict: 0,
            signed: (-1, -2, -3, -4),
            on: true,
            double: 1.5,
            mode: Mode::Slow,
            address: Address(0x1000),
            atomics: Default::default(),
            cells: Default::default(),
            boxed: Default::default(),
            divisor: NonZero::<u16>::MIN,
            leaf: leaf(1),
            grid: [[leaf(2), leaf(3)], [leaf(4), leaf(5)]],
            first: 6,
            second: [7, 8, 9],
            count: 2,
            list: vec![leaf(10), leaf(11)],
            some: [12; 6],
            bytes: vec![13, 14],
            many: 3,
            large: vec![15; 3],
            fixed: *b"fixed",
            gap: Unused,
            narrow: 16,
            wide: -17,
            text: "text".into(),
            sectors: 64,
            queues: 4,
            state: 1,
            lines: 2,
            line: 18,
            newer: 19,
            newest: leaf(21),
            old: 22,
            generic: Pair { one: leaf(23), other: leaf(24) },
            parent: parent(1),
            queue: [leaf(31), leaf(32)].into(),
            map: BTreeMap::from([(33, leaf(34)), (35, leaf(36))]),
            part: [leaf(37), leaf(38), leaf(39), leaf(40)],
            start: [41; 4],
            triples: [42; 9].into(),
            flags: [43],
            bits: vec![5],
            pointers: [None, Some(Box::new(leaf(44)))],
            timer: Timer(Some(Duration::from_nanos(45))),
            derived: 25,
            needed: 26,
            needed_newer: [27, 28],
            option: Some([29, 30]),
            nested: parent(1),
        }
    }
}

fn body(input: &[u8]) {
    let [how, body @ ..] = input else { return };
    let strictness = if how & 0x80 == 0 { Strictness::Strict } else { Strictness::QemuCompatible };
    let mut zoo = Unharmed::new(Zoo::full());
    let _ = zoo.load(&mut Reader::new(body, 0, strictness, LIMITS).complete(), u32::from(how & 0x7f));
}

fn seeds() -> Vec<Vec<u8>> {
    let bare = Zoo {
        needed: 0,
        option: None,
        parent: Parent::default(),
        count: 0,
        list: vec![],
        bytes: vec![],
        ..Zoo::full()
    };
    let states = [Zoo::full(), bare].map(|zoo| Unharmed::new(zoo).saved());
    [3, 0x83].into_iter().flat_map(|how| states.iter().map(move |state| [&[how], state.as_slice()].concat())).collect()
}
