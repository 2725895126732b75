//! Locks that ignore poisoning: the value stays in use after a holder panicked.
//!
//! A panic is a bug, and its message names the place. The other threads go on, because they still have to stop the guest,
//! release its disks and report what happened. The values behind these locks are replaced whole, or are valid between any two
//! statements that change them. A device is neither: it is still paused, resumed and dropped, but its section is refused
//! (`migration/section_of.rs`), since the other host would take a half-made change for its state.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Waits for the lock, and ignores that a holder panicked.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `condvar` is notified, or wakes spuriously.
pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// Like [`wait`], but waits at most for `time`.
pub(crate) fn wait_within<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>, time: Duration) -> MutexGuard<'a, T> {
    condvar.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0
}
