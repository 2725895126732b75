//! Descriptions as data: the layout of a device's state on the wire, for each version.
//!
//! A [`Description`] does not refer to code of a device: it can be a `const` that the derive wrote, or be parsed from a JSON file
//! of another release.

mod first_byte;
pub(crate) mod framing;
#[cfg(feature = "engine")]
pub mod json;
mod maybe_static;
#[cfg(feature = "engine")]
mod older;
#[cfg(feature = "engine")]
pub(crate) mod program;
#[cfg(feature = "engine")]
mod type_name;
#[cfg(feature = "engine")]
pub(crate) mod vmdesc;

use crate::error::{Error, ErrorKind, Result};

pub use maybe_static::MaybeStatic;
#[cfg(feature = "engine")]
pub(crate) use vmdesc::vmdesc;

/// The description of a type that derives `VmState`.
///
/// ```
/// #[derive(vmstate::VmState)]
/// #[vmstate(name = "led")]
/// struct Led {
///     level: u16,
/// }
///
/// let led = vmstate::schema::of::<Led>();
/// assert_eq!((&*led.name, led.version, &*led.fields[0].name), ("led", 1, "level"));
/// ```
pub fn of<T: Described + ?Sized>() -> &'static Description {
    T::description()
}

/// A type with a description: every type that derives `VmState`.
pub trait Described {
    /// Name, versions, fields and subsections.
    fn description() -> &'static Description;
}

/// The layout of one struct on the wire: QEMU's `VMStateDescription` without its C pointers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Description {
    /// Name, as sent for sections and subsections.
    pub name: MaybeStatic<str>,
    /// Newest version, the one that is written.
    pub version: u32,
    /// Oldest version that still loads.
    pub minimum_version: u32,
    /// Fields in wire order.
    pub fields: MaybeStatic<[Field]>,
    /// Subsections in the order in which they are written.
    pub subsections: MaybeStatic<[Description]>,
    /// The functions of the device that a load calls, as its attributes name them: `post_load = Self::thaw`. `None` if the origin
    /// of the description does not list them: QEMU's dumps do not, and neither do the schemas of this library's first releases,
    /// which also lack each [`Field::count`].
    pub hooks: Option<MaybeStatic<[MaybeStatic<str>]>>,
}

impl Description {
    /// Creates a description from its parts; `const`, for the derive.
    pub const fn new(
        name: MaybeStatic<str>,
        version: u32,
        minimum_version: u32,
        fields: MaybeStatic<[Field]>,
        subsections: MaybeStatic<[Description]>,
    ) -> Self {
        Self::with_hooks(name, version, minimum_version, fields, subsections, Some(MaybeStatic::Static(&[])))
    }

    /// Creates a description of state whose layout only its own code knows, such as an [iterative
    /// section](crate::section::IterativeSection)'s. `const`, for a `static`.
    pub const fn undescribed(name: &'static str, version: u32, minimum_version: u32) -> Self {
        let (fields, subsections) = (MaybeStatic::Static(&[] as &[Field]), MaybeStatic::Static(&[] as &[Self]));
        Self::new(MaybeStatic::Static(name), version, minimum_version, fields, subsections)
    }

    /// As for [`new`](Self::new), for a struct with these [`hooks`](Self::hooks).
    pub const fn with_hooks(
        name: MaybeStatic<str>,
        version: u32,
        minimum_version: u32,
        fields: MaybeStatic<[Field]>,
        subsections: MaybeStatic<[Description]>,
        hooks: Option<MaybeStatic<[MaybeStatic<str>]>>,
    ) -> Self {
        Self { name, version, minimum_version, fields, subsections, hooks }
    }

    /// True if bytes of that version can be read and written.
    pub const fn has_version(&self, version: u32) -> bool {
        self.minimum_version <= version && version <= self.version
    }

    /// Refuses a version that does not load.
    pub(crate) fn check_version(&self, version: u32) -> Result<()> {
        let Self { version: newest, minimum_version: oldest, .. } = self;
        let message = match () {
            () if version > *newest => format!("version {version} is newer than {newest}"),
            () if version < *oldest => format!("version {version} is older than {oldest}, the oldest that loads"),
            () => return Ok(()),
        };
        Err(Error::new(ErrorKind::Incompatible, message))
    }
}

/// One field of a [`Description`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Field {
    /// Name, as the self-description shows it.
    pub name: MaybeStatic<str>,
    /// The kind of its bytes.
    pub kind: Kind,
    /// The condition under which the field is present.
    pub presence: Presence,
    /// The number of elements, if the field is counted, a list or a map.
    pub count: Option<Count>,
    /// The conversion from the bytes to the field's value, which may refuse, as the attribute names it: `via = Percent`.
    pub conversion: Option<MaybeStatic<str>>,
    /// True if the layout is kept although a reader may mistake the following bytes for a subsection.
    pub is_unframed: bool,
}

impl Field {
    /// Creates a field from its parts; `const`, for the derive.
    pub const fn new(name: MaybeStatic<str>, kind: Kind, presence: Presence) -> Self {
        Self { name, kind, presence, is_unframed: false, count: None, conversion: None }
    }

