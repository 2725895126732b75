//! The fault matrix: what becomes of a guest whatever breaks during its migration. [`table`] says how each case ends, and
//! [`case::walk`] makes it happen with two real processes and a wire between them, for any guest that [`subject`] describes.

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

/// What goes wrong is told in a sentence.
pub type Result<T> = std::result::Result<T, String>;

pub use crate::patience::PATIENCE;

/// Waits for `condition`.
///
/// # Errors
/// What was waited for, when it is not there after [`PATIENCE`].
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
