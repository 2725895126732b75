//! `virtio_queue`: a queue, saved as its `QueueState`.

use virtio_queue::{Queue, QueueState};

use super::as_ours;
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Kind;
use crate::state::Wire;

/// The fields of `QueueState`, in the order in which `virtio_queue` declares them.
#[derive(vmstate_derive::VmState)]
#[vmstate(name = "virtio_queue", crate = crate, remote = QueueState)]
struct Ours {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

as_ours!(QueueState, Ours);

/// A load refuses a state that no queue can have: sizes that are no power of 2 or above the maximum, rings that are not aligned.
/// The maximum size is configuration of the machine, so it must be the same on both sides.
impl Wire for Queue {
    type Undo = QueueState;
    const KIND: Kind = QueueState::KIND;

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        self.state().save(out)
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        let offset = input.offset();
        let mut state = self.state();
        let most = state.max_size;
        state.load(input)?;
        if state.max_size != most {
            let message = format!(
                "the stream has a queue of at most {} elements, this machine has {most}: configure both alike",
                state.max_size
            );
            return Err(Error::new(ErrorKind::Incompatible, message).at(offset));
        }
        *self = Self::try_from(state).map_err(|refused| {
            Error::new(ErrorKind::Rejected, format!("not a valid queue state: {refused}")).at(offset)
        })?;
        Ok(())
    }

    fn remember(&self) -> QueueState {
        self.state()
    }

    fn undo(&mut self, undo: QueueState) {
        // The state was taken from a queue, so the conversion succeeds.
        if let Ok(before) = Self::try_from(undo) {
            *self = before;
        }
    }
}
