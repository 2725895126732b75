//! Frames that have left the network but not reached the guest, or the reverse, when the guest is handed over to another process
//! of its host. They are passed to that process, so that no frame is lost or duplicated.

use vmstate::VmState;

use super::frame::FRAME_MAX;
use super::segment::FINISHED_BYTES;
use super::stream::INPUT;

/// Most bytes of `unsent` in the section's released format; [`InTransit::check`] accepts fewer.
const UNSENT_FORMAT: usize = 24 << 20;

/// Bytes in transit of one card.
#[derive(Clone, Debug, Default, PartialEq, Eq, VmState)]
#[vmstate(name = "minivmm/in-transit/card", version = 1)]
pub struct InTransit {
    /// Inode of the stream's connected socket, by which the other process recognises the connection; 0 without one.
    pub socket: u64,
    /// Bytes of frames that were read from the stream.
    #[vmstate(counted = u32, max = INPUT)]
    pub received: Vec<u8>,
    /// Bytes that the stream did not take yet, from the middle of a frame on.
    #[vmstate(counted = u32, max = UNSENT_FORMAT)]
    pub unsent: Vec<u8>,
    /// A whole frame with its virtio header, which waits for a buffer of the guest.
    #[vmstate(counted = u32, max = FRAME_MAX)]
    pub waiting: Vec<u8>,
}

impl InTransit {
    /// Checks that the unsent bytes are at most the results of one frame of the guest.
    ///
    /// # Errors
    /// There are more unsent bytes.
    pub fn check(&self) -> Result<(), String> {
        let len = self.unsent.len();
        let too_many =
            || format!("a card has {len} unsent bytes: one frame of a guest becomes at most {FINISHED_BYTES}");
        (len <= FINISHED_BYTES).then_some(()).ok_or_else(too_many)
    }
}
