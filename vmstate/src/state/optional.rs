//! `Option` as a whole subsection: `Some` is sent, and what was received becomes `Some`.

use super::Wire;
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Kind;

/// What can be alone in a subsection as its presence.
#[diagnostic::on_unimplemented(
    message = "a subsection cannot be `{Self}`",
    note = "in `Option<T>`, `T` must implement `vmstate::Wire` and `Default`"
)]
pub trait Optional {
    /// All that is needed to put back the value.
    type Undo;
    /// What the bytes are, if it is there.
    const KIND: Kind;

    /// True if it is sent.
    fn is_there(&self) -> bool;
    /// Appends the value.
    fn save(&mut self, out: &mut Writer) -> Result<()>;
    /// Takes the value, in place if there is one.
    fn load(&mut self, input: &mut Reader<'_>) -> Result<()>;
    /// The stream has none.
    fn absent(&mut self);
    /// Copies out what a load or a hook may change.
    fn remember(&self) -> Self::Undo;
    /// Puts back what `remember` copied.
    fn undo(&mut self, undo: Self::Undo);
}

/// As with the elements of a `Vec`, a new value starts from its default, also where an undo needs one.
impl<T: Wire + Default> Optional for Option<T> {
    type Undo = Option<T::Undo>;
    const KIND: Kind = T::KIND;

    fn is_there(&self) -> bool {
        self.is_some()
    }

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        match self {
            Some(value) => value.save(out),
            None => Err(Error::new(ErrorKind::Rejected, "the subsection's pre_save took the value away")),
        }
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        self.get_or_insert_default().load(input)
    }

    fn absent(&mut self) {
        *self = None;
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
