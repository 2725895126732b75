//! Bounded waits for another process or thread, long enough for a busy host.

use std::thread;
use std::time::{Duration, Instant};

/// Time limit of each wait.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Calls `look` until it finds something.
///
/// # Panics
/// When it has found nothing within [`TIMEOUT`].
#[track_caller]
pub fn find<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} within {TIMEOUT:?}");
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
