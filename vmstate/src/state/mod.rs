//! State that moves: the traits that the derive implements, and the rules of a load.
//!
//! A load works in place, so that predicates and hooks see the fields loaded before them as QEMU's do, and keeps
//! each replaced value in an [`Undo`](Wire::Undo). If anything fails, the undo puts all of them back: a device
//! whose load fails is as it was before.

mod primitive;

use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::{Description, Kind};

/// A value with a place on the wire: an integer, an array, a nested struct.
pub trait Wire {
    /// What a load replaced. `Default` is "nothing yet".
    type Undo: Default;

    /// What the bytes are.
    const KIND: Kind;

    /// Appends the value.
    ///
    /// # Errors
    /// Only what a hook (`pre_save`, `post_save`) of a nested struct refuses.
    fn save(&mut self, out: &mut Writer) -> Result<()>;

    /// Replaces the value by the next one of `input`. What was there before goes to `undo`, also on failure.
    ///
    /// # Errors
    /// Any kind; the value is then half loaded until [`undo`](Self::undo) is called.
    fn load(&mut self, input: &mut Reader<'_>, undo: &mut Self::Undo) -> Result<()>;

    /// Puts back what [`load`](Self::load) replaced.
    fn undo(&mut self, undo: Self::Undo);
}

/// A struct with a description: a section, a subsection, or a nested struct. Implemented by `#[derive(VmState)]`,
/// which also implements [`Wire`] for it.
pub trait VmState: Wire {
    /// Its name, versions, fields and subsections.
    const DESCRIPTION: &'static Description;

    /// As [`Wire::load`], for state that was written at `version`.
    ///
    /// # Errors
    /// Also [`Incompatible`](crate::ErrorKind::Incompatible) if `version` is outside the window.
    fn load_version(&mut self, input: &mut Reader<'_>, version: u32, undo: &mut Self::Undo) -> Result<()>;
}
