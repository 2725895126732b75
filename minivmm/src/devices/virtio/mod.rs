//! Virtio 1.x devices behind a virtio-mmio transport. Every register write and every descriptor of the guest is
//! hostile input: at worst the guest's own device asks to be reset.
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

/// The one field of a virtio device's description: hand-written bytes.
const VIRTIO_FIELD: MaybeStatic<[Field]> = MaybeStatic::Static(&[Field::new(
    MaybeStatic::Static("virtio"),
    Kind::Custom(MaybeStatic::Static("virtio")),
    Presence::Since(0),
)]);

/// What makes a virtio device a disk or a network card.
pub trait Model: Send + 'static {
    /// Virtio device number (virtio 1.2 §5).
    const ID: u32;

    /// Queue sizes after reset, one for each queue. QEMU sends them in its stream.
    const QUEUES: &'static [u16];

    /// Features offered, without those of rings and transport.
    fn features(&self) -> u64;

    /// Configuration space, little-endian. A change while it works is [published](Io::config) by the model.
    fn config(&self) -> Vec<u8>;

    /// The guest changed configuration bytes; `data` fits at `offset`. Read-only bytes are to be ignored.
    fn write_config(&mut self, offset: usize, data: &[u8]);

    /// The driver set FEATURES_OK: it understands `features`.
    fn agree(&mut self, features: u64);

    /// Back to the state after power-on.
    fn reset(&mut self);

    /// Works until nothing is left to do, or [`Io::pausing`], or a limit of its rate: then it says after what time to
    /// go on.
    ///
    /// # Errors
    /// A ring or a request breaks the protocol: the device stops until the guest resets it.
    fn process(&mut self, io: &mut Io<'_>) -> Result<Option<Duration>, Broken>;

    /// What of it is guest state, and not in the configuration alone.
    type State;

    /// The section: its name and version, and one field `virtio`.
    const DESCRIPTION: &'static Description;

    /// The state now.
    fn state(&self) -> Self::State;

    /// Replaces the state; what was agreed on with the driver stays.
    fn set_state(&mut self, state: Self::State);

    /// Appends the device's own part of the section.
    ///
    /// # Errors
    /// What a nested struct refuses.
    fn save_state(&mut self, out: &mut Writer) -> Result<()>;

    /// Reads the device's own part; `config` and the low word of the `features` agreed on came before it.
    ///
    /// # Errors
    /// Any kind; nothing has changed.
    fn load_state(&self, config: &[u8], features: u64, input: &mut Reader<'_>) -> Result<Self::State>;

    /// Does what it is time for, also while no driver drives the device; after what time there will be more of that.
    fn due(&mut self, _interrupt: &Interrupt, _config: &ConfigSpace) -> Option<Duration> {
        None
    }

    /// The guest goes on here for the first time after a load.
    fn arrive(&mut self, _interrupt: &Interrupt) {}

    /// A descriptor whose readiness makes work, watched for edges.
    fn source(&self) -> Option<RawFd>;

    /// Whether the device's thread attends to a queue; if not, [something else](net::DataPlane) hears of its kicks.
    fn attends(&self, _queue: usize) -> bool {
        true
    }

    /// The device stops: whatever works for it beside its thread has stopped after this, and the rings are as that left them. To be
    /// started again when the device [goes on](Self::process).
    ///
    /// # Errors
    /// It cannot be said how it left them.
    fn rest(&mut self, _rings: &mut [Ring], _memory: &GuestMemory, _interrupt: &Interrupt) -> Result<(), Broken> {
        Ok(())
    }
}
