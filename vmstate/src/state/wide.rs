//! `u128` and `i128`: 16 bytes, big-endian; described as a nested struct of the halves `high` and `low`, as no integer of
//! QEMU's is so wide.

use super::Wire;
use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::{Description, Field, Kind, MaybeStatic, Presence};

macro_rules! wide {
    ($($type:ident, $high:ty);*) => {$(
        impl Wire for $type {
            type Undo = Self;
            const KIND: Kind = {
                const FIELDS: &[Field] = &[
                    Field::new(MaybeStatic::Static("high"), <$high>::KIND, Presence::Since(0)),
                    Field::new(MaybeStatic::Static("low"), u64::KIND, Presence::Since(0)),
                ];
                const HALVES: &Description =
                    &Description::new(MaybeStatic::Static(stringify!($type)), 1, 1, MaybeStatic::Static(FIELDS), MaybeStatic::Static(&[]));
                Kind::Struct(MaybeStatic::Static(HALVES))
            };

            fn save(&mut self, out: &mut Writer) -> Result<()> {
                out.bytes(&self.to_be_bytes());
                Ok(())
            }

            fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
                *self = Self::from_be_bytes(input.array()?);
                Ok(())
            }

            fn remember(&self) -> Self {
                *self
            }

            fn undo(&mut self, undo: Self) {
                *self = undo;
            }
        }
    )*};
}

wide! {
    u128, u64;
    i128, i64
}
