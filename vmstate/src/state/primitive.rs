//! Integers and booleans.

use byteorder::{BigEndian, ByteOrder as _};

use super::Wire;
use super::array::load_each;
use crate::codec::{Reader, Strictness, Writer};
use crate::error::Result;
use crate::schema::Kind;

macro_rules! integer {
    ($($type:ty => $kind:expr, $write:expr, $read:expr);* $(;)?) => {$(
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
                $write(elements, out.room(size_of_val(elements)));
                Ok(())
            }

            #[inline]
            fn load_all(elements: &mut [Self], input: &mut Reader<'_>) -> Result<()> {
                if input.rest().len() < size_of_val(elements) {
                    // One by one, to name the element at which the bytes end.
                    return load_each(elements, input);
                }
                $read(input.take(size_of_val(elements))?, elements);
                Ok(())
            }
        }
    )*};
}

integer! {
    u8 => Kind::Unsigned(1), copy, copy;
    u16 => Kind::Unsigned(2), BigEndian::write_u16_into, BigEndian::read_u16_into;
    u32 => Kind::Unsigned(4), BigEndian::write_u32_into, BigEndian::read_u32_into;
    u64 => Kind::Unsigned(8), BigEndian::write_u64_into, BigEndian::read_u64_into;
    i8 => Kind::Signed(1), BigEndian::write_i8_into, read_i8_into;
    i16 => Kind::Signed(2), BigEndian::write_i16_into, BigEndian::read_i16_into;
    i32 => Kind::Signed(4), BigEndian::write_i32_into, BigEndian::read_i32_into;
    i64 => Kind::Signed(8), BigEndian::write_i64_into, BigEndian::read_i64_into;
}

fn copy(from: &[u8], to: &mut [u8]) {
    to.copy_from_slice(from);
}

fn read_i8_into(from: &[u8], to: &mut [i8]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.cast_signed());
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