    /// Sets [`is_unframed`](Self::is_unframed).
    pub const fn unframed(mut self) -> Self {
        self.is_unframed = true;
        self
    }

    /// Creates a field whose number of elements is limited by `count`, and whose value a `conversion` makes from the bytes;
    /// `const`, for the derive.
    pub const fn with(
        name: MaybeStatic<str>,
        kind: Kind,
        presence: Presence,
        count: Option<Count>,
        conversion: Option<MaybeStatic<str>>,
    ) -> Self {
        Self { name, kind, presence, is_unframed: false, count, conversion }
    }
}

/// The number of elements of a field: the limit of a save and of a load.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Count {
    /// The source of the number; `None` for a list or a map, whose bytes contain the number.
    pub length: Option<Length>,
    /// Number of elements for each unit of the length.
    pub factor: usize,
    /// The most elements; for a bitmap, the most bits.
    pub most: usize,
    /// True if a machine may have room for fewer, because its memory has a size that was fixed when the device was created.
    pub by_room: bool,
}

impl Count {
    /// Creates a count from its parts; `const`, for the derive.
    pub const fn new(length: Option<Length>, factor: usize, most: usize, by_room: bool) -> Self {
        Self { length, factor, most, by_room }
    }
}

/// The source of a field's number of elements.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Length {
    /// An earlier field of this name, in the same description or in one that it is a subsection of.
    Field(MaybeStatic<str>),
    /// A value of this name that is not on the wire: the machine's configuration.
    Machine(MaybeStatic<str>),
}

/// The condition under which a field is on the wire.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Presence {
    /// From this version of its description on (QEMU's field version; 0 is always).
    Since(u32),
    /// If the named predicate holds (QEMU's `field_exists`): an outcome that the bytes do not show.
    If(MaybeStatic<str>),
    /// If the first field of its description, an integer that is always present, has this number: the tag of an enum before its
    /// variants.
    Tag(i128),
}

impl Presence {
    /// True if each save decides about the presence, and not the version alone.
    pub(crate) const fn is_decided(&self) -> bool {
        !matches!(self, Self::Since(_))
    }
}

/// The encoding of a field. Integers are big-endian.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Kind {
    /// One byte, 0 or 1.
    Bool,
    /// An unsigned integer of 1, 2, 4 or 8 bytes.
    Unsigned(u8),
    /// A two's complement integer of 1, 2, 4 or 8 bytes.
    Signed(u8),
    /// Raw bytes of fixed length.
    Buffer(usize),
    /// Raw bytes, whose number is the outcome.
    CountedBuffer,
    /// Zero bytes that readers ignore.
    Unused(usize),
    /// An integer of which a reader accepts only some values.
    Limited(MaybeStatic<Kind>, Limit),
    /// When a timer fires: 8 bytes, nanoseconds of its clock, or -1 if it is not armed.
    Timer,
    /// An IEEE 754 double: 8 bytes.
    Double,
    /// This many bits, in words of 8 bytes; the first bit is the lowest of the first word.
    Bitmap(usize),
    /// As for [`Bitmap`](Self::Bitmap), with the outcome as the number of bits.
    CountedBitmap,
    /// A nested struct, inline: no name, version or length of its own on the wire.
    Struct(MaybeStatic<Description>),
    /// A nested struct, inline, in the layout of this version of its own (QEMU's `VMSTATE_VSTRUCT`).
    StructAt(MaybeStatic<Description>, u32),
    /// A struct that is created for the wire from the struct that contains it (QEMU's `VMSTATE_WITH_TMP`), inline.
    Temporary(MaybeStatic<Description>),
    /// The value if the outcome is 1; one byte `30` if it is 0, where a pointer is null.
    Nullable(MaybeStatic<Kind>),
    /// This many elements, concatenated.
    Array(MaybeStatic<Kind>, usize),
    /// Concatenated elements, whose number is the outcome.
    CountedArray(MaybeStatic<Kind>),
    /// A byte `01` before each element and a byte `00` after the last (QEMU's `VMSTATE_QTAILQ_V`); the number of elements is the
    /// outcome.
    List(MaybeStatic<Kind>),
    /// A number of entries in 4 bytes, then as a list: key and value, sorted by key (QEMU's `VMSTATE_GTREE_V`); the number of
    /// entries is the outcome.
    Map(MaybeStatic<Kind>, MaybeStatic<Kind>),
    /// Bytes of a hand-written codec under this type name; their number is the outcome.
    Custom(MaybeStatic<str>),
    /// No bytes: the point at which the device checks the fields loaded so far (QEMU's `VMSTATE_VALIDATE`).
    Check,
}

/// The values of an integer that a reader accepts.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Limit {
    /// The device's current value.
    Equal,
    /// 0 to the device's current value.
    AtMostCurrent,
    /// All but 0.
    NotZero,
    /// From the first to the second number, both included.
    Within(i128, i128),
    /// A Unicode scalar value: up to 0x10ffff except the surrogates, 0xd800 to 0xdfff.
    Scalar,
    /// One of these numbers.
    OneOf(MaybeStatic<[i128]>),
}
