//! `Unused`: bytes of the format that no longer have a meaning.

use super::super::Wire;
use super::super::coded::Coded;
use super::super::collections::Len;
use super::super::numbers::outcome;
use super::{Own, Packing};
use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::Kind;

/// `N` bytes that readers ignore: zero when saved, skipped when loaded (QEMU's `VMSTATE_UNUSED`). The self-description names such
/// a field `unused`, whatever its name in the struct. With `len`, the length counts blocks of `N` bytes.
///
/// ```
/// use vmstate::{Unused, VmState};
///
/// #[derive(VmState, Default)]
/// #[vmstate(name = "pic", version = 2)]
/// struct Pic {
///     id: u8,
///     #[vmstate(since = 2)]
///     _was_base: Unused<8>,
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Unused<const N: usize>;

impl<const N: usize> Wire for Unused<N> {
    type Undo = ();
    const KIND: Kind = Kind::Unused(N);

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        out.zeros(N);
        Ok(())
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        input.take(N).map(drop)
    }

    fn remember(&self) {}

    fn undo(&mut self, (): ()) {}
}

/// Blocks of `N` bytes, as many as a length says (QEMU's `VMSTATE_UNUSED_VARRAY_UINT32`).
impl<const N: usize> Coded<Len<Own>> for Unused<N> {
    type Undo = ();
    const KIND: Kind = <Own as Packing<Self>>::KIND;

    fn save(&mut self, Len(count, _): Len<Own>, out: &mut Writer) -> Result<()> {
        out.outcome(outcome(count)?);
        // Elements of size zero take no memory, however many there are.
        Self::save_all(&mut vec![Self; count], out)
    }

    fn load(&mut self, Len(count, _): Len<Own>, input: &mut Reader<'_>) -> Result<()> {
        Self::load_all(&mut vec![Self; count], input)
    }

    fn remember(&self) {}

    fn undo(&mut self, (): ()) {}
}
