//! Waiting for what another process or thread does, however busy the host is, but not for ever.

use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until `look` finds something.
///
/// # Panics
/// When it has found nothing within [`PATIENCE`].
#[track_caller]
pub fn find<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for `condition`.
///
/// # Panics
/// As [`find`].
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    find(what, || condition().then_some(()));
}
