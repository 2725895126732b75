//! Integers with a rule of their own: `Wrapping`, and `NonZero` that refuses 0.

use std::num::{NonZero, Wrapping};

use super::Wire;
use super::support::KindOf;
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Kind, Limit, MaybeStatic};

impl<T: Wire> Wire for Wrapping<T> {
    type Undo = T::Undo;
    const KIND: Kind = T::KIND;

    #[inline]
    fn save(&mut self, out: &mut Writer) -> Result<()> {
        self.0.save(out)
    }

    #[inline]
    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        self.0.load(input)
    }

    #[inline]
    fn remember(&self) -> T::Undo {
        self.0.remember()
    }

    #[inline]
    fn undo(&mut self, undo: T::Undo) {
        self.0.undo(undo);
    }
}

macro_rules! non_zero {
    ($($type:ty),*) => {$(
        impl Wire for NonZero<$type> {
            type Undo = Self;
            const KIND: Kind = Kind::Limited(MaybeStatic::Static(KindOf::<$type>::REF), Limit::NotZero);

            #[inline]
            fn save(&mut self, out: &mut Writer) -> Result<()> {
                self.get().save(out)
            }

            #[inline]
            fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
                let offset = input.offset();
                let mut value: $type = 0;
                value.load(input)?;
                *self = Self::new(value).ok_or_else(|| Error::new(ErrorKind::Malformed, "0 is not allowed").at(offset))?;
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

non_zero!(u8, u16, u32, u64, i8, i16, i32, i64);
