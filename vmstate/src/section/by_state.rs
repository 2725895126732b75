//! A section of a device that gives out its state as a value, and takes one back.

use std::error::Error as StdError;
use std::sync::{Arc, Mutex};

use super::shared::poisoned;
use super::{Section, SectionRules};
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;
use crate::state::{VmState, Wire, refusal};

/// A device that gives out its state as a value, and takes one back. [`ByState`] makes a section of it.
pub trait SaveRestore {
    /// The state: a struct that derives `VmState`.
    type State: VmState;

    /// The state as it is now.
    ///
    /// # Errors
    /// Why it cannot be had; the save or load then fails.
    fn save_state(&mut self) -> Result<Self::State, Box<dyn StdError + Send + Sync>>;

    /// Takes on `state`. One that [`save_state`](Self::save_state) gave must be taken: with it a device that refused another
    /// half-way is put back.
    ///
    /// # Errors
    /// Why the device cannot be in that state.
    fn restore_state(&mut self, state: Self::State) -> Result<(), Box<dyn StdError + Send + Sync>>;
}

/// A section of a [`SaveRestore`] device, in any form in which a machine owns one: by value, as `&mut _`, as `Box<_>` or as
/// `Arc<Mutex<_>>`. It is named and described as the state is. It is always sent: a `needed` of the state is not asked.
///
/// A load reads the state into one that the device gave, so what the state skips is the device's own; the device sees it
/// only if all of it has loaded.
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
                let message = format!("{refused}; and the device does not take back its own state: {again}");
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

/// Waits for the lock, for each save and load. A poisoned one is refused.
impl<D: SaveRestore + ?Sized> SaveRestore for Arc<Mutex<D>> {
    type State = D::State;

    fn save_state(&mut self) -> Result<D::State, Box<dyn StdError + Send + Sync>> {
        self.lock().map_err(|_| poisoned())?.save_state()
    }

    fn restore_state(&mut self, state: D::State) -> Result<(), Box<dyn StdError + Send + Sync>> {
        self.lock().map_err(|_| poisoned())?.restore_state(state)
    }
}
