//! Lists: a byte `01` before each element, a byte `00` behind the last (migration/vmstate-types.c, `put_qtailq`).

use std::collections::VecDeque;
use std::mem::size_of;

use super::Wire;
use super::numbers::at_most;
use super::support::KindOf;
use crate::codec::mark::{MORE, NO_MORE};
use crate::codec::{Reader, Strictness, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Kind, MaybeStatic};

/// What `#[vmstate(list)]` can be put on.
#[diagnostic::on_unimplemented(
    message = "`list` needs a `Vec` or `VecDeque` of something that can be migrated, `{Self}` is not",
    note = "the elements must implement `vmstate::Wire` and `Default`"
)]
pub trait List {
    /// All that is needed to put back the value.
    type Undo;
    /// What the bytes are.
    const KIND: Kind;

    /// Appends all elements.
    fn save(&mut self, max: usize, out: &mut Writer) -> Result<()>;
    /// Replaces the value by the elements of `input`.
    fn load(&mut self, max: usize, input: &mut Reader<'_>) -> Result<()>;
    /// Copies out what a load or a hook may change.
    fn remember(&self) -> Self::Undo;
    /// Puts back what `remember` copied.
    fn undo(&mut self, undo: Self::Undo);
}

macro_rules! list {
    ($($list:ident),*) => {$(
        /// Elements are loaded in place, new ones start from their default: what they skip survives a load.
        impl<T: Wire + Default> List for $list<T> {
            type Undo = Vec<T::Undo>;
            const KIND: Kind = Kind::List(MaybeStatic::Static(KindOf::<T>::REF));

            fn save(&mut self, max: usize, out: &mut Writer) -> Result<()> {
                out.outcome(at_most(self.len(), max)?);
                for (index, element) in self.iter_mut().enumerate() {
                    out.u8(MORE);
                    element.save(out).map_err(|error| error.in_element(index))?;
                }
                out.u8(NO_MORE);
                Ok(())
            }

            fn load(&mut self, max: usize, input: &mut Reader<'_>) -> Result<()> {
                let mut count = 0;
                while more(input)? {
                    if count == max {
                        return Err(input.malformed(format!("more than {max} elements")));
                    }
                    input.charge(size_of::<T>())?;
                    if count == self.len() {
                        self.resize_with(count + 1, T::default);
                    }
                    if let Some(element) = self.get_mut(count) {
                        element.load(input).map_err(|error| error.in_element(count))?;
                    }
                    count += 1;
                }
                self.truncate(count);
                Ok(())
            }

            fn remember(&self) -> Self::Undo {
                self.iter().map(T::remember).collect()
            }

            fn undo(&mut self, undo: Self::Undo) {
                self.resize_with(undo.len(), T::default);
                for (element, undo) in self.iter_mut().zip(undo) {
                    element.undo(undo);
                }
            }
        }
    )*};
}

list!(Vec, VecDeque);

/// True if an element comes. QEMU takes any byte but 0 for that (`get_qtailq`); a strict load takes 1.
pub(super) fn more(input: &mut Reader<'_>) -> Result<bool> {
    let offset = input.offset();
    match (input.u8()?, input.strictness()) {
        (NO_MORE, _) => Ok(false),
        (MORE, _) | (_, Strictness::QemuCompatible) => Ok(true),
        (other, Strictness::Strict) => {
            let message = format!("1 comes before an element and 0 behind the last, got {other}");
            Err(Error::new(ErrorKind::Malformed, message).at(offset))
        }
    }
}
