//! Descriptions as data: what a device's state looks like on the wire, version by version.
//!
//! No code of a device is reachable from here: a [`Description`] can be a `const` that the derive wrote, or come
//! out of a JSON file of another release.

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

/// A type with a description: whatever derives `VmState`.
pub trait Described {
    /// Name, versions, fields and subsections.
    fn description() -> &'static Description;
}

/// What one struct looks like on the wire: QEMU's `VMStateDescription` without its C pointers.
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
    /// Subsections in the order they are written.
    pub subsections: MaybeStatic<[Description]>,
    /// What a load asks the device itself, each as its attribute says it: `post_load = Self::thaw`. `None` if whoever made the
    /// description does not say: QEMU's dumps do not, and neither do the schemas of this library's first releases, which lack
    /// each [`Field::count`], too.
    pub hooks: Option<MaybeStatic<[MaybeStatic<str>]>>,
}

impl Description {
    /// A description from its parts; `const`, for the derive.
    pub const fn new(
        name: MaybeStatic<str>,
        version: u32,
        minimum_version: u32,
        fields: MaybeStatic<[Field]>,
        subsections: MaybeStatic<[Description]>,
    ) -> Self {
        Self::with_hooks(name, version, minimum_version, fields, subsections, Some(MaybeStatic::Static(&[])))
    }

    /// A description of state whose bytes only its own code knows: an [iterative
    /// section](crate::section::IterativeSection)'s. `const`, for a `static`.
    pub const fn undescribed(name: &'static str, version: u32, minimum_version: u32) -> Self {
        let (fields, subsections) = (MaybeStatic::Static(&[] as &[Field]), MaybeStatic::Static(&[] as &[Self]));
        Self::new(MaybeStatic::Static(name), version, minimum_version, fields, subsections)
    }

    /// As [`new`](Self::new), of a struct with these [`hooks`](Self::hooks).
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

    /// Refuses what was written at a version that does not load.
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
    /// What its bytes are.
    pub kind: Kind,
    /// When it is there.
    pub presence: Presence,
    /// How many elements it may have, if it is counted, a list or a map.
    pub count: Option<Count>,
    /// What turns the bytes into the field's value and may refuse to, as the attribute says it: `via = Percent`.
    pub conversion: Option<MaybeStatic<str>>,
    /// True if the layout is given although a reader may take what follows for a subsection.
    pub is_unframed: bool,
}

impl Field {
    /// A field from its parts; `const`, for the derive.
    pub const fn new(name: MaybeStatic<str>, kind: Kind, presence: Presence) -> Self {
        Self { name, kind, presence, is_unframed: false, count: None, conversion: None }
    }

    /// Sets [`is_unframed`](Self::is_unframed).
    pub const fn unframed(mut self) -> Self {
        self.is_unframed = true;
        self
    }

    /// A field that has as many elements as `count` allows, and whose value a `conversion` makes of the bytes; `const`, for
    /// the derive.
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

/// How many elements a field has: what a save sends at most, and a load takes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Count {
    /// What says how many; `None` of a list or a map, which say it themselves.
    pub length: Option<Length>,
    /// Elements for each that the length counts.
    pub factor: usize,
    /// Most elements; of a bitmap, most bits.
    pub most: usize,
    /// True if a machine may have room for fewer: of memory whose size is decided when the device is made.
    pub by_room: bool,
}

impl Count {
    /// A count from its parts; `const`, for the derive.
    pub const fn new(length: Option<Length>, factor: usize, most: usize, by_room: bool) -> Self {
        Self { length, factor, most, by_room }
    }
}

/// What says how many elements a field has.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Length {
    /// An earlier field of this name: of the same description, or of one that it is a subsection of.
    Field(MaybeStatic<str>),
    /// A value of this name that is not on the wire: the machine's configuration.
    Machine(MaybeStatic<str>),
}

/// When a field is on the wire.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Presence {
    /// From this version of its description on (QEMU's field version; 0 is always).
    Since(u32),
    /// When the named predicate holds (QEMU's `field_exists`): an outcome the bytes do not show.
    If(MaybeStatic<str>),
    /// When the first field of its description, an integer that is always there, is this number: the tag of an enum in front of
    /// the variants.
    Tag(i128),
}

impl Presence {
    /// True if a save decides it, and not the version alone.
    pub(crate) const fn is_decided(&self) -> bool {
        !matches!(self, Self::Since(_))
    }
}

/// What the bytes of a field are. Integers are big-endian.
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
    /// Raw bytes, as many as the outcome says.
    CountedBuffer,
    /// Zero bytes that nobody reads.
    Unused(usize),
    /// An integer of which a reader takes only some values.
    Limited(MaybeStatic<Kind>, Limit),
    /// When a timer fires: 8 bytes, nanoseconds of its clock, or -1 if it is not armed.
    Timer,
    /// An IEEE 754 double: 8 bytes.
    Double,
    /// This many bits, in words of 8 bytes; the first bit is the lowest of the first word.
    Bitmap(usize),
    /// As [`Bitmap`](Self::Bitmap), of as many bits as the outcome says.
    CountedBitmap,
    /// A nested struct, inline: no name, version or length of its own on the wire.
    Struct(MaybeStatic<Description>),
    /// A nested struct, inline, as it was at this version of its own (QEMU's `VMSTATE_VSTRUCT`).
    StructAt(MaybeStatic<Description>, u32),
    /// A struct that is made for the wire from the one that it stands in (QEMU's `VMSTATE_WITH_TMP`), inline.
    Temporary(MaybeStatic<Description>),
    /// The value if the outcome says 1; one byte `30` if it says 0, where a pointer is null.
    Nullable(MaybeStatic<Kind>),
    /// This many elements, concatenated.
    Array(MaybeStatic<Kind>, usize),
    /// As many elements as the outcome says, concatenated.
    CountedArray(MaybeStatic<Kind>),
    /// A byte `01` before each element, a byte `00` behind the last (QEMU's `VMSTATE_QTAILQ_V`); the outcome says how
    /// many.
    List(MaybeStatic<Kind>),
    /// A number of entries in 4 bytes, then as a list: key and value, in the order of the keys (QEMU's
    /// `VMSTATE_GTREE_V`); the outcome says how many.
    Map(MaybeStatic<Kind>, MaybeStatic<Kind>),
    /// Bytes of a hand-written codec under this type name; the outcome says how many.
    Custom(MaybeStatic<str>),
    /// No bytes: the place where a device checks what it has so far (QEMU's `VMSTATE_VALIDATE`).
    Check,
}

/// Which values of an integer a reader takes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Limit {
    /// The one that the device has.
    Equal,
    /// 0 to the one that the device has.
    AtMostCurrent,
    /// All but 0.
    NotZero,
    /// From the first to the second, both included.
    Within(i128, i128),
    /// A Unicode scalar value: all up to 0x10ffff but the surrogates, 0xd800 to 0xdfff.
    Scalar,
    /// These.
    OneOf(MaybeStatic<[i128]>),
}
