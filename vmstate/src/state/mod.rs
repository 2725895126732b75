//! State that moves: the traits that the derive implements, and the rules of a load.
//!
//! The types that can be on the wire are listed once each, by what they are: `numbers` (an integer, a char, a time), `arrays` (as
//! many values as the type says), `collections` (as many as there are at run time), `wrappers` (one other value, owned, locked or
//! shared). The folder's `mod.rs` says where in it a new one goes. What is beside the folders is about structs and the code that
//! the derive makes of them.
//!
//! A load works in place, so that predicates and hooks see the fields loaded before them as QEMU's do. What the
//! device held before is [remembered](Wire::remember) first; if anything fails, all of it is put back: a device
//! whose load fails is as it was.

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

/// A value with a place on the wire: an integer, an array, a nested struct.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be migrated: it has no place on the wire",
    label = "does not implement `vmstate::Wire`",
    note = "derive `VmState` for it, give the field `#[vmstate(with = module)]`, or `#[vmstate(skip)]` if it is no guest state",
    note = "a `Vec` needs `#[vmstate(len = field, max = N)]`, `counted` or `list`; a map or set `map`; a `String` `counted`; a `usize` `wire`"
)]
pub trait Wire {
    /// All that is needed to put back the value.
    type Undo;

    /// What the bytes are.
    const KIND: Kind;

    /// Appends the value.
    ///
    /// # Errors
    /// What a hook or check of a nested struct refuses.
    fn save(&mut self, out: &mut Writer) -> Result<()>;

    /// Replaces the value by the next one of `input`.
    ///
    /// # Errors
    /// Any kind; the value is then half loaded until [`undo`](Self::undo) is called.
    fn load(&mut self, input: &mut Reader<'_>) -> Result<()>;

    /// Copies out what a load or a hook may change.
    fn remember(&self) -> Self::Undo;

    /// Puts back what [`remember`](Self::remember) copied.
    fn undo(&mut self, undo: Self::Undo);

    /// True for an `Option`: one that is the whole of a subsection says whether that is there.
    #[doc(hidden)]
    const IS_OPTION: bool = false;

    /// True for a pointer. An `Option` of one has a byte on the wire where it is null, any other only its subsection.
    #[doc(hidden)]
    const IS_POINTER: bool = false;

    /// What the bytes are if the value is the whole of a subsection.
    #[doc(hidden)]
    const WHOLE: Kind = Self::KIND;

    /// True if a subsection that is this value is sent.
    #[doc(hidden)]
    #[inline]
    fn is_there(&self) -> bool {
        true
    }

    /// The stream has no subsection that is this value.
    #[doc(hidden)]
    #[inline]
    fn make_absent(&mut self) {}

    /// [Saves](Self::save) it as the whole of a subsection.
    #[doc(hidden)]
    #[inline]
    fn save_whole(&mut self, out: &mut Writer) -> Result<()> {
        self.save(out)
    }

    /// [Loads](Self::load) it as the whole of a subsection.
    #[doc(hidden)]
    #[inline]
    fn load_whole(&mut self, input: &mut Reader<'_>) -> Result<()> {
        self.load(input)
    }

    /// Appends the elements of an array. Integers do it in one go.
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

    /// Replaces the elements of an array. Integers do it in one go.
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
    /// Its name, versions, fields and subsections.
    const DESCRIPTION: &'static Description;

    /// How a section of it is treated as a whole.
    const SECTION: SectionRules = SectionRules::DEFAULT;

    /// False if a section of it need not be sent now.
    fn is_needed(&self) -> bool {
        true
    }

    /// Appends the state as it was at `version`: without the fields that are there only since a newer one (QEMU's
    /// `vmstate_save_state_v`). Subsections are of their newest version. A hand-written impl knows its newest only,
    /// unless it says more.
    ///
    /// # Errors
    /// `Misuse` if `version` is outside the window; as [`save`](Wire::save).
    fn save_version(&mut self, out: &mut Writer, version: u32) -> Result<()> {
        match version == Self::DESCRIPTION.version {
            true => self.save(out),
            false => Err(Error::new(ErrorKind::Misuse, format!("cannot be saved at version {version}"))),
        }
    }

    /// Replaces the state by what `input` holds, written at `version`.
    ///
    /// # Errors
    /// Any kind, [`Incompatible`](crate::error::ErrorKind::Incompatible) if `version` is outside the window; the
    /// state is then half loaded. Use [`load_or_keep`](Self::load_or_keep) unless a caller undoes it.
    fn load_version(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()>;

    /// Replaces the state by what `input` holds, written at `version`; or keeps all as it was. The whole of a section.
    ///
    /// # Errors
    /// Any kind, with path and offset.
    fn load_or_keep(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()> {
        // The derive shows the place of a fault; a hand-written or generic description is judged here.
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
