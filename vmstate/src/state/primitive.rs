//! Integers and booleans.

use super::Wire;
use super::array::load_each;
use crate::codec::{Reader, Strictness, Writer};
use crate::error::Result;
use crate::schema::Kind;

macro_rules! integer {
    ($($type:ty => $kind:expr),* $(,)?) => {$(
        impl Wire for $type {
            type Undo = $type;
            const KIND: Kind = $kind;

            #[inline]
            fn save(&mut self, out: &mut Writer) -> Result<()> {
                out.bytes(&self.to_be_bytes());
                Ok(())
            }

            #[inline]
            fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
                *self = <$type>::from_be_bytes(input.array()?);
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

            #[inline]
            fn save_all(elements: &mut [Self], out: &mut Writer) -> Result<()> {
                let (pieces, rest) = elements.as_chunks::<8>();
                for piece in pieces {
                    out.bytes(piece.map(Self::to_be_bytes).as_flattened());
                }
                for element in rest {
                    out.bytes(&element.to_be_bytes());
                }
                Ok(())
            }

            #[inline]
            fn load_all(elements: &mut [Self], input: &mut Reader<'_>) -> Result<()> {
                if input.rest().len() < size_of_val(elements) {
                    // One by one, to name the element at which the bytes end.
                    return load_each(elements, input);
                }
                let (bytes, _) = input.take(size_of_val(elements))?.as_chunks();
                for (element, bytes) in elements.iter_mut().zip(bytes) {
                    *element = Self::from_be_bytes(*bytes);
                }
                Ok(())
            }
        }
    )*};
}

integer! {
    u8 => Kind::Unsigned(1),
    u16 => Kind::Unsigned(2),
    u32 => Kind::Unsigned(4),
    u64 => Kind::Unsigned(8),
    i8 => Kind::Signed(1),
    i16 => Kind::Signed(2),
    i32 => Kind::Signed(4),
    i64 => Kind::Signed(8),
}

impl Wire for bool {
    type Undo = bool;
    const KIND: Kind = Kind::Bool;

    #[inline]
    fn save(&mut self, out: &mut Writer) -> Result<()> {
        out.u8(u8::from(*self));
        Ok(())
    }

    /// QEMU takes any non-zero byte for true (`get_bool`, migration/vmstate-types.c); a strict load takes 0 and 1.
    #[inline]
    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        if let Some(&[byte]) = input.peek(1)
            && byte > 1
            && input.strictness() == Strictness::Strict
        {
            return Err(input.malformed(format!("a bool is 0 or 1, got {byte}")));
        }
        *self = input.u8()? != 0;
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
