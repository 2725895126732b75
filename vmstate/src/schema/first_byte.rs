//! The bytes that a value can begin with: if a value cannot begin with the marker of a null pointer, the two are distinguishable.

use super::{Description, Kind, Limit, MaybeStatic, Presence};

impl Kind {
    /// False if no value of this kind begins with `byte`. True also if the description does not determine it.
    pub const fn may_begin_with(&self, byte: u8) -> bool {
        match self {
            Self::Bool | Self::List(_) => byte <= 1,
            Self::Limited(MaybeStatic::Static(Self::Unsigned(bytes)), limit) => {
                limit.may_begin_with(byte as i128, *bytes)
            }
            Self::Limited(MaybeStatic::Static(Self::Signed(bytes)), limit) => {
                limit.may_begin_with(i8::from_be_bytes([byte]) as i128, *bytes)
            }
            Self::Array(MaybeStatic::Static(element), 1..) => element.may_begin_with(byte),
            Self::Struct(MaybeStatic::Static(nested)) => nested.may_begin_with(byte),
            _ => true,
        }
    }
}

impl Limit {
    /// False if no number within the limit has `first` as the highest of its `bytes`.
    const fn may_begin_with(&self, first: i128, bytes: u8) -> bool {
        let shift = 8 * (bytes as u32).saturating_sub(1);
        match self {
            Self::Within(lowest, highest) => *lowest >> shift <= first && first <= *highest >> shift,
            Self::OneOf(MaybeStatic::Static(values)) => {
                let mut rest: &[i128] = values;
                while let [value, others @ ..] = rest {
                    if *value >> shift == first {
                        return true;
                    }
                    rest = others;
                }
                false
            }
            _ => true,
        }
    }
}

impl Description {
    const fn may_begin_with(&self, byte: u8) -> bool {
        match &self.fields {
            MaybeStatic::Static([first, ..]) if matches!(first.presence, Presence::Since(0 | 1)) => {
                first.kind.may_begin_with(byte)
            }
            _ => true,
        }
    }
}
