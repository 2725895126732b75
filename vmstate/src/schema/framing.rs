//! Detects ambiguous layouts: a struct has no frame on the wire, so subsections are found by looking ahead for `05`, a length,
//! and a name that begins with the struct's own.
//!
//! The bytes that follow a struct may belong to any type of the whole section, so each rule walks the description down to its
//! integers. The functions are const: the derive evaluates them at compile time, on constants only. A description that was
//! created at run time is not checked.

use super::{Description, Field, Kind, MaybeStatic, Presence};

/// The kind of an `Option` that is neither a pointer nor the only field of a subsection: no byte on the wire would mark its
/// presence, so it has no encoding.
pub(crate) const STRAY_OPTION: Kind = Kind::Custom(MaybeStatic::Static(STRAY));
const STRAY: &str = "an option outside of a subsection";

/// Why a layout is ambiguous.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The field's value ends in subsections and is followed by another field's bytes.
    Followed,
    /// An element is followed by the next, or a key by its value.
    Elements,
    /// A value inside of the field is followed by another.
    Inside,
    /// An `Option` is in a place where its presence is not marked.
    StrayOption,
    /// The name of a struct is a prefix of the name of a subsection that follows the struct.
    Stolen,
}

impl Fault {
    /// The compile error: the fault, and how to correct it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Followed => {
                "this ends in subsections and more fields follow: a reader may take their first bytes for a \
                 subsection. Put it last or into a subsection, or say `unframed` if that layout is given"
            }
            Self::Elements => {
                "elements with subsections stand one after the other: a reader may take the next element's first \
                 bytes for a subsection. Say `unframed` if that layout is given"
            }
            Self::Inside => {
                "inside of this, a value ends in subsections and others follow: a reader may take their first bytes \
                 for a subsection. Put it last, or say `unframed` if that layout is given"
            }
            Self::StrayOption => {
                "an `Option` is a subsection of its own: give it `subsection = \"…\"`, or a codec by `with = module`; a \
                 pointer that may be null is an `Option<Box<T>>`"
            }
            Self::Stolen => {
                "the names of these subsections begin with the name of a struct right before them, which would take \
                 them for its own: rename one of them"
            }
        }
    }
}

/// The fault of field `place` and the bytes that follow it among `fields`; `None` if there is none.
pub const fn fault_of_field(fields: &[Field], place: usize) -> Option<Fault> {
    let Some((_, [field, behind @ ..])) = fields.split_at_checked(place) else { return None };
    let fault = match field.kind.ends_in_subsections() && may_be_followed(field, behind) {
        true => Some(Fault::Followed),
        false => field.kind.fault(),
    };
    match fault {
        Some(Fault::StrayOption) => fault,
        _ if field.is_unframed => None,
        _ => fault,
    }
}

impl Description {
    /// The first fault of this layout or of one inside of it; `None` if there is none.
    pub(crate) const fn fault(&self) -> Option<Fault> {
        let (Some(fields), Some(mut rest)) = (self.fields.constant(), self.subsections.constant()) else { return None };
        let mut place = 0;
        while place < fields.len() {
            match fault_of_field(fields, place) {
                Some(Fault::Followed) => return Some(Fault::Inside),
                Some(fault) => return Some(fault),
                None => place += 1,
            }
        }
        while let [first, behind @ ..] = rest {
            if let Some(fault) = first.fault() {
                return Some(fault);
            }
            rest = behind;
        }
        self.fault_of_names()
    }

    /// The fault of the names of this struct's subsections and of theirs; `None` if there is none.
    pub const fn fault_of_names(&self) -> Option<Fault> {
        let Some(wanted) = self.subsections.constant() else { return None };
        if self.steals(wanted) {
            return Some(Fault::Stolen);
        }
        let mut rest = wanted;
        while let [first, behind @ ..] = rest {
            if let Some(fault) = first.fault_of_names() {
                return Some(fault);
            }
            rest = behind;
        }
        None
    }

