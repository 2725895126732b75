//! Migrated state: the traits that the derive implements, and the rules of a load.
//!
//! The types that can be on the wire are grouped by what they are: `numbers` (an integer, a char, a time), `arrays` (as many
//! values as the type says), `collections` (a number of values decided at run time), `wrappers` (one other value, owned, locked
//! or shared). Each folder's `mod.rs` says where a new type belongs. The files beside the folders are about structs and the code
//! that the derive generates for them.
//!
//! A load works in place, so that predicates and hooks see the fields loaded before them, as in QEMU. The previous values are
//! [remembered](Wire::remember) first, and put back if anything fails: a device whose load fails is unchanged.

mod arrays;
mod coded;
mod collections;
mod hook;
mod keep;
mod numbers;
mod rules;
mod rust_vmm;
mod subsection;
#[doc(hidden)]
pub mod support;
mod temporary;
mod wrappers;

use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Described, Description, Kind};

pub use arrays::Unused;
pub(crate) use hook::refusal;
pub use numbers::{Deadline, GuestClock, Timer};
pub use rules::SectionRules;
pub(crate) use subsection::narrowed;
pub use temporary::Temporary;
pub use wrappers::Shareable;

/// A value with an encoding on the wire: an integer, an array, a nested struct.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be migrated: it has no place on the wire",
    label = "does not implement `vmstate::Wire`",
    note = "derive `VmState` for it, give the field `#[vmstate(with = module)]`, or `#[vmstate(skip)]` if it is no guest state",
    note = "a `Vec` needs `#[vmstate(len = field, max = N)]`, `counted` or `list`; a map or set `map`; a `String` `counted`; a `usize` `wire`"
)]
pub trait Wire {
    /// The copy that [`undo`](Self::undo) puts back.
    type Undo;

    /// The kind of the bytes, for the schema.
    const KIND: Kind;

    /// Appends the value.
    ///
    /// # Errors
    /// Errors of hooks and checks of a nested struct.
    fn save(&mut self, out: &mut Writer) -> Result<()>;

    /// Replaces the value by the next one of `input`.
    ///
    /// # Errors
    /// Any kind; the value is then partly loaded until [`undo`](Self::undo) is called.
    fn load(&mut self, input: &mut Reader<'_>) -> Result<()>;

    /// Copies out what a load or a hook may change.
    fn remember(&self) -> Self::Undo;

    /// Puts back what [`remember`](Self::remember) copied.
    fn undo(&mut self, undo: Self::Undo);

    /// True for an `Option`: if it is the only field of a subsection, it decides whether the subsection is sent.
    #[doc(hidden)]
    const IS_OPTION: bool = false;

    /// True for a pointer. An `Option` of a pointer has a byte on the wire if it is null; any other `Option` is marked only by
    /// the presence of its subsection.
    #[doc(hidden)]
    const IS_POINTER: bool = false;

    /// The kind of the bytes if the value is the only field of a subsection.
    #[doc(hidden)]
    const WHOLE: Kind = Self::KIND;

    /// True if a subsection that consists of this value is sent.
    #[doc(hidden)]
    #[inline]
    fn is_there(&self) -> bool {
        true
    }

    /// Called when the stream has no subsection for this value.
    #[doc(hidden)]
    #[inline]
    fn make_absent(&mut self) {}

    /// [Saves](Self::save) the value as the only field of a subsection.
    #[doc(hidden)]
    #[inline]
    fn save_whole(&mut self, out: &mut Writer) -> Result<()> {
        self.save(out)
    }

    /// [Loads](Self::load) the value as the only field of a subsection.
    #[doc(hidden)]
    #[inline]
    fn load_whole(&mut self, input: &mut Reader<'_>) -> Result<()> {
        self.load(input)
    }

    /// Appends the elements of an array. Integers are written as one block.
    ///
    /// # Errors
    /// As [`save`](Self::save), with the index of the element.
    #[inline]
    fn save_all(elements: &mut [Self], out: &mut Writer) -> Result<()>
    where
        Self: Sized,
    {
        arrays::save_each(elements, out, Self::save)
    }

    /// Replaces the elements of an array. Integers are read as one block.
    ///
    /// # Errors
    /// As [`load`](Self::load), with the index of the element.
    #[inline]
    fn load_all(elements: &mut [Self], input: &mut Reader<'_>) -> Result<()>
    where
        Self: Sized,
    {
        arrays::load_each(elements, input, Self::load)
    }
}

/// A struct with a description: a section, a subsection, or a nested struct. Implemented by `#[derive(VmState)]`,
/// which also implements [`Wire`] for it.
#[diagnostic::on_unimplemented(note = "add `#[derive(vmstate::VmState)]` to `{Self}`")]
pub trait VmState: Wire {
    /// Name, versions, fields and subsections.
    const DESCRIPTION: &'static Description;

    /// How a section of this type is treated as a whole.
    const SECTION: SectionRules = SectionRules::DEFAULT;

    /// False if a section of this type need not be sent now.
    fn is_needed(&self) -> bool {
        true
    }

    /// Appends the state in the layout of `version`: without the fields that only newer versions have (QEMU's
    /// `vmstate_save_state_v`). Subsections have their newest version. The default, for a hand-written impl, can save the newest
    /// version only.
    ///
    /// # Errors
    /// `Misuse` if `version` is outside the supported range; as [`save`](Wire::save).
    fn save_version(&mut self, out: &mut Writer, version: u32) -> Result<()> {
        match version == Self::DESCRIPTION.version {
            true => self.save(out),
            false => Err(Error::new(ErrorKind::Misuse, format!("cannot be saved at version {version}"))),
        }
    }

    /// Replaces the state by the contents of `input`, written at `version`.
    ///
    /// # Errors
    /// Any kind, [`Incompatible`](crate::error::ErrorKind::Incompatible) if `version` is outside the supported range; the state
    /// is then partly loaded. Use [`load_or_keep`](Self::load_or_keep) unless the caller undoes the load.
    fn load_version(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()>;

    /// Replaces the state by the contents of `input`, written at `version`, or keeps it unchanged on an error. This is the load
    /// of a whole section.
    ///
    /// # Errors
    /// Any kind, with path and offset.
    fn load_or_keep(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()> {
        // The derive shows the place of a fault in the layout; a hand-written or generic description is checked here.
        const {
            if let Some(fault) = Self::DESCRIPTION.fault() {
                panic!("{}", fault.text());
            }
        }
        let before = self.remember();
        let loaded = self.load_version(input, version).and_then(|()| subsection::none_left(input, Self::DESCRIPTION));
        if loaded.is_err() {
            self.undo(before);
        }
        loaded
    }
}

impl<T: VmState> Described for T {
    fn description() -> &'static Description {
        T::DESCRIPTION
    }
}
