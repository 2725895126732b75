//! Layouts that a reader could take for another: nothing on the wire frames a struct, so subsections are found by
//! looking ahead for `05`, a length, and a name that begins with the struct's own.
//!
//! Const functions: the derive asks them while it compiles, about constants only.

use super::{Description, Field, Kind, Presence, Shared};

impl Kind {
    /// True if a look for subsections runs into the bytes behind a value of this kind.
    pub const fn ends_in_subsections(&self) -> bool {
        match self {
            Self::Struct(Shared::Static(nested))
            | Self::StructAt(Shared::Static(nested), _)
            | Self::Temporary(Shared::Static(nested)) => nested.ends_in_subsections(),
            Self::Array(Shared::Static(element), 1..)
            | Self::CountedArray(Shared::Static(element))
            | Self::Nullable(Shared::Static(element)) => element.ends_in_subsections(),
            // Lists and maps end in a byte of their own.
            _ => false,
        }
    }

    /// True if a look for subsections of one element runs into the next element, or of a key into its value.
    pub const fn elements_run_together(&self) -> bool {
        match self {
            Self::Array(Shared::Static(element), 2..) | Self::CountedArray(Shared::Static(element)) => {
                element.ends_in_subsections() || element.elements_run_together()
            }
            Self::Map(Shared::Static(key), Shared::Static(value)) => {
                key.ends_in_subsections() || key.elements_run_together() || value.elements_run_together()
            }
            Self::Array(Shared::Static(element), _)
            | Self::List(Shared::Static(element))
            | Self::Nullable(Shared::Static(element)) => element.elements_run_together(),
            _ => false,
        }
    }
}

impl Description {
    const fn ends_in_subsections(&self) -> bool {
        let (Shared::Static(fields), Shared::Static(subsections)) = (&self.fields, &self.subsections) else {
            return false;
        };
        if !subsections.is_empty() {
            return true;
        }
        let mut rest: &[Field] = fields;
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

    /// True if a struct at the end of this one would take one of this one's subsections for its own, since their
    /// names begin alike.
    pub const fn subsections_are_stolen(&self) -> bool {
        let Shared::Static(wanted) = &self.subsections else { return false };
        if self.steals(wanted) {
            return true;
        }
        let mut rest: &[Self] = wanted;
        while let [first, behind @ ..] = rest {
            if first.subsections_are_stolen() {
                return true;
            }
            rest = behind;
        }
        false
    }

    /// True if a struct at the end of `self`'s fields or subsections has a name that one of `wanted` begins with.
    const fn steals(&self, wanted: &[Self]) -> bool {
        let (Shared::Static(fields), Shared::Static(subsections)) = (&self.fields, &self.subsections) else {
            return false;
        };
        let mut rest: &[Field] = fields;
        while let [before @ .., last] = rest {
            if let Some(nested) = last.kind.as_struct()
                && (nested.begins_one_of(wanted) || nested.steals(wanted))
            {
                return true;
            }
            if last.is_certain(self.minimum_version) {
                break;
            }
            rest = before;
        }
        let mut rest: &[Self] = subsections;
        while let [first, behind @ ..] = rest {
            if first.steals(wanted) {
                return true;
            }
            rest = behind;
        }
        false
    }

    const fn begins_one_of(&self, wanted: &[Self]) -> bool {
        let mut rest = wanted;
        while let [first, behind @ ..] = rest {
            if let (Shared::Static(name), Shared::Static(prefix)) = (&first.name, &self.name)
                && starts_with(name.as_bytes(), prefix.as_bytes())
            {
                return true;
            }
            rest = behind;
        }
        false
    }
}

impl Field {
    /// True if the field always puts bytes on the wire.
    const fn is_certain(&self, minimum_version: u32) -> bool {
        let there = match self.presence {
            Presence::Since(version) => version <= minimum_version,
            Presence::If(_) => false,
        };
        there && self.kind.has_bytes()
    }
}

impl Kind {
    const fn has_bytes(&self) -> bool {
        match self {
            Self::Bool | Self::Unsigned(_) | Self::Signed(_) | Self::Limited(..) | Self::Timer | Self::Double => true,
            Self::List(_) | Self::Map(..) => true,
            Self::Buffer(count) | Self::Unused(count) | Self::Bitmap(count) => *count > 0,
            Self::Array(Shared::Static(element), 1..) | Self::Nullable(Shared::Static(element)) => element.has_bytes(),
            Self::Struct(Shared::Static(nested))
            | Self::StructAt(Shared::Static(nested), _)
            | Self::Temporary(Shared::Static(nested)) => nested.has_bytes(),
            _ => false,
        }
    }

    /// The struct that the value ends with, if it is one or an array of some.
    const fn as_struct(&self) -> Option<&Description> {
        match self {
            Self::Struct(Shared::Static(nested))
            | Self::StructAt(Shared::Static(nested), _)
            | Self::Temporary(Shared::Static(nested)) => Some(nested),
            Self::Array(Shared::Static(element), 1..)
            | Self::CountedArray(Shared::Static(element))
            | Self::Nullable(Shared::Static(element)) => element.as_struct(),
            _ => None,
        }
    }
}

impl Description {
    const fn has_bytes(&self) -> bool {
        let Shared::Static(fields) = &self.fields else { return false };
        let mut rest: &[Field] = fields;
        while let [first, behind @ ..] = rest {
            if first.is_certain(self.minimum_version) {
                return true;
            }
            rest = behind;
        }
        false
    }
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