    /// True if a probe for subsections reads the bytes that follow such a struct.
    const fn ends_in_subsections(&self) -> bool {
        let (Some(mut rest), Some(subsections)) = (self.fields.constant(), self.subsections.constant()) else {
            return false;
        };
        if !subsections.is_empty() {
            return true;
        }
        while let [before @ .., last] = rest {
            if last.kind.ends_in_subsections() {
                return true;
            }
            if last.is_certain(self.minimum_version) {
                return false;
            }
            rest = before;
        }
        false
    }

    /// True if a struct at the end of `self`'s fields or subsections has a name that is a prefix of one of `wanted`.
    const fn steals(&self, wanted: &[Self]) -> bool {
        let (Some(mut rest), Some(mut subsections)) = (self.fields.constant(), self.subsections.constant()) else {
            return false;
        };
        while let [before @ .., last] = rest {
            if last.kind.steals(wanted) {
                return true;
            }
            if last.is_certain(self.minimum_version) {
                break;
            }
            rest = before;
        }
        while let [first, behind @ ..] = subsections {
            if first.steals(wanted) {
                return true;
            }
            subsections = behind;
        }
        false
    }

    /// True if this name is a prefix of the name of one of `wanted`.
    const fn begins_one_of(&self, wanted: &[Self]) -> bool {
        let mut rest = wanted;
        while let [first, behind @ ..] = rest {
            if let (Some(name), Some(prefix)) = (first.name.constant(), self.name.constant())
                && starts_with(name.as_bytes(), prefix.as_bytes())
            {
                return true;
            }
            rest = behind;
        }
        false
    }

    /// True if every version has bytes.
    const fn has_bytes(&self) -> bool {
        let Some(mut rest) = self.fields.constant() else { return false };
        while let [first, behind @ ..] = rest {
            if first.is_certain(self.minimum_version) {
                return true;
            }
            rest = behind;
        }
        false
    }
}

impl Kind {
    /// The first fault inside of a value of this kind.
    const fn fault(&self) -> Option<Fault> {
        match self {
            Self::Struct(nested) | Self::StructAt(nested, _) | Self::Temporary(nested) => match nested.constant() {
                Some(nested) => nested.fault(),
                None => None,
            },
            Self::Array(_, 0) => None,
            Self::Array(element, 2..) | Self::CountedArray(element) => match element.constant() {
                Some(element) if element.ends_in_subsections() => Some(Fault::Elements),
                Some(element) => element.fault(),
                None => None,
            },
            // An element of a list is followed by a byte 0 or 1, which does not begin a subsection.
            Self::Array(element, 1) | Self::Nullable(element) | Self::List(element) => match element.constant() {
                Some(element) => element.fault(),
                None => None,
            },
            Self::Map(key, value) => match (key.constant(), value.constant()) {
                (Some(key), _) if key.ends_in_subsections() => Some(Fault::Elements),
                (Some(key), Some(value)) => match key.fault() {
                    Some(fault) => Some(fault),
                    None => value.fault(),
                },
                _ => None,
            },
            Self::Bool | Self::Unsigned(_) | Self::Signed(_) | Self::Limited(..) | Self::Timer | Self::Double => None,
            Self::Buffer(_) | Self::CountedBuffer | Self::Unused(_) => None,
            Self::Custom(name) => match name.constant() {
                Some(name) if is_same(name.as_bytes(), STRAY.as_bytes()) => Some(Fault::StrayOption),
                _ => None,
            },
            Self::Bitmap(_) | Self::CountedBitmap | Self::Check => None,
        }
    }

