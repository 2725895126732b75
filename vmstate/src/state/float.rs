//! Floating-point numbers: their IEEE 754 bits, big-endian; those of an `f64` as QEMU's `CPU_DoubleU`
//! (migration/vmstate-types.c, `vmstate_info_cpudouble`).

use super::Wire;
use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::Kind;

/// Every bit pattern is taken, and kept: those of a NaN are guest state.
impl Wire for f64 {
    type Undo = f64;
    const KIND: Kind = Kind::Double;

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        out.u64(self.to_bits());
        Ok(())
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        *self = f64::from_bits(input.u64()?);
        Ok(())
    }

    fn remember(&self) -> f64 {
        *self
    }

    fn undo(&mut self, undo: f64) {
        *self = undo;
    }
}

/// As [`f64`]. QEMU has none, so it is described as the `u32` of its bits.
impl Wire for f32 {
    type Undo = f32;
    const KIND: Kind = u32::KIND;

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        out.u32(self.to_bits());
        Ok(())
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        *self = f32::from_bits(input.u32()?);
        Ok(())
    }

    fn remember(&self) -> f32 {
        *self
    }

    fn undo(&mut self, undo: f32) {
        *self = undo;
    }
}
