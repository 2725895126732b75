//! Target: a struct with one field of every kind that the derive supports. A new kind is one line in [`EveryKind`].
//!
//! ```text
//! byte 0: version (low 7 bits), QEMU-compatible (high bit) | body
//! ```

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::num::{NonZero, Wrapping};
use std::sync::atomic::{AtomicBool, AtomicI8, AtomicI64, AtomicU16, AtomicU32};
use std::sync::{Mutex, RwLock};

use vmstate::codec::{Reader, Strictness};
use vmstate::{Section, Temporary, Timer, Unused, VmState};

use crate::Target;
use crate::machine::LIMITS;
use crate::rollback::Rollback;

pub(crate) const TARGET: Target = Target { name: "every_kind", memory: 4 << 20, body, seeds };

/// One field of each kind. A field whose default would not test its kind has another value in [`EveryKind::full`].
#[derive(VmState, Default)]
// The archived streams have this section name.
#[vmstate(name = "zoo", version = 3, minimum_version = 1)]
#[vmstate(pre_load = Self::reset, validate = Self::check, post_load = Self::thaw)]
#[vmstate(subsection(name = "zoo/needed", needed = Self::is_needed, version = 2, minimum_version = 1))]
#[vmstate(subsection(name = "zoo/option"))]
#[vmstate(subsection(name = "zoo/nested", needed = Self::is_needed, validate = Self::check))]
#[vmstate(subsection(name = "zoo/nested/deep"))]
pub(crate) struct EveryKind {
    verdict: u8,
    signed: (i8, i16, i32, i64),
    on: bool,
    double: f64,
    mode: Mode,
    address: Address,
    atomics: (AtomicBool, AtomicI8, AtomicU16, AtomicU32, AtomicI64),
    cells: (Cell<u8>, RefCell<u16>, Mutex<u8>),
    boxed: (RwLock<Wrapping<i8>>, Box<u32>),
    divisor: Divisor,
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
    #[vmstate(len = count * 3, max = 18)]
    multiplied: Box<[u16]>,
    #[vmstate(slice = 1..3)]
    middle: [u16; 4],
    #[vmstate(slice = 4.., buffer)]
    tail: [u8; 6],
    #[vmstate(bitmap)]
    bits: [u64; 2],
    #[vmstate(bitmap, len = count, max = 130)]
    counted_bits: Vec<u64>,
    #[vmstate(list, max = 3)]
    queue: VecDeque<Leaf>,
    #[vmstate(list, max = 0x10_0000)]
    stack: Vec<u64>,
    #[vmstate(map, max = 3)]
    map: BTreeMap<u16, Leaf>,
    #[vmstate(map, max = 0x10_0000)]
    large_map: BTreeMap<u32, u8>,
    pointer: Option<Box<u32>>,
    pointers: [Option<Box<Leaf>>; 3],
    #[vmstate(len = count, max = 6)]
    counted_pointers: Vec<Option<Box<u8>>>,
    timers: [Timer; 2],
    #[vmstate(struct_version = 1)]
    chip: Chip,
    register: Register,
    #[vmstate(via = u8)]
    percent: Percent,
    #[vmstate(via = [Mirror; 2])]
    foreign: [Foreign; 2],
    #[vmstate(len = count, max = 6)]
    gaps: Unused<2>,
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
    #[vmstate(skip)]
    derived: u32,
    #[vmstate(subsection = "zoo/needed")]
    needed: u16,
    #[vmstate(subsection = "zoo/needed", since = 2)]
    needed_newer: [u8; 2],
    #[vmstate(subsection = "zoo/option")]
    option: Option<[u16; 2]>,
    #[vmstate(subsection = "zoo/nested")]
    nested: Leaf,
    #[vmstate(subsection = "zoo/nested/deep")]
    deep: u8,
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

#[derive(VmState, Debug)]
#[vmstate(transparent)]
struct Divisor(NonZero<u16>);

impl Default for Divisor {
    fn default() -> Self {
        Self(NonZero::<u16>::MIN)
    }
}

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

#[derive(VmState, Debug, Default)]
#[vmstate(name = "chip", version = 2, minimum_version = 1)]
struct Chip {
    control: u8,
    #[vmstate(since = 2)]
    speed: u8,
}

#[derive(VmState, Debug, Default)]
#[vmstate(name = "register")]
struct Register {
    #[vmstate(skip)]
    bits: u128,
    #[vmstate(tmp = Halves)]
    tmp: (),
}

#[derive(VmState)]
#[vmstate(name = "halves")]
struct Halves(u64, u64);

impl From<&Register> for Halves {
    fn from(register: &Register) -> Self {
        Self((register.bits >> 64) as u64, register.bits as u64)
    }
}

impl Temporary<Register> for Halves {
    fn apply(self, register: &mut Register) -> Result<(), Box<dyn Error + Send + Sync>> {
        register.bits = u128::from(self.0) << 64 | u128::from(self.1);
        if self.0 == u64::MAX { Err("the register says no".into()) } else { Ok(()) }
    }
}

#[derive(Clone, Debug, Default)]
struct Percent(u8);

impl From<&Percent> for u8 {
    fn from(percent: &Percent) -> Self {
        percent.0
    }
}

impl TryFrom<u8> for Percent {
    type Error = &'static str;

