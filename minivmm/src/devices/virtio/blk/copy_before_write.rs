//! The hook of a backup before each change that the guest makes to a disk, as QEMU's filter `copy-before-write`.

use std::sync::{Arc, Condvar, Mutex};

use super::backup::Backup;
use crate::sync::{lock, wait};

/// The backup of a disk, while there is one, and the change that the disk's device is making.
#[derive(Debug, Default)]
pub struct CopyBeforeWrite {
    state: Mutex<State>,
    /// A change is over.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    backup: Option<Arc<Backup>>,
    is_changing: bool,
    /// The change under way has begun before the backup.
    is_earlier: bool,
}

impl CopyBeforeWrite {
    /// Begins a change; returns the backup that needs the old content.
    pub(super) fn begin_change(&self) -> Option<Arc<Backup>> {
        let mut state = lock(&self.state);
        state.is_changing = true;
        state.backup.clone()
    }

    /// Ends the change, which is in the image.
    pub(super) fn end_change(&self) {
        let mut state = lock(&self.state);
        (state.is_changing, state.is_earlier) = (false, false);
        self.changed.notify_all();
    }

    /// Whether there is a backup.
    pub fn has_backup(&self) -> bool {
        lock(&self.state).backup.is_some()
    }

    /// Begins a backup: each later change copies the old content first.
    pub fn begin_backup(&self, backup: &Arc<Backup>) {
        let mut state = lock(&self.state);
        state.backup = Some(Arc::clone(backup));
        state.is_earlier = state.is_changing;
    }

    /// Waits until no change is under way that began before the backup, so that the copier reads no cluster in the middle of it.
    pub fn await_earlier_change(&self) {
        let mut state = lock(&self.state);
        while state.is_earlier {
            state = wait(&self.changed, state);
        }
    }

    /// Ends the backup.
    pub fn end_backup(&self) {
        lock(&self.state).backup = None;
    }
}
