//! `char`: its Unicode scalar value, in 4 bytes.

use super::Wire;
use super::support::KindOf;
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Kind, Limit, MaybeStatic};

/// A number that is no scalar value, as that of a surrogate, is refused.
impl Wire for char {
    type Undo = Self;
    const KIND: Kind = Kind::Limited(MaybeStatic::Static(KindOf::<u32>::REF), Limit::Scalar);

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        out.u32(u32::from(*self));
        Ok(())
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        let offset = input.offset();
        let value = input.u32()?;
        *self = Self::from_u32(value).ok_or_else(|| {
            Error::new(ErrorKind::Malformed, format!("{value:#x} is no Unicode scalar value")).at(offset)
        })?;
        Ok(())
    }

    fn remember(&self) -> Self {
        *self
    }

    fn undo(&mut self, undo: Self) {
        *self = undo;
    }
}