    fn try_from(wire: u8) -> Result<Self, Self::Error> {
        if wire <= 100 { Ok(Self(wire)) } else { Err("more than all") }
    }
}

#[derive(Clone, Debug, Default)]
struct Foreign {
    base: u64,
    padding: u16,
}

#[derive(VmState)]
#[vmstate(name = "mirror", remote = Foreign)]
struct Mirror {
    base: u64,
    #[vmstate(skip)]
    padding: u16,
}

mod text {
    use vmstate::codec::{Reader, Writer};
    use vmstate::schema::{Kind, MaybeStatic};

    pub(crate) const KIND: Kind = Kind::Custom(MaybeStatic::Static("text"));

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

impl EveryKind {
    fn reset(&mut self) -> Result<(), &'static str> {
        (self.newer, self.old, self.derived) = (7, 8, 9);
        (self.needed, self.needed_newer) = (0, [0; 2]);
        self.newest = Leaf::default();
        (self.nested, self.deep) = (Leaf::default(), 0);
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

    /// A state with a value other than the default in each field.
    pub(crate) fn full() -> Self {
        let leaf = |value| Leaf { value, derived: 0 };
        let parent = |children| Parent { children, child: leaf(20) };
        Self {
            signed: (-1, -2, -3, -4),
            on: true,
            double: 1.5,
            mode: Mode::Slow,
            grid: [[leaf(2), leaf(3)], [leaf(4), leaf(5)]],
            count: 2,
            list: vec![leaf(10), leaf(11)],
            bytes: vec![13, 14],
            many: 3,
            large: vec![15; 3],
            multiplied: vec![1; 6].into(),
            counted_bits: vec![3],
            queue: [leaf(1), leaf(2)].into(),
            stack: vec![1, 2],
            map: [(1, leaf(3)), (2, leaf(4))].into(),
            large_map: [(5, 6)].into(),
            pointer: Some(7.into()),
            pointers: [None, Some(leaf(8).into()), None],
            counted_pointers: vec![None, Some(9.into())],
            text: "text".into(),
            sectors: 64,
            queues: 4,
            state: 1,
            lines: 2,
            parent: parent(1),
            needed: 26,
            option: Some([29, 30]),
            nested: leaf(12),
            deep: 13,
            percent: Percent(40),
            register: Register { bits: 1 << 70, tmp: () },
            ..Self::default()
        }
    }
}

fn body(input: &[u8]) {
    let [how, body @ ..] = input else { return };
    let strictness = if how & 0x80 == 0 { Strictness::Strict } else { Strictness::QemuCompatible };
    let mut device = Rollback::new(EveryKind::full());
    let _ = device.load(&mut Reader::new(body, 0, strictness, LIMITS).complete(), u32::from(how & 0x7f));
}

fn seeds() -> Vec<Vec<u8>> {
    let bare = EveryKind { state: 1, lines: 2, ..EveryKind::default() };
    let states = [EveryKind::full(), bare].map(|state| Rollback::new(state).saved());
    [3, 0x83].into_iter().flat_map(|how| states.iter().map(move |state| [&[how], state.as_slice()].concat())).collect()
}
