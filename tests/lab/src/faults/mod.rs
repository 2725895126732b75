//! The fault matrix: the guest's state after any fault during its migration. [`table`] has the outcome of each case,
//! and [`case::run`] runs a case with two real processes and a relay between them, for any guest that [`setup`]
//! describes.

pub mod case;
pub mod cell;
pub mod channels;
pub mod copied;
pub mod descriptors;
mod disk_content;
pub mod in_place;
pub mod marks;
pub mod outcome;
pub mod page_channels;
pub mod postcopy;
mod postcopy_case;
pub mod qemu;
pub mod relay;
pub mod setup;
pub mod side;
pub mod snapshot;
mod snapshot_case;
pub mod table;
pub mod testbed;
pub mod third_party;
pub mod transfer;

use std::time::{Duration, Instant};

/// The error is a sentence.
pub type Result<T> = std::result::Result<T, String>;

pub use crate::wait::TIMEOUT;

/// Waits for `condition`.
///
/// # Errors
/// The condition, if it does not hold within [`TIMEOUT`].
pub fn until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    while !condition()? {
        if Instant::now() > deadline {
            return Err(format!("not within {TIMEOUT:?}: {what}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
