//! A description as a program over wire items: what comes on the wire, step by step. Whoever reads bytes by a
//! description, describes them or compares two descriptions interprets it.
//!
//! A program is made from a [`Description`](super::Description) (`compile`) or from a stream's own self-description
//! (`described`). It has one step or encoding for each way to *decode*; what only changes the meaning of bytes is a
//! [`Meaning`]. All versions are in one program, since a nested struct and a subsection have versions of their own.

mod compile;
mod described;

use std::borrow::Cow;
use std::rc::Rc;

use super::{Count, Limit, MaybeStatic, Presence};

/// What one struct has on the wire.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// Name of the struct.
    pub(crate) name: &'a str,
    /// Oldest version of which bytes can be read.
    pub(crate) oldest: u32,
    /// Newest version, the one that is written.
    pub(crate) newest: u32,
    /// What a load asks the device itself, if the description says it.
    pub(crate) hooks: Option<&'a [MaybeStatic<str>]>,
    /// In wire order.
    pub(crate) steps: Vec<Step<'a>>,
}

/// One step of a [`Program`].
#[derive(Debug)]
pub(crate) enum Step<'a> {
    /// A value with a name.
    Member(Member<'a>),
    /// No bytes: the device checks what it has so far.
    Check {
        /// The description's name for it.
        name: &'a str,
        /// True if the check is a predicate (QEMU's `field_exists`).
        is_predicate: bool,
    },
    /// Subsections that may come: written in this order, found by looking ahead (`Reader::peek_subsection`).
    Subsections(Vec<Rc<Program<'a>>>),
    /// A subsection that was sent, at this version if the self-description says a usable one.
    Sent(Option<u32>, Rc<Program<'a>>),
    /// No reader can continue here, for this reason.
    Refuse(String),
}

/// A value with a name.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    /// Name, as the description has it.
    pub(crate) name: Cow<'a, str>,
    /// Type in the words of a self-description; of an array, that of its elements.
    pub(crate) type_name: Cow<'a, str>,
    /// When it is there.
    pub(crate) presence: &'a Presence,
    /// How many elements it may have, if the description says it.
    pub(crate) count: Option<&'a Count>,
    /// What turns the bytes into a value and may refuse to.
    pub(crate) conversion: Option<&'a str>,
    /// Its bytes.
    pub(crate) encoding: Encoding<'a>,
}

/// How the bytes of a value go on.
#[derive(Clone, Debug)]
pub(crate) enum Encoding<'a> {
    /// Bytes of one meaning.
    Item(Item<'a>),
    /// A nested struct.
    Struct(Nested<'a>),
    /// Elements, one after another.
    Repeat(Framing, Rc<Self>),
    /// The value, or one byte `30` where a pointer is null; the outcome says which.
    Nullable(Rc<Self>),
    /// No reader can continue here, for this reason.
    Refuse(String),
}

/// A nested struct.
#[derive(Clone, Debug)]
pub(crate) struct Nested<'a> {
    /// What it has on the wire.
    pub(crate) program: Rc<Program<'a>>,
    /// At this version.
    pub(crate) version: u32,
    /// How a self-description shows the field.
    pub(crate) form: Form,
    /// Its bytes, if a self-description says so.
    pub(crate) size: Option<u64>,
}

/// How a self-description shows a nested struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As an object under the key `struct`.
    Object,
    /// Right in the object of the field (`vmsd_desc_field_start`, migration/vmstate.c).
    Inline,
    /// Key and value of a map.
    Entry,
}

/// Where the number of elements is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// The description fixes the number.
    Fixed(u64),
    /// The outcome says it; the bytes do not.
    Counted,
    /// A byte `01` before each element, a byte `00` behind the last. The outcome says it, too.
    List,
    /// As a list, behind the number in 4 bytes.
    Map,
}

/// Bytes of one meaning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item<'a> {
    /// What they mean.
    pub(crate) meaning: Meaning<'a>,
    /// How many; `None`: the outcome says it, of a bitmap in bits.
    pub(crate) size: Option<u64>,
    /// Which values a reader takes.
    pub(crate) limit: Option<&'a Limit>,
}

/// What bytes mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    /// 0 or 1.
    Bool,
    /// An unsigned integer.
    Unsigned,
    /// A two's complement integer.
    Signed,
    /// When a timer fires, in nanoseconds of its clock.
    Timer,
    /// An IEEE 754 double.
    Double,
    /// Words of a bitmap of so many bits; `None`: the outcome says how many.
    Bitmap(Option<u64>),
    /// Bytes without further meaning.
    Raw,
    /// Bytes that no device reads.
    Unused,
    /// Something of which a dump of QEMU says only this name.
    Opaque(&'a str),
    /// What a hand-written codec of this name makes.
    Codec(&'a str),
}

impl<'a> Program<'a> {
    /// True if bytes of that version can be read and written.
    pub(crate) const fn has_version(&self, version: u32) -> bool {
        self.oldest <= version && version <= self.newest
    }

    /// The values with names, those of all versions.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Member<'a>> {
        self.steps.iter().filter_map(|step| if let Step::Member(member) = step { Some(member) } else { None })
    }

    /// The subsections that may come.
    pub(crate) fn subsections(&self) -> impl Iterator<Item = &Self> {
        let all = self.steps.iter().filter_map(|step| if let Step::Subsections(all) = step { Some(all) } else { None });
        all.flatten().map(|subsection| &**subsection)
    }
}

impl Encoding<'_> {
    /// True if a length, or the bytes themselves, say how many elements there are.
    pub(crate) const fn is_counted(&self) -> bool {
        match self {
            Self::Repeat(framing, _) => !matches!(framing, Framing::Fixed(_)),
            Self::Item(item) => item.size.is_none() && !self.is_codec(),
            _ => false,
        }
    }

    /// True if the bytes are those of a hand-written codec, or of a field of which only the size is known.
    pub(crate) const fn is_codec(&self) -> bool {
        matches!(self, Self::Item(Item { meaning: Meaning::Codec(_) | Meaning::Opaque(_), .. }))
    }

    /// What arrays repeat, through all dimensions.
    pub(crate) fn element(&self) -> &Self {
        match self {
            Self::Repeat(Framing::Fixed(_) | Framing::Counted, element) => element.element(),
            other => other,
        }
    }
}

/// Bytes of a bitmap: whole words of 64 bits.
pub(crate) const fn bitmap_size(bits: u64) -> u64 {
    bits.div_ceil(64) * 8
}
