//! Integers and booleans.

use super::Wire;
use crate::codec::{Reader, Strictness, Writer};
use crate::error::Result;
use crate::schema::Kind;

macro_rules! integer {
    ($($type:ty => $kind:expr),* $(,)?) => {$(
        impl Wire for $type {
            type Undo = Option<$type>;
            const KIND: Kind = $kind;

            #[inline]
            fn save(&mut self, out: &mut Writer) -> Result<()> {
                out.bytes(&self.to_be_bytes());
                Ok(())
            }

            #[inline]
            fn load(&mut self, input: &mut Reader<'_>, undo: &mut Self::Undo) -> Result<()> {
                let loaded = <$type>::from_be_bytes(input.array()?);
                *undo = Some(std::mem::replace(self, loaded));
                Ok(())
            }

            #[inline]
            fn undo(&mut self, undo: Self::Undo) {
                if let Some(old) = undo {
                    *self = old;
                }
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
    type Undo = Option<bool>;
    const KIND: Kind = Kind::Bool;

    #[inline]
    fn save(&mut self, out: &mut Writer) -> Result<()> {
        out.u8(u8::from(*self));
        Ok(())
    }

    /// QEMU takes any non-zero byte for true (`get_bool`, migration/vmstate-types.c); a strict load takes 0 and 1.
    fn load(&mut self, input: &mut Reader<'_>, undo: &mut Self::Undo) -> Result<()> {
        let byte = input.peek(1).map_or(0, |byte| byte[0]);
        if byte > 1 && input.strictness() == Strictness::Strict {
            return Err(input.malformed(format!("a bool is 0 or 1, got {byte}")));
        }
        let loaded = input.u8()? != 0;
        *undo = Some(std::mem::replace(self, loaded));
        Ok(())
    }

    fn undo(&mut self, undo: Self::Undo) {
        if let Some(old) = undo {
            *self = old;
        }
    }
}
