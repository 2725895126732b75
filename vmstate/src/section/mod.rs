//! Sections: named units of state, and their order in the stream.

mod by_state;
#[cfg(feature = "engine")]
mod iterative;
#[cfg(feature = "engine")]
mod iterative_shared;
#[cfg(feature = "engine")]
mod older;
#[cfg(feature = "engine")]
mod parts;
#[cfg(feature = "engine")]
mod registration;
#[cfg(feature = "engine")]
mod registry;
mod shared;
#[cfg(feature = "engine")]
mod taken;

use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;

pub use crate::state::SectionRules;
pub use by_state::{ByState, SaveRestore};
#[cfg(feature = "engine")]
pub use iterative::{IterativeSection, Record};
#[cfg(feature = "engine")]
pub use registration::Registration;
#[cfg(feature = "engine")]
pub use registry::Sections;

/// The state of one device as a section of the stream. The trait is object-safe, so that a registry can hold many.
///
/// `#[derive(VmState)]` implements it for each struct that is `Send`, so that a machine's [`Sections`] can move to the thread
/// that migrates it. Register a section in the form in which the machine owns it: by value, as `Box<_>`, `&mut _`,
/// `Arc<Mutex<_>>` or `Arc<RwLock<_>>`, each of a device's type, of `dyn Section`, or of a trait of your own that has `Section`
/// as a supertrait. A wrapper of your own must forward all methods, including those with a default.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use vmstate::section::Sections;
/// use vmstate::{Section, VmState};
///
/// trait Device: Section {
///     fn write(&mut self, value: u8);
/// }
///
/// #[derive(VmState, Default)]
/// #[vmstate(name = "led")]
/// struct Led {
///     level: u8,
/// }
///
/// impl Device for Led {
///     fn write(&mut self, value: u8) {
///         self.level = value;
///     }
/// }
///
/// let shared: Arc<Mutex<dyn Device>> = Arc::new(Mutex::new(Led::default()));
/// let mut kept = Led::default();
/// let mut sections = Sections::new();
/// sections.add(Arc::clone(&shared))?;
/// sections.add(&mut kept)?;
/// sections.add(Box::new(Led::default()) as Box<dyn Device>)?;
/// # Ok::<(), vmstate::Error>(())
/// ```
pub trait Section: Send {
    /// Name, versions, fields.
    fn description(&self) -> &'static Description;

    /// How the section is treated as a whole.
    fn rules(&self) -> SectionRules {
        SectionRules::DEFAULT
    }

    /// False if the section need not be sent now.
    fn is_needed(&self) -> bool {
        true
    }

    /// Appends the newest version of the state.
    ///
    /// # Errors
    /// Why a hook of the device refuses the save.
    fn save(&mut self, out: &mut Writer) -> Result<()>;

    /// Appends the state in the layout of `version`. The default, for a hand-written section, supports the newest version only.
    ///
    /// # Errors
    /// `Misuse` if the section cannot be saved at `version`; as for [`save`](Self::save).
    fn save_at(&mut self, out: &mut Writer, version: u32) -> Result<()> {
        match version == self.description().version {
            true => self.save(out),
            false => Err(Error::new(ErrorKind::Misuse, format!("cannot be saved at version {version}"))),
        }
    }

    /// Replaces the state by the contents of `input`, written at `version`, or leaves it unchanged on an error.
    ///
    /// # Errors
    /// Any kind, with path and offset.
    fn load(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()>;
}
