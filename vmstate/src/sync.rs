//! Locks that ignore poisoning: the value stays in use after a holder panicked.
//!
//! A panic is a bug, and its message names the place. The other threads continue, because they still have to stop the guest,
//! release its disks and report the fault. The values behind these locks are replaced as a whole, or are valid after every
//! statement that changes them. That is not so for an embedder's device: the section of a device whose lock is poisoned refuses
//! to save it (`section/shared.rs`, `state/wrappers/interior.rs`), since the state may be half changed.

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

/// Waits until `condvar` is notified or `time` has passed, or wakes spuriously.
pub(crate) fn wait_within<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>, time: Duration) -> MutexGuard<'a, T> {
    condvar.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0
}

/// Waits while `waits` is true for the value, for at most `time`.
pub(crate) fn wait_while<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    time: Duration,
    waits: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    condvar.wait_timeout_while(guard, time, waits).unwrap_or_else(PoisonError::into_inner).0
}