    /// True if a probe for subsections reads the bytes that follow a value of this kind.
    const fn ends_in_subsections(&self) -> bool {
        match self {
            Self::Struct(nested) | Self::StructAt(nested, _) | Self::Temporary(nested) => match nested.constant() {
                Some(nested) => nested.ends_in_subsections(),
                None => false,
            },
            Self::Array(element, 1..) | Self::CountedArray(element) | Self::Nullable(element) => {
                match element.constant() {
                    Some(element) => element.ends_in_subsections(),
                    None => false,
                }
            }
            Self::Array(_, 0) => false,
            // These end in a byte of their own.
            Self::List(_) | Self::Map(..) => false,
            Self::Bool | Self::Unsigned(_) | Self::Signed(_) | Self::Limited(..) | Self::Timer | Self::Double => false,
            Self::Buffer(_) | Self::CountedBuffer | Self::Unused(_) => false,
            Self::Bitmap(_) | Self::CountedBitmap | Self::Custom(_) | Self::Check => false,
        }
    }

    /// True if a struct at the end of such a value has a name that is a prefix of one of `wanted`.
    const fn steals(&self, wanted: &[Description]) -> bool {
        match self {
            Self::Struct(nested) | Self::StructAt(nested, _) | Self::Temporary(nested) => match nested.constant() {
                Some(nested) => nested.begins_one_of(wanted) || nested.steals(wanted),
                None => false,
            },
            Self::Array(element, 1..) | Self::CountedArray(element) | Self::Nullable(element) => {
                match element.constant() {
                    Some(element) => element.steals(wanted),
                    None => false,
                }
            }
            Self::Array(_, 0) | Self::List(_) | Self::Map(..) => false,
            Self::Bool | Self::Unsigned(_) | Self::Signed(_) | Self::Limited(..) | Self::Timer | Self::Double => false,
            Self::Buffer(_) | Self::CountedBuffer | Self::Unused(_) => false,
            Self::Bitmap(_) | Self::CountedBitmap | Self::Custom(_) | Self::Check => false,
        }
    }

    /// True if every value of this kind has bytes.
    const fn has_bytes(&self) -> bool {
        match self {
            Self::Bool | Self::Unsigned(_) | Self::Signed(_) | Self::Limited(..) | Self::Timer | Self::Double => true,
            Self::List(_) | Self::Map(..) => true,
            Self::Buffer(count) | Self::Unused(count) | Self::Bitmap(count) => *count > 0,
            Self::Array(element, 1..) | Self::Nullable(element) => match element.constant() {
                Some(element) => element.has_bytes(),
                None => false,
            },
            Self::Struct(nested) | Self::StructAt(nested, _) | Self::Temporary(nested) => match nested.constant() {
                Some(nested) => nested.has_bytes(),
                None => false,
            },
            Self::Array(_, 0) | Self::CountedArray(_) | Self::CountedBuffer | Self::CountedBitmap => false,
            Self::Custom(_) | Self::Check => false,
        }
    }
}

impl Field {
    /// True if the field has bytes in every stream.
    const fn is_certain(&self, minimum_version: u32) -> bool {
        let there = match self.presence {
            Presence::Since(version) => version <= minimum_version,
            Presence::If(_) | Presence::Tag(_) => false,
        };
        there && self.kind.has_bytes()
    }
}

/// True if the bytes of one of the fields `behind` may follow those of `field`; those of another variant cannot, and a check has
/// none.
const fn may_be_followed(field: &Field, mut behind: &[Field]) -> bool {
    while let [next, rest @ ..] = behind {
        let is_other_variant = match (&field.presence, &next.presence) {
            (Presence::Tag(this), Presence::Tag(other)) => *this != *other,
            _ => false,
        };
        let has_bytes = !matches!(next.kind, Kind::Check | Kind::Unused(0) | Kind::Buffer(0) | Kind::Array(_, 0));
        if has_bytes && !is_other_variant {
            return true;
        }
        behind = rest;
    }
    false
}

const fn is_same(name: &[u8], other: &[u8]) -> bool {
    name.len() == other.len() && starts_with(name, other)
}

const fn starts_with(mut name: &[u8], mut prefix: &[u8]) -> bool {
    loop {
        match (name, prefix) {
            (_, []) => return true,
            ([a, name_rest @ ..], [b, prefix_rest @ ..]) if *a == *b => {
                name = name_rest;
                prefix = prefix_rest;
            }
            _ => return false,
        }
    }
}
