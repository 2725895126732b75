//! Bytes behind subsections stay bytes behind subsections, whatever they are wrapped in: each field is refused, but those
//! whose name begins with `fine`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::num::Wrapping;
use std::sync::{Mutex, RwLock};

use vmstate::codec::{Reader, Writer};
use vmstate::schema::{Description, Field, Kind, Presence, MaybeStatic};
use vmstate::{Result, Temporary, VmState, Wire};

#[derive(VmState, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[vmstate(name = "in", subsection(name = "in/s"))]
struct In {
    a: u8,
    #[vmstate(subsection = "in/s")]
    s: u8,
}

type Pair = (In, [u8; 12]);

#[derive(VmState, Default)]
#[vmstate(transparent)]
struct Transparent(Pair);

/// A codec whose kind is written by hand.
#[derive(Default)]
struct ByHand(In, u8);

const FIELDS: &[Field] = &[
    Field::new(MaybeStatic::Static("0"), <In as Wire>::KIND, Presence::Since(0)),
    Field::new(MaybeStatic::Static("1"), <u8 as Wire>::KIND, Presence::Since(0)),
];
const BY_HAND: Description =
    Description::new(MaybeStatic::Static("by hand"), 1, 1, MaybeStatic::Static(FIELDS), MaybeStatic::Static(&[]));

impl Wire for ByHand {
    type Undo = ();
    const KIND: Kind = Kind::Struct(MaybeStatic::Static(&BY_HAND));

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        self.0.save(out)?;
        self.1.save(out)
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        self.0.load(input)?;
        self.1.load(input)
    }

    fn remember(&self) {}

    fn undo(&mut self, (): ()) {}
}

mod by_hand {
    use super::*;

    pub const KIND: Kind = <Pair as Wire>::KIND;

    pub fn save(pair: &Pair, out: &mut Writer) -> Result<()> {
        pair.clone().save(out)
    }

    pub fn load(input: &mut Reader<'_>) -> Result<Pair> {
        let mut pair = Pair::default();
        pair.load(input)?;
        Ok(pair)
    }
}

struct Foreign {
    part: In,
}

#[derive(VmState)]
#[vmstate(name = "mirror", remote = Foreign)]
struct Mirror {
    part: In,
}

#[derive(VmState)]
#[vmstate(name = "generic")]
struct Generic<T> {
    value: T,
    more: u8,
}

#[derive(VmState)]
#[vmstate(name = "tmp")]
struct Tmp {
    part: In,
}

impl From<&Dev> for Tmp {
    fn from(_: &Dev) -> Self {
        Self { part: In::default() }
    }
}

impl Temporary<Dev> for Tmp {
    fn apply(self, _: &mut Dev) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }
}

impl Clone for Foreign {
    fn clone(&self) -> Self {
        Self { part: self.part }
    }
}

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    count: u8,
    tuple: (In, [u8; 12]),
    alias: Pair,
    array_in_a_tuple: ([In; 2],),
    tuples_in_an_array: [(u8, In); 2],
    nested_tuple: ((u8, In), u8),
    boxed: Box<Pair>,
    cell: Cell<(In, u8)>,
    ref_cell: RefCell<Pair>,
    mutex: Mutex<Pair>,
    rw_lock: RwLock<Pair>,
    wrapping: Wrapping<(In, u8)>,
    pointer: Option<Box<Pair>>,
    transparent: Transparent,
    #[vmstate(list, max = 4)]
    list: Vec<Pair>,
    #[vmstate(map, max = 4)]
    value: BTreeMap<u8, Pair>,
    #[vmstate(map, max = 4)]
    key: BTreeMap<(In, u8), u8>,
    #[vmstate(len = count, max = 4)]
    counted: Vec<(u8, In)>,
    #[vmstate(slice = 1..)]
    slice: [(In, u8); 3],
    kind_by_hand: ByHand,
    #[vmstate(with = by_hand)]
    with: Pair,
    #[vmstate(via = Mirror)]
    remote: Foreign,
    generic: Generic<In>,
    #[vmstate(struct_version = 1)]
    at_a_version: Tmp,
    #[vmstate(tmp = Tmp)]
    temporary: (),
    #[vmstate(unframed)]
    fine_as_it_is_given: Pair,
    fine_as_it_is_framed: (u8, [u8; 2]),
    #[vmstate(list, max = 4)]
    fine_as_a_byte_follows: Vec<(u8, In)>,
    fine_at_the_end: (u8, In),
}

fn main() {}
