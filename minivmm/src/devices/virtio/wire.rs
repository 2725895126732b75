//! Layout of a virtio device in QEMU's stream: the bytes that QEMU's hand-written `virtio_save` sends for a device on
//! virtio-mmio, around the device's own part. `docs/minivmm-devices.md` explains them byte by byte.

use vmstate::VmState;

use super::registers::QueueRegisters;

/// Number of queues in the stream, whatever the device has (QEMU's `VIRTIO_QUEUE_MAX`).
pub(super) const QUEUES: usize = 1024;

/// Ring alignment that QEMU sends; only legacy transports use it.
pub(super) const ALIGN: u32 = 4096;

/// Fields before the device's own part.
#[derive(VmState, Debug, Default)]
#[vmstate(name = "virtio", version = 1)]
pub(super) struct Head {
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    /// For legacy devices only.
    pub(super) guest_page_shift: u32,
    pub(super) status: u8,
    pub(super) interrupt_status: u8,
    pub(super) queue_sel: u16,
    pub(super) features_low: u32,
    pub(super) config_len: u32,
    #[vmstate(len = config_len, max = 256, buffer)]
    pub(super) config: Vec<u8>,
    pub(super) queue_count: u32,
    #[vmstate(len = queue_count, max = QUEUES)]
    pub(super) queues: Vec<QueueHead>,
}

/// One queue in [`Head`].
#[derive(VmState, Clone, Copy, Debug, Default)]
#[vmstate(name = "virtio/queue", version = 1)]
pub(super) struct QueueHead {
    /// Size that the driver chose, else the default.
    pub(super) size: u32,
    pub(super) align: u32,
    /// 0 until the queue is ready.
    pub(super) descriptors: u64,
    /// `last_avail_idx`: index of the next chain that the device takes.
    pub(super) next_available: u16,
}

/// Fields after the device's own part, which are subsections.
#[derive(VmState, Debug, Default)]
#[vmstate(name = "virtio", version = 1)]
#[vmstate(subsection(name = "virtio/64bit_features", version = 1, needed = Self::has_high_features))]
#[vmstate(subsection(name = "virtio/virtqueues", version = 1, needed = Self::always))]
#[vmstate(subsection(name = "virtio/ringsize", version = 1, needed = Self::has_chosen_size))]
#[vmstate(subsection(name = "virtio/broken", version = 1, needed = Self::is_broken))]
#[vmstate(subsection(name = "virtio/extra_state", version = 1, needed = Self::always))]
#[vmstate(subsection(name = "virtio/started", version = 1, needed = Self::is_started))]
#[vmstate(subsection(name = "virtio/disabled", version = 1, needed = Self::is_disabled))]
pub(super) struct Tail {
    #[vmstate(subsection = "virtio/64bit_features")]
    pub(super) features: u64,
    #[vmstate(subsection = "virtio/virtqueues")]
    pub(super) rings: PerQueue<RingAddresses>,
    /// Sizes after reset; 0 for queues that do not exist.
    #[vmstate(subsection = "virtio/ringsize")]
    pub(super) default_sizes: PerQueue<u32>,
    /// Whether a queue's size differs from its default.
    #[vmstate(skip)]
    pub(super) chosen_size: bool,
    #[vmstate(subsection = "virtio/broken")]
    pub(super) broken: bool,
    #[vmstate(subsection = "virtio/extra_state")]
    pub(super) transport: Transport,
    #[vmstate(subsection = "virtio/started")]
    pub(super) started: bool,
    #[vmstate(subsection = "virtio/disabled")]
    pub(super) disabled: bool,
}

impl Tail {
    fn has_high_features(&self) -> bool {
        self.features >> 32 != 0
    }

    fn always(&self) -> bool {
        true
    }

    fn has_chosen_size(&self) -> bool {
        self.chosen_size
    }

    fn is_broken(&self) -> bool {
        self.broken
    }

    fn is_started(&self) -> bool {
        self.started
    }

    fn is_disabled(&self) -> bool {
        self.disabled
    }
}

/// Addresses of the rings; the descriptor table's is in [`QueueHead`].
#[derive(VmState, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[vmstate(name = "virtqueue_state", version = 1)]
pub(super) struct RingAddresses {
    pub(super) available: u64,
    pub(super) used: u64,
}

/// The transport's registers, in a struct whose only content is a subsection.
#[derive(VmState, Debug, Default)]
#[vmstate(name = "virtio_mmio", version = 1)]
#[vmstate(subsection(name = "virtio_mmio/state", version = 1, needed = Self::always))]
pub(super) struct Transport {
    #[vmstate(subsection = "virtio_mmio/state")]
    pub(super) driver_features: [u32; 2],
    #[vmstate(subsection = "virtio_mmio/state")]
    pub(super) queues: PerQueue<QueueRegisters>,
}

impl Transport {
    fn always(&self) -> bool {
        true
    }
}

/// One element for each queue of the stream, on the heap.
#[derive(Debug)]
pub(super) struct PerQueue<T>(pub(super) Box<[T; QUEUES]>);

impl<T: Default> Default for PerQueue<T> {
    fn default() -> Self {
        Self(Box::new(std::array::from_fn(|_| T::default())))
    }
}

impl<T: vmstate::Wire> vmstate::Wire for PerQueue<T> {
    type Undo = <[T; QUEUES] as vmstate::Wire>::Undo;
    const KIND: vmstate::schema::Kind = <[T; QUEUES] as vmstate::Wire>::KIND;

    fn save(&mut self, out: &mut vmstate::codec::Writer) -> vmstate::Result<()> {
        self.0.save(out)
    }

    fn load(&mut self, input: &mut vmstate::codec::Reader<'_>) -> vmstate::Result<()> {
        self.0.load(input)
    }

    fn remember(&self) -> Self::Undo {
        self.0.as_ref().remember()
    }

    fn undo(&mut self, undo: Self::Undo) {
        self.0.as_mut().undo(undo);
    }
}
