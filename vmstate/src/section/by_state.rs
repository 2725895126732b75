//! A section of a device that exports its state as a value, and imports one.

use std::error::Error as StdError;
use std::sync::{Arc, Mutex};

use super::shared::poisoned;
use super::{Section, SectionRules};
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;
use crate::state::{VmState, Wire, refusal};

/// A device that exports its state as a value, and imports one. [`ByState`] makes a section of the device.
pub trait SaveRestore {
    /// The state: a struct that derives `VmState`.
    type State: VmState;

    /// Exports the current state.
    ///
    /// # Errors
    /// Why the state cannot be exported; the save or load then fails.
    fn save_state(&mut self) -> Result<Self::State, Box<dyn StdError + Send + Sync>>;

    /// Imports `state`. A value from [`save_state`](Self::save_state) must be accepted: it restores a device that refused another
    /// state half-way.
    ///
    /// # Errors
    /// Why the device cannot be in that state.
    fn restore_state(&mut self, state: Self::State) -> Result<(), Box<dyn StdError + Send + Sync>>;
}

/// A section of a [`SaveRestore`] device, in any form in which a machine owns it: by value, as `&mut _`, as `Box<_>` or as
/// `Arc<Mutex<_>>`. The section has the name and description of the state. It is always sent: a `needed` of the state is ignored.
///
/// A load reads into a state that the device exported, so skipped fields keep the device's values; the device gets the state only
/// if all of it was loaded.
///
/// ```
/// use std::error::Error;
/// use vmstate::section::{ByState, SaveRestore, Sections};
/// use vmstate::VmState;
///
/// struct Led {
///     level: u8,
/// }
///
/// #[derive(VmState)]
/// #[vmstate(name = "led")]
/// struct LedState {
///     level: u8,
/// }
///
/// impl SaveRestore for Led {
///     type State = LedState;
///
///     fn save_state(&mut self) -> Result<LedState, Box<dyn Error + Send + Sync>> {
///         Ok(LedState { level: self.level })
///     }
///
///     fn restore_state(&mut self, state: LedState) -> Result<(), Box<dyn Error + Send + Sync>> {
///         self.level = state.level;
///         Ok(())
///     }
/// }
///
/// let mut led = Led { level: 3 };
/// let mut sections = Sections::new();
/// sections.add(ByState(&mut led))?;
/// # Ok::<(), vmstate::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ByState<D>(pub D);

impl<D: SaveRestore> ByState<D> {
    fn state(&mut self) -> Result<D::State> {
        self.0.save_state().map_err(|refused| refusal(refused, "save_state"))
    }
}

impl<D: SaveRestore + Send> Section for ByState<D> {
    fn description(&self) -> &'static Description {
        D::State::DESCRIPTION
    }

    fn rules(&self) -> SectionRules {
        D::State::SECTION
    }

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        self.state()?.save(out)
    }

    fn save_at(&mut self, out: &mut Writer, version: u32) -> Result<()> {
        self.state()?.save_version(out, version)
    }

    fn load(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()> {
        let offset = input.offset();
        let (before, mut state) = (self.state()?, self.state()?);
        state.load_or_keep(input, version)?;
        let Err(refused) = self.0.restore_state(state) else { return Ok(()) };
        let refused = refusal(refused, "restore_state").at(offset);
        match self.0.restore_state(before) {
            Ok(()) => Err(refused),
            Err(again) => {
                let message = format!("{refused}; and the device does not accept its own state back: {again}");
                Err(Error::new(ErrorKind::Rejected, message))
            }
        }
    }
}

macro_rules! pointer {
    ($($pointer:ty),*) => {$(
        impl<D: SaveRestore + ?Sized> SaveRestore for $pointer {
            type State = D::State;

            fn save_state(&mut self) -> Result<D::State, Box<dyn StdError + Send + Sync>> {
                (**self).save_state()
            }

            fn restore_state(&mut self, state: D::State) -> Result<(), Box<dyn StdError + Send + Sync>> {
                (**self).restore_state(state)
            }
        }
    )*};
}

pointer!(&mut D, Box<D>);

/// Each save and load waits for the lock. A poisoned lock is refused.
impl<D: SaveRestore + ?Sized> SaveRestore for Arc<Mutex<D>> {
    type State = D::State;

    fn save_state(&mut self) -> Result<D::State, Box<dyn StdError + Send + Sync>> {
        self.lock().map_err(|_| poisoned())?.save_state()
    }

    fn restore_state(&mut self, state: D::State) -> Result<(), Box<dyn StdError + Send + Sync>> {
        self.lock().map_err(|_| poisoned())?.restore_state(state)
    }
}
