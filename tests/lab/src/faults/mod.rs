//! The fault matrix: the guest's state after any fault during its migration. [`table`] has the outcome of each case,
//! and [`case::walk`] runs a case with two real processes and a relay between them, for any guest that [`subject`]
//! describes.

pub mod beside;
pub mod case;
pub mod cell;
pub mod channels;
pub mod descriptors;
pub mod ending;
pub mod in_place;
pub mod marks;
pub mod place;
pub mod postcopy;
mod postcopy_case;
pub mod qemu;
pub mod side;
pub mod subject;
pub mod table;
pub mod third_party;
pub mod wire;

use std::time::{Duration, Instant};

/// The error is a sentence.
pub type Result<T> = std::result::Result<T, String>;

pub use crate::patience::PATIENCE;

/// Waits for `condition`.
///
/// # Errors
/// The condition, if it does not hold within [`PATIENCE`].
pub fn until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        if Instant::now() > deadline {
            return Err(format!("not within {PATIENCE:?}: {what}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
