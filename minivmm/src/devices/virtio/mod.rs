//! Virtio 1.x devices on a virtio-mmio transport. Every register write and every descriptor of the guest is hostile input: at
//! worst the guest's own device needs a reset.
//!
//! [`Virtio`](mmio::Virtio) is the transport, generic over a [`Model`] ([`blk`], [`net`]). A thread for each device
//! does its I/O, so vCPUs only write registers.

pub mod blk;
mod chain;
mod config;
mod gate;
mod interrupt;
mod limit;
pub mod mmio;
pub mod net;
mod queue;
mod registers;
mod state;
mod wire;
mod worker;

use std::os::fd::RawFd;
use std::time::Duration;

use vmstate::codec::{Reader, Writer};
use vmstate::error::Result;
use vmstate::schema::{Description, Field, Kind, MaybeStatic, Presence};

pub use self::chain::{Chain, Segments};
pub use self::config::ConfigSpace;
pub use self::interrupt::Interrupt;
pub use self::limit::Limiter;
pub use self::queue::{Broken, Ring};
pub use self::state::Snapshot;
pub use self::worker::Io;
use crate::memory::GuestMemory;

/// Largest queue the transport offers, as QEMU's virtio-mmio (its `VIRTQUEUE_MAX_SIZE`).
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// The only field of a virtio device's description, whose bytes are written by hand.
const VIRTIO_FIELD: MaybeStatic<[Field]> = MaybeStatic::Static(&[Field::new(
    MaybeStatic::Static("virtio"),
    Kind::Custom(MaybeStatic::Static("virtio")),
    Presence::Since(0),
)]);

/// Part of a virtio device that makes it a disk or a network card.
pub trait Model: Send + 'static {
    /// Virtio device number (virtio 1.2 §5).
    const ID: u32;

    /// Queue sizes after reset, one for each queue. QEMU's stream has them.
    const QUEUES: &'static [u16];

    /// Features offered, besides those of rings and transport.
    fn features(&self) -> u64;

    /// Configuration space, little-endian. The model [publishes](Io::config) changes while it works.
    fn config(&self) -> Vec<u8>;

    /// Handles the guest's write to the configuration space; `data` fits at `offset`. Writes to read-only bytes are to be
    /// ignored.
    fn write_config(&mut self, offset: usize, data: &[u8]);

    /// Handles FEATURES_OK with the negotiated `features`.
    fn agree(&mut self, features: u64);

    /// Returns to the state after power-on.
    fn reset(&mut self);

    /// Works until nothing is left to do, or until [`Io::pausing`], or until a rate limit: then it returns the time after which
    /// to continue.
    ///
    /// # Errors
    /// A ring or a request breaks the protocol: the device stops until the guest resets it.
    fn process(&mut self, io: &mut Io<'_>) -> Result<Option<Duration>, Broken>;

    /// Guest state of the model that is not in the configuration space.
    type State;

    /// The section: its name and version, and one field `virtio`.
    const DESCRIPTION: &'static Description;

    /// Returns the current state.
    fn state(&self) -> Self::State;

    /// Replaces the state; the negotiated features stay.
    fn set_state(&mut self, state: Self::State);

    /// Appends the device's own part of the section.
    ///
    /// # Errors
    /// An error of a nested struct.
    fn save_state(&mut self, out: &mut Writer) -> Result<()>;

    /// Reads the device's own part; `config` and the low word of the negotiated `features` were read before it.
    ///
    /// # Errors
    /// Any kind; the device is unchanged.
    fn load_state(&self, config: &[u8], features: u64, input: &mut Reader<'_>) -> Result<Self::State>;

    /// Does timed work, also while no driver uses the device; returns the time until there is more of it.
    fn due(&mut self, _interrupt: &Interrupt, _config: &ConfigSpace) -> Option<Duration> {
        None
    }

    /// Called when the guest resumes here for the first time after a load.
    fn arrive(&mut self, _interrupt: &Interrupt) {}

    /// Descriptor whose readiness means work; watched edge-triggered.
    fn source(&self) -> Option<RawFd>;

    /// Whether the device's thread handles a queue's kicks; if not, a [data plane](net::DataPlane) does.
    fn handles_kicks(&self, _queue: usize) -> bool {
        true
    }

    /// Called when the device stops: afterwards everything that works beside the device's thread has stopped, and the rings
    /// have its indices. The model starts it again when the device [continues](Self::process).
    ///
    /// # Errors
    /// The state of the rings is unknown.
    fn rest(&mut self, _rings: &mut [Ring], _memory: &GuestMemory, _interrupt: &Interrupt) -> Result<(), Broken> {
        Ok(())
    }
}
