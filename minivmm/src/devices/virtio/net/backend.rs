//! The host side of a network card: whole frames, each behind a virtio-net header of 12 bytes.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_HOST_USO,
};

use vmm_sys_util::eventfd::EventFd;

use super::InTransit;
use crate::devices::virtio::{Broken, Ring};
use crate::memory::GuestMemory;

/// Source and sink of frames. Never blocks.
pub trait Backend: Send + 'static {
    /// Descriptor that is readable when a frame waits.
    fn fd(&self) -> RawFd;

    /// Receives the next frame; returns its length.
    ///
    /// # Errors
    /// `WouldBlock` if none waits.
    fn receive(&self, frame: &mut [u8]) -> io::Result<usize>;

    /// Sends a frame.
    ///
    /// # Errors
    /// The frame was dropped.
    fn send(&self, frame: &[u8]) -> io::Result<()>;

    /// Returns the time after which to try again to send, if there is no room for a frame now. A backend that drops frames
    /// never waits.
    fn wait(&self) -> Option<Duration> {
        None
    }

    /// Whether the network is connected.
    fn is_up(&self) -> bool {
        true
    }

    /// Returns the offloads that the backend supports for received frames.
    fn offloads(&self) -> Offloads;

    /// Sets the offloads for received frames.
    ///
    /// # Errors
    /// The attachment does not support them.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Returns the bytes of the paused card that have left the network but not reached the guest, and the reverse. The default, for
    /// networks whose descriptor still holds all of these bytes, returns none.
    fn in_transit(&self) -> InTransit {
        InTransit::default()
    }

    /// Continues with the bytes that were in transit in another process.
    fn take_over(&self, _from: InTransit) {}

    /// Returns the data plane that moves the frames instead of the card's thread, if there is one; the thread then neither
    /// receives nor sends them.
    fn data_plane(&self) -> Option<&dyn DataPlane> {
        None
    }
}

/// Moves frames between the receive and transmit rings of a card and its network, beside the card's thread.
pub trait DataPlane: Send + Sync {
    /// Descriptor that is readable when there are [`take_interrupt`](Self::take_interrupt).
    fn fd(&self) -> RawFd;

    /// Starts, unless it runs already, with those of the card's first two `rings` that are ready, and their `kicks`.
    ///
    /// # Errors
    /// The host refuses it.
    fn start(&self, rings: &[Ring], features: u64, kicks: &[EventFd]) -> Result<(), Broken>;

    /// Stops: afterwards it does not access guest memory, and the rings have its indices.
    ///
    /// # Errors
    /// The state of the rings is unknown.
    fn stop(&self, rings: &mut [Ring], memory: &GuestMemory) -> Result<(), Broken>;

    /// Whether buffers were used since the last call, so that the driver is to be interrupted.
    ///
    /// # Errors
    /// A ring breaks the protocol.
    fn take_interrupt(&self) -> Result<bool, Broken>;
}

/// A set of virtio-net's `GUEST_*` feature bits: checksums not computed, segments not cut, in frames for the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads(pub u64);

/// UDP segmentation.
pub(super) const USO: [u32; 2] = [VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6];

/// Bits of the same offload on the guest's receive side and on its transmit side.
const PAIRS: [(u32, u32); 6] = [
    (VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_HOST_ECN),
    (VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_UFO),
    (VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_HOST_USO),
];

impl Offloads {
    /// All offloads.
    pub const ALL: Self = Self(
        1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO6
            | 1 << VIRTIO_NET_F_GUEST_ECN
            | 1 << VIRTIO_NET_F_GUEST_UFO
            | 1 << VIRTIO_NET_F_GUEST_USO4
            | 1 << VIRTIO_NET_F_GUEST_USO6,
    );

    /// Selects the offloads among `features`.
    pub fn of(features: u64) -> Self {
        Self(features & Self::ALL.0)
    }

    /// Whether `bit` is in the set.
    pub fn has(self, bit: u32) -> bool {
        self.0 & 1 << bit != 0
    }

    /// Removes these bits from the set.
    pub fn without(self, bits: &[u32]) -> Self {
        Self(bits.iter().fold(self.0, |all, bit| all & !(1 << bit)))
    }

    /// Returns the features to offer for a backend with these offloads, in both directions.
    pub fn features(self) -> u64 {
        let given = PAIRS.iter().filter(|(guest, _)| self.has(*guest)).fold(0, |all, (_, host)| all | 1 << host);
        self.0 | given
    }
}
