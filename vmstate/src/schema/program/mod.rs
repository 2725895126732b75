//! A description as a program over wire items: the sequence of items on the wire. Everything that decodes bytes, writes
//! self-descriptions or compares descriptions interprets it.
//!
//! A program is compiled from a [`Description`](super::Description) (`compile`) or from a stream's self-description
//! (`described`). It has one step or encoding for each way to *decode*; differences that only concern the meaning of bytes are in
//! [`Meaning`]. One program contains all versions, since a nested struct and a subsection have versions of their own.

mod compile;
mod described;

use std::borrow::Cow;
use std::rc::Rc;

use super::{Count, Limit, MaybeStatic, Presence};

/// The program of one struct.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// Name of the struct.
    pub(crate) name: &'a str,
    /// Oldest version that can be decoded.
    pub(crate) oldest: u32,
    /// Newest version, the one that is written.
    pub(crate) newest: u32,
    /// The functions of the device that a load calls, if the description lists them.
    pub(crate) hooks: Option<&'a [MaybeStatic<str>]>,
    /// The steps in wire order.
    pub(crate) steps: Vec<Step<'a>>,
}

/// One step of a [`Program`].
#[derive(Debug)]
pub(crate) enum Step<'a> {
    /// A value with a name.
    Member(Member<'a>),
    /// No bytes: the device checks the fields loaded so far.
    Check {
        /// The name in the description.
        name: &'a str,
        /// True if the check is a predicate (QEMU's `field_exists`).
        is_predicate: bool,
    },
    /// Subsections that may follow: written in this order, found by looking ahead (`Reader::peek_subsection`).
    Subsections(Vec<Rc<Program<'a>>>),
    /// A subsection that was sent, with its version if the self-description has a valid one.
    Sent(Option<u32>, Rc<Program<'a>>),
    /// The reader stops with this error.
    Refuse(String),
}

/// A value with a name.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    /// Name in the description.
    pub(crate) name: Cow<'a, str>,
    /// Type name in a self-description; for an array, that of its elements.
    pub(crate) type_name: Cow<'a, str>,
    /// The condition under which the member is present.
    pub(crate) presence: &'a Presence,
    /// The limit on the number of elements, if the description states it.
    pub(crate) count: Option<&'a Count>,
    /// The conversion from the bytes to the value, which may refuse.
    pub(crate) conversion: Option<&'a str>,
    /// The encoding of its bytes.
    pub(crate) encoding: Encoding<'a>,
}

/// The structure of a value's bytes.
#[derive(Clone, Debug)]
pub(crate) enum Encoding<'a> {
    /// Bytes of one meaning.
    Item(Item<'a>),
    /// A nested struct.
    Struct(Nested<'a>),
    /// Elements, one after another.
    Repeat(Framing, Rc<Self>),
    /// The value, or one byte `30` where a pointer is null; the outcome decides.
    Nullable(Rc<Self>),
    /// The reader stops with this error.
    Refuse(String),
}

/// A nested struct.
#[derive(Clone, Debug)]
pub(crate) struct Nested<'a> {
    /// The program of the struct.
    pub(crate) program: Rc<Program<'a>>,
    /// The version of its layout.
    pub(crate) version: u32,
    /// How a self-description shows the field.
    pub(crate) form: Form,
    /// Size in bytes, if a self-description states it.
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
    /// The outcome is the number; the bytes do not contain it.
    Counted,
    /// A byte `01` before each element, a byte `00` after the last. The outcome is the number, too.
    List,
    /// As a list, after the number in 4 bytes.
    Map,
}

/// Bytes of one meaning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item<'a> {
    /// The meaning of the bytes.
    pub(crate) meaning: Meaning<'a>,
    /// Size in bytes; if `None`, the outcome is the size, for a bitmap in bits.
    pub(crate) size: Option<u64>,
    /// The values that a reader accepts.
    pub(crate) limit: Option<&'a Limit>,
}

/// The meaning of bytes.
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
    /// Words of a bitmap of this many bits; if `None`, the outcome is the number.
    Bitmap(Option<u64>),
    /// Bytes without further meaning.
    Raw,
    /// Bytes that readers ignore.
    Unused,
    /// A type of which a dump of QEMU states only this name.
    Opaque(&'a str),
    /// Bytes of a hand-written codec of this name.
    Codec(&'a str),
}

impl<'a> Program<'a> {
    /// True if bytes of that version can be read and written.
    pub(crate) const fn has_version(&self, version: u32) -> bool {
        self.oldest <= version && version <= self.newest
    }

    /// The named values of all versions.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Member<'a>> {
        self.steps.iter().filter_map(|step| if let Step::Member(member) = step { Some(member) } else { None })
    }

    /// The subsections that may follow.
    pub(crate) fn subsections(&self) -> impl Iterator<Item = &Self> {
        let all = self.steps.iter().filter_map(|step| if let Step::Subsections(all) = step { Some(all) } else { None });
        all.flatten().map(|subsection| &**subsection)
    }
}

impl Encoding<'_> {
    /// True if a length or the bytes themselves determine the number of elements.
    pub(crate) const fn is_counted(&self) -> bool {
        match self {
            Self::Repeat(framing, _) => !matches!(framing, Framing::Fixed(_)),
            Self::Item(item) => item.size.is_none() && !self.is_codec(),
            _ => false,
        }
    }

    /// True for the bytes of a hand-written codec, and of a field of which only the size is known.
    pub(crate) const fn is_codec(&self) -> bool {
        matches!(self, Self::Item(Item { meaning: Meaning::Codec(_) | Meaning::Opaque(_), .. }))
    }

    /// The innermost element of nested arrays.
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
