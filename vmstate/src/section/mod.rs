//! Sections: who sends which state under which name, and in which order.

mod older;
mod registry;
mod shared;

use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;
use crate::state::VmState;

pub use crate::state::SectionRules;
pub use registry::{Registration, Sections};

/// One device's state as the stream sees it: object-safe, so that a registry can hold many.
///
/// Implemented for every [`VmState`], for a borrowed section, and for a device that threads share (`Arc<Mutex<_>>`). A
/// wrapper of one's own passes on all methods, those with a default too.
pub trait Section {
    /// Name, versions, fields.
    fn description(&self) -> &'static Description;

    /// How it is treated as a whole.
    fn rules(&self) -> SectionRules {
        SectionRules::DEFAULT
    }

    /// False if it need not be sent now.
    fn is_needed(&self) -> bool {
        true
    }

    /// Appends the newest version of the state.
    ///
    /// # Errors
    /// What a hook of the device refuses.
    fn save(&mut self, out: &mut Writer) -> Result<()>;

    /// Appends the state as it was at `version`. A hand-written section knows its newest only, unless it says more.
    ///
    /// # Errors
    /// `Misuse` if it cannot be saved at `version`; as [`save`](Self::save).
    fn save_version(&mut self, out: &mut Writer, version: u32) -> Result<()> {
        match version == self.description().version {
            true => self.save(out),
            false => Err(Error::new(ErrorKind::Misuse, format!("cannot be saved at version {version}"))),
        }
    }

    /// Replaces the state by what `input` holds, written at `version`; or leaves all as it was.
    ///
    /// # Errors
    /// Any kind, with path and offset.
    fn load(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()>;
}

impl<T: VmState> Section for T {
    fn description(&self) -> &'static Description {
        T::DESCRIPTION
    }

    fn rules(&self) -> SectionRules {
        T::SECTION
    }

    fn is_needed(&self) -> bool {
        VmState::is_needed(self)
    }

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        crate::state::Wire::save(self, out)
    }

    fn save_version(&mut self, out: &mut Writer, version: u32) -> Result<()> {
        VmState::save_version(self, out, version)
    }

    fn load(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()> {
        self.load_or_keep(input, version)
    }
}
