//! Pointers that may be null: the pointee, or one byte where there is none.

use super::Wire;
use super::support::KindOf;
use crate::codec::mark::NULL;
use crate::codec::{Reader, Strictness, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Kind, Shared};

/// As in QEMU's `VMSTATE_ARRAY_OF_POINTER`, a load makes and drops no pointee: both sides have the same pointers null.
///
/// Where a pointer is not null here, a `30` may be a null pointer of the source or the first byte of the pointee. A strict
/// load refuses it where no pointee begins with it: `T` begins with a `bool`, an enum or a `range` without such a value, a
/// list, or a struct or array of these. Else the wire does not tell the two apart, and whatever comes is the pointee, as in
/// QEMU; if `T` has one byte alone, nothing behind it shows the mistake.
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
            let is_null = input.strictness() == Strictness::Strict
                && const { !KindOf::<T>::REF.may_begin_with(NULL) }
                && input.peek(1) == Some(&[NULL]);
            return match is_null {
                true => {
                    let message = "null in the stream, but not on this machine: configure both alike";
                    Err(Error::new(ErrorKind::Incompatible, message).at(input.offset()))
                }
                false => pointee.load(input),
            };
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
