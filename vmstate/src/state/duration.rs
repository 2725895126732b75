//! `Duration`: whole nanoseconds, in 8 bytes.

use std::time::Duration;

use super::Wire;
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Kind;

/// A save refuses what does not fit 64 bits of nanoseconds, more than 584 years; a load takes any number.
impl Wire for Duration {
    type Undo = Self;
    const KIND: Kind = Kind::Unsigned(8);

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        let nanos = u64::try_from(self.as_nanos())
            .map_err(|_| Error::new(ErrorKind::Rejected, format!("{self:?} does not fit 64 bits of ns")))?;
        out.u64(nanos);
        Ok(())
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        *self = Self::from_nanos(input.u64()?);
        Ok(())
    }

    fn remember(&self) -> Self {
        *self
    }

    fn undo(&mut self, undo: Self) {
        *self = undo;
    }
}
