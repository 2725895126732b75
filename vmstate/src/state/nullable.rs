//! Pointers that may be null: the pointee, or one byte where there is none.

use super::Wire;
use super::support::KindOf;
use crate::codec::mark::NULL;
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Kind, Shared};

/// As in QEMU's `VMSTATE_ARRAY_OF_POINTER`, a load makes and drops no pointee: both sides have the same pointers null.
/// Where one is not, whatever comes is the pointee, so a `30` is its first byte.
impl<T: Wire + Default> Wire for Option<Box<T>> {
    type Undo = Option<T::Undo>;
    const KIND: Kind = Kind::Nullable(Shared::Static(KindOf::<T>::REF));

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        out.outcome(u32::from(self.is_some()));
        match self {
            Some(pointee) => pointee.save(out),
            None => {
                out.u8(NULL);
                Ok(())
            }
        }
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        if let Some(pointee) = self {
            return pointee.load(input);
        }
        let offset = input.offset();
        match input.u8()? {
            NULL => Ok(()),
            other => {
                let message = format!("null on this machine, but the stream has {other:#04x}: configure both alike");
                Err(Error::new(ErrorKind::Incompatible, message).at(offset))
            }
        }
    }

    fn remember(&self) -> Self::Undo {
        self.as_ref().map(|pointee| pointee.remember())
    }

    fn undo(&mut self, undo: Self::Undo) {
        match undo {
            Some(undo) => self.get_or_insert_default().undo(undo),
            None => *self = None,
        }
    }
}
