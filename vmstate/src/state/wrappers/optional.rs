//! `Option`: a pointer that may be null, or a subsection that may be absent.

use super::super::Wire;
use super::super::support::KindOf;
use crate::codec::mark::NULL;
use crate::codec::{Reader, Strictness, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::framing::STRAY_OPTION;
use crate::schema::{Kind, MaybeStatic};

/// As the only field of a subsection: `Some` is sent, and a received value becomes `Some`. Elsewhere only `Option<Box<T>>` has
/// bytes: as in QEMU's `VMSTATE_ARRAY_OF_POINTER`, a load neither creates nor drops a pointee, so the same pointers must be null
/// on both sides.
///
/// If a pointer is not null here, a byte `30` may be a null pointer of the source or the first byte of the pointee. A strict load
/// refuses the byte if no pointee begins with it: if `T` begins with a `bool`, an enum or a `range` without that value, a list,
/// or a struct or array of these. Otherwise the wire is ambiguous, and the bytes are loaded as the pointee, as in QEMU; if `T` is
/// a single byte, no later byte reveals the mistake.
///
/// As with the elements of a `Vec`, a new value starts from its default, also if an undo creates it.
impl<T: Wire + Default> Wire for Option<T> {
    type Undo = Option<T::Undo>;
    const KIND: Kind = match T::IS_POINTER {
        true => Kind::Nullable(MaybeStatic::Static(KindOf::<T>::REF)),
        false => STRAY_OPTION,
    };
    const WHOLE: Kind = T::KIND;
    const IS_OPTION: bool = true;

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        if !T::IS_POINTER {
            return Err(stray());
        }
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
        if !T::IS_POINTER {
            return Err(stray().at(input.offset()));
        }
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

    fn is_there(&self) -> bool {
        self.is_some()
    }

    fn make_absent(&mut self) {
        *self = None;
    }

    fn save_whole(&mut self, out: &mut Writer) -> Result<()> {
        match self {
            Some(value) => value.save(out),
            None => Err(Error::new(ErrorKind::Rejected, "the subsection's pre_save removed the value")),
        }
    }

    fn load_whole(&mut self, input: &mut Reader<'_>) -> Result<()> {
        self.get_or_insert_default().load(input)
    }

    fn remember(&self) -> Self::Undo {
        self.as_ref().map(T::remember)
    }

    fn undo(&mut self, undo: Self::Undo) {
        match undo {
            Some(undo) => self.get_or_insert_default().undo(undo),
            None => *self = None,
        }
    }
}

/// The derive refuses such a field; this is the error for callers that use [`Wire`] directly.
#[cold]
fn stray() -> Error {
    Error::new(ErrorKind::Misuse, "an `Option` that is no pointer has bytes only as a whole subsection")
}
