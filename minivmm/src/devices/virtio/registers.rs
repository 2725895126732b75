//! Values that the driver wrote to the transport's registers, unchanged, for the stream.

use vmstate::VmState;

use super::queue::Layout;

/// Registers of one queue; addresses as low and high word. In the stream it is QEMU's struct of this name.
#[derive(VmState, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[vmstate(name = "virtio_mmio/queue_state", version = 1)]
pub(super) struct QueueRegisters {
    /// 0 until the driver writes it: the queue has its default size then.
    pub(super) num: u16,
    pub(super) ready: bool,
    pub(super) descriptors: [u32; 2],
    pub(super) available: [u32; 2],
    pub(super) used: [u32; 2],
}

impl QueueRegisters {
    pub(super) fn layout(&self) -> Layout {
        let address = |words: [u32; 2]| u64::from(words[1]) << 32 | u64::from(words[0]);
        Layout {
            size: self.num,
            descriptors: address(self.descriptors),
            available: address(self.available),
            used: address(self.used),
        }
    }
}

/// Registers of one transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    /// Low and high word, as written by the driver.
    pub(super) driver_features: [u32; 2],
    /// Negotiated features: the driver's words at FEATURES_OK; 0 before.
    pub(super) features: u64,
    pub(super) queue_sel: u16,
    pub(super) status: u8,
    pub(super) queues: Vec<QueueRegisters>,
}

impl Registers {
    pub(super) fn new(queues: usize) -> Self {
        Self {
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: [0; 2],
            features: 0,
            queue_sel: 0,
            status: 0,
            queues: vec![QueueRegisters::default(); queues],
        }
    }

    /// Features that the driver has requested.
    pub(super) fn wanted(&self) -> u64 {
        u64::from(self.driver_features[1]) << 32 | u64::from(self.driver_features[0])
    }

    pub(super) fn queue(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::from(self.queue_sel))
    }
}
