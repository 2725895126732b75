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

use crate::devices::virtio::{Broken, Ring};
use crate::memory::GuestMemory;

/// Where frames go to and come from. Never blocks.
pub trait Backend: Send + 'static {
    /// Ready to read when a frame waits.
    fn fd(&self) -> RawFd;

    /// The next frame; its length.
    ///
    /// # Errors
    /// `WouldBlock` if none waits.
    fn receive(&self, frame: &mut [u8]) -> io::Result<usize>;

    /// Sends a frame.
    ///
    /// # Errors
    /// The frame was dropped.
    fn send(&self, frame: &[u8]) -> io::Result<()>;

    /// After what time it may have room for a frame again, if it has none now. One that drops what it has no room for never waits.
    fn wait(&self) -> Option<Duration> {
        None
    }

    /// True if a network is at the other end.
    fn is_up(&self) -> bool {
        true
    }

    /// What it can leave undone in frames for the guest.
    fn offloads(&self) -> Offloads;

    /// What it is to leave undone from now on.
    ///
    /// # Errors
    /// The attachment cannot do that.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// What moves the frames in place of the card's thread, if something does: that neither receives nor sends them then.
    fn data_plane(&self) -> Option<&dyn DataPlane> {
        None
    }
}

/// Moves frames between the receive and transmit rings of a card and its network, beside the card's thread.
pub trait DataPlane: Send + Sync {
    /// Ready to read when there are [`news`](Self::news).
    fn fd(&self) -> RawFd;

    /// Works from now on, unless it does already: with those of the card's first two `rings` that are ready, whose `kicks` it hears.
    ///
    /// # Errors
    /// The host refuses it.
    fn start(&self, rings: &[Ring], features: u64, kicks: &[EventFd]) -> Result<(), Broken>;

    /// Has no longer a hand in guest memory after this, and the rings are as it left them.
    ///
    /// # Errors
    /// It cannot be said how it left them.
    fn stop(&self, rings: &mut [Ring], memory: &GuestMemory) -> Result<(), Broken>;

    /// True if the driver is to be told that buffers were used since the last call.
    ///
    /// # Errors
    /// A ring breaks the protocol.
    fn news(&self) -> Result<bool, Broken>;
}

/// A set of virtio-net's `GUEST_*` feature bits: checksums not computed, segments not cut, in frames for the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads(pub u64);

/// UDP segmentation.
pub(super) const USO: [u32; 2] = [VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6];

/// Bit for the guest's receive side, and the bit of the same ability on its transmit side.
const PAIRS: [(u32, u32); 6] = [
    (VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_HOST_ECN),
    (VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_UFO),
    (VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_HOST_USO),
];

impl Offloads {
    /// Every bit there is.
    pub const ALL: Self = Self(
        1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO6
            | 1 << VIRTIO_NET_F_GUEST_ECN
            | 1 << VIRTIO_NET_F_GUEST_UFO
            | 1 << VIRTIO_NET_F_GUEST_USO4
            | 1 << VIRTIO_NET_F_GUEST_USO6,
    );

    /// Those among `features`.
    pub fn of(features: u64) -> Self {
        Self(features & Self::ALL.0)
    }

    /// True if `bit` is in the set.
    pub fn has(self, bit: u32) -> bool {
        self.0 & 1 << bit != 0
    }

    /// The set without these bits.
    pub fn without(self, bits: &[u32]) -> Self {
        Self(bits.iter().fold(self.0, |all, bit| all & !(1 << bit)))
    }

    /// Features to offer for a backend that can do these: who takes unfinished frames also gives them.
    pub fn features(self) -> u64 {
        let given = PAIRS.iter().filter(|(guest, _)| self.has(*guest)).fold(0, |all, (_, host)| all | 1 << host);
        self.0 | given
    }
}
