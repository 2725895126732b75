//! Types that are sent as a value of another type.

use std::num::NonZero;
use std::time::Duration;

use super::super::support::KindOf;
use crate::error::{Error, ErrorKind};
use crate::schema::{Description, Field, Kind, Limit, MaybeStatic, Presence};

/// For each type: the type on the wire, its kind, the value to send, and the value made from the received one.
macro_rules! represented {
    ($($(#[$doc:meta])* $type:ty as $wire:ty, $kind:expr, $to:expr, $from:expr;)*) => {$(
        $(#[$doc])*
        impl $crate::state::Wire for $type {
            type Undo = Self;
            const KIND: $crate::schema::Kind = $kind;

            #[inline]
            fn save(&mut self, out: &mut $crate::codec::Writer) -> $crate::error::Result<()> {
                let to: fn(Self) -> $crate::error::Result<$wire> = $to;
                to(*self)?.save(out)
            }

            #[inline]
            fn load(&mut self, input: &mut $crate::codec::Reader<'_>) -> $crate::error::Result<()> {
                let from: fn($wire) -> $crate::error::Result<Self> = $from;
                let offset = input.offset();
                let mut sent = <$wire>::default();
                sent.load(input)?;
                *self = from(sent).map_err(|error| error.at(offset))?;
                Ok(())
            }

            #[inline]
            fn remember(&self) -> Self {
                *self
            }

            #[inline]
            fn undo(&mut self, undo: Self) {
                *self = undo;
            }
        }
    )*};
}
pub(in super::super) use represented;

represented! {
    /// IEEE 754 bits, as QEMU's `CPU_DoubleU` (migration/vmstate-types.c, `vmstate_info_cpudouble`). Every bit pattern is loaded
    /// unchanged: the bits of a NaN are guest state.
    f64 as u64, Kind::Double, |value| Ok(value.to_bits()), |bits| Ok(Self::from_bits(bits));
    /// As [`f64`]. QEMU has no such type, so the description shows a `u32` with its bits.
    f32 as u32, u32::KIND, |value| Ok(value.to_bits()), |bits| Ok(Self::from_bits(bits));
    /// Big-endian; described as a nested struct of the halves `high` and `low`, as QEMU has no integer of that size.
    u128 as [u8; 16], halves!("u128", u64), |value| Ok(value.to_be_bytes()), |bytes| Ok(Self::from_be_bytes(bytes));
    /// As [`u128`].
    i128 as [u8; 16], halves!("i128", i64), |value| Ok(value.to_be_bytes()), |bytes| Ok(Self::from_be_bytes(bytes));
    /// The Unicode scalar value. A load refuses numbers that are none, such as surrogates.
    char as u32, Kind::Limited(MaybeStatic::Static(KindOf::<u32>::REF), Limit::Scalar),
        |value| Ok(value.into()),
        |sent| Self::from_u32(sent).ok_or_else(|| {
            Error::new(ErrorKind::Malformed, format!("{sent:#x} is no Unicode scalar value"))
        });
    /// Whole nanoseconds. A save refuses durations beyond 64 bits, more than 584 years; a load takes any number.
    Duration as u64, u64::KIND,
        |time| u64::try_from(time.as_nanos()).map_err(|_| {
            Error::new(ErrorKind::Rejected, format!("{time:?} does not fit 64 bits of ns"))
        }),
        |nanos| Ok(Self::from_nanos(nanos));
}

/// The kind of an integer of 16 bytes.
macro_rules! halves {
    ($name:literal, $high:ty) => {{
        const FIELDS: &[Field] = &[
            Field::new(MaybeStatic::Static("high"), <$high>::KIND, Presence::Since(0)),
            Field::new(MaybeStatic::Static("low"), u64::KIND, Presence::Since(0)),
        ];
        const HALVES: &Description =
            &Description::new(MaybeStatic::Static($name), 1, 1, MaybeStatic::Static(FIELDS), MaybeStatic::Static(&[]));
        Kind::Struct(MaybeStatic::Static(HALVES))
    }};
}
use halves;

macro_rules! non_zero {
    ($($type:ty),*) => {
        represented! {$(
            /// A load refuses 0.
            NonZero<$type> as $type, Kind::Limited(MaybeStatic::Static(KindOf::<$type>::REF), Limit::NotZero),
                |value| Ok(value.get()),
                |sent| Self::new(sent).ok_or_else(|| Error::new(ErrorKind::Malformed, "0 is not allowed"));
        )*}
    };
}

non_zero!(u8, u16, u32, u64, i8, i16, i32, i64);
