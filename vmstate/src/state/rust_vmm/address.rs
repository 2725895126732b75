//! `vm_memory::GuestAddress`: a physical address of the guest, as a `u64`.

use vm_memory::GuestAddress;

use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::Kind;
use crate::state::Wire;

/// Any address is taken: what is there, the device that uses it has to check anyway.
impl Wire for GuestAddress {
    type Undo = Self;
    const KIND: Kind = u64::KIND;

    #[inline]
    fn save(&mut self, out: &mut Writer) -> Result<()> {
        self.0.save(out)
    }

    #[inline]
    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        self.0.load(input)
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
