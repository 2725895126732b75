//! The virtio-mmio transport, version 2 (virtio 1.2 §4.2): registers, negotiation, queue set-up, interrupts.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::EventFd;

use super::gate::Gate;
use super::registers::Registers;
use super::worker::{Core, Worker};
use super::{Broken, Interrupt, Model, QUEUE_SIZE_MAX, Ring};
use crate::bus::BusDevice;
use crate::devices::{Device, DeviceError};
use crate::irq::IrqLine;
use crate::memory::GuestMemory;

/// Offset of QueueNotify: writing a queue's number there has the effect of writing 1 to the queue's event.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt"
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "QEMU", the vendor that guests of this machine see.
const VENDOR: u32 = 0x554d_4551;
/// Offset of the device's configuration space.
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;

/// Features of every device: those of the rings, and virtio 1.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// A virtio device in its MMIO window.
///
/// A loaded device is paused until [`resume`](Device::resume): it does nothing before the guest runs here.
pub struct Virtio<M: Model> {
    name: String,
    pub(super) registers: Registers,
    pub(super) worker: Worker<M>,
    /// Features of model, rings and transport.
    pub(super) offered: u64,
    /// Whether the device was loaded and not resumed since.
    pub(super) arriving: bool,
}

impl<M: Model> Virtio<M> {
    /// Makes a device after reset. `name` is its section, as `virtio-mmio@00000000feb00e00/virtio-blk`.
    ///
    /// # Errors
    /// The host denied a thread or an event.
    pub fn new(name: String, model: M, memory: GuestMemory, irq: Arc<dyn IrqLine>) -> io::Result<Self> {
        let core = Core::new(model, memory, Interrupt::new(irq), Gate::new(true)?)?;
        let thread = name.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(Self::with_worker(name, Worker::start(core, &thread)?))
    }

    /// Makes a device without a thread, for tests: it works deterministically when [`work`](Self::work) is called.
    ///
    /// # Errors
    /// The host denied an event.
    pub fn without_thread(name: String, model: M, memory: GuestMemory, irq: Arc<dyn IrqLine>) -> io::Result<Self> {
        let core = Core::new(model, memory, Interrupt::new(irq), Gate::new(false)?)?;
        Ok(Self::with_worker(name, Worker::without_thread(core)))
    }

    fn with_worker(name: String, worker: Worker<M>) -> Self {
        let offered = FEATURES | worker.core.lock().model.features();
        Self { name, registers: Registers::new(M::QUEUES.len()), worker, offered, arriving: false }
    }

    /// Works unless the device is paused; returns the time until there is more work, if that is known.
    pub fn work(&mut self) -> Option<Duration> {
        let core = &self.worker.core;
        if core.gate.is_closing() { None } else { core.work() }
    }

    /// Runs `work` on the model between two pieces of the device's work.
    pub fn change<R>(&mut self, work: impl FnOnce(&mut M, &Interrupt) -> R) -> R {
        let core = &self.worker.core;
        core.quiesced(|active| work(&mut active.model, &core.interrupt))
    }

    /// Section name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns an event for each queue: a write to it is a kick, which KVM does on a guest's write to [`QUEUE_NOTIFY`].
    pub fn kicks(&self) -> &[EventFd] {
        &self.worker.core.kicks
    }

    /// Features that the driver may choose from.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Negotiated features; none before FEATURES_OK.
    pub fn agreed(&self) -> u64 {
        self.registers.features
    }

    /// Returns why the device needs a reset, if it does.
    pub fn fault(&self) -> Option<String> {
        self.worker.core.fault().map(|Broken(what)| what)
    }

    /// Whether a device may run with `features`: all are offered, and virtio 1 is among them.
    pub(super) fn acceptable(&self, features: u64) -> bool {
        features & !self.offered == 0 && features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn read_register(&mut self, register: u32) -> u32 {
        let ready = |queue: &super::registers::QueueRegisters| u32::from(queue.ready);
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => M::ID,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => match self.registers.device_features_sel {
                0 => self.offered as u32,
                1 => (self.offered >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.registers.queue().map_or(0, |_| u32::from(QUEUE_SIZE_MAX)),
            VIRTIO_MMIO_QUEUE_READY => self.registers.queue().map_or(0, |queue| ready(queue)),
            VIRTIO_MMIO_INTERRUPT_STATUS => u32::from(self.worker.core.interrupt.status()),
            VIRTIO_MMIO_STATUS => u32::from(self.status()),
            // §4.2.2: a length of all ones means that there is no such shared memory region.
            VIRTIO_MMIO_SHM_LEN_LOW | VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            VIRTIO_MMIO_SHM_BASE_LOW | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => self.worker.core.interrupt.generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.registers.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.registers.driver_features_sel = value,
            // §2.2.1: features are negotiated before FEATURES_OK only.
            VIRTIO_MMIO_DRIVER_FEATURES if self.registers.status & FEATURES_OK == 0 => {
                if let Some(word) = self.registers.driver_features.get_mut(self.registers.driver_features_sel as usize)
                {
                    *word = value;
                }
            }
            // An impossible number selects no queue; the register is 16 bits wide in the stream.
            VIRTIO_MMIO_QUEUE_SEL => self.registers.queue_sel = value.try_into().unwrap_or(u16::MAX),
            VIRTIO_MMIO_QUEUE_NOTIFY => self.kick(value),
            VIRTIO_MMIO_INTERRUPT_ACK => self.worker.core.interrupt.acknowledge(value as u8),
            VIRTIO_MMIO_STATUS => self.write_status(value as u8),
            VIRTIO_MMIO_QUEUE_READY => self.write_ready(value & 1 != 0),
            _ => self.write_queue(register, value),
        }
    }

    /// Writes the layout of the selected queue, which is fixed while the queue is ready (§4.2.2.2).
    fn write_queue(&mut self, register: u32, value: u32) {
        let Some(queue) = self.registers.queue().filter(|queue| !queue.ready) else { return };
        match register {
            VIRTIO_MMIO_QUEUE_NUM => queue.num = value.try_into().unwrap_or(0),
            VIRTIO_MMIO_QUEUE_DESC_LOW => queue.descriptors[0] = value,
            VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.descriptors[1] = value,
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.available[0] = value,
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.available[1] = value,
            VIRTIO_MMIO_QUEUE_USED_LOW => queue.used[0] = value,
            VIRTIO_MMIO_QUEUE_USED_HIGH => queue.used[1] = value,
            _ => {}
        }
    }

    fn kick(&self, queue: u32) {
        if let Some(kick) = self.kicks().get(queue as usize) {
            // Fails only if the counter is full, and then the kick is pending already.
            let _ = kick.write(1);
        }
    }

    fn write_ready(&mut self, ready: bool) {
        let index = usize::from(self.registers.queue_sel);
        let features = self.registers.features;
        let Some(queue) = self.registers.queue().filter(|queue| queue.ready != ready) else { return };
        let core = &self.worker.core;
        let ring = if ready { Ring::at(queue.layout(), features, &core.memory) } else { Ok(Ring::new()) };
        match ring {
            Ok(ring) => {
                queue.ready = ready;
                core.quiesced(|active| active.rings[index] = ring);
            }
            Err(broken) => core.set_fault(Some(broken)),
        }
    }

    pub(super) fn status(&self) -> u8 {
        let needs_reset = if self.worker.core.fault().is_some() { NEEDS_RESET } else { 0 };
        self.registers.status | needs_reset
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            return self.reset();
        }
        // §2.1.1: the driver clears no bit. Only the device sets NEEDS_RESET.
        let mut status = self.registers.status | (value & !NEEDS_RESET);
        let set = status & !self.registers.status;
        if set & FEATURES_OK != 0 {
            let wanted = self.registers.wanted();
            if self.acceptable(wanted) {
                self.registers.features = wanted;
                self.worker.core.quiesced(|active| active.agree(wanted));
            } else {
                status &= !FEATURES_OK;
            }
        }
        // §3.1.1: a driver whose FEATURES_OK was refused must not continue.
        if status & FEATURES_OK == 0 {
            status &= !DRIVER_OK;
        }
        self.registers.status = status;
        if set & status & DRIVER_OK != 0 {
            self.worker.core.quiesced(|active| active.driving = true);
        }
    }

    fn reset(&mut self) {
        let core = &self.worker.core;
        core.quiesced(|active| {
            active.driving = false;
            active.rings.fill_with(Ring::new);
            active.model.reset();
        });
        core.set_fault(None);
        core.interrupt.restore(0);
        self.registers = Registers::new(M::QUEUES.len());
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.worker.core.quiesced(|active| {
            if offset + data.len() <= active.model.config().len() {
                active.model.write_config(offset, data);
            }
        });
    }
}

/// Registers are 32 bits wide and aligned (§4.2.2.2); other accesses are ignored and read zero.
impl<M: Model> BusDevice for Virtio<M> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG {
            self.worker.core.config.read((offset - CONFIG) as usize, data);
        } else if let (0, Ok(word)) = (offset % 4, <&mut [u8; 4]>::try_from(&mut *data)) {
            *word = self.read_register(offset as u32).to_le_bytes();
        } else {
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            self.write_config((offset - CONFIG) as usize, data);
        } else if let (0, Ok(word)) = (offset % 4, <[u8; 4]>::try_from(data)) {
            self.write_register(offset as u32, u32::from_le_bytes(word));
        }
    }
}

impl<M: Model> Device for Virtio<M> {
    fn pause(&mut self, deadline: Duration) -> Result<(), DeviceError> {
        if self.worker.core.pause(Some(deadline)) {
            return Ok(());
        }
        Err(DeviceError {
            device: self.name.clone(),
            what: format!(
                "the host did not finish a piece of a request within {deadline:?}; it goes on, try again later"
            ),
        })
    }

    fn loaded(&mut self) {
        if self.arriving {
            self.look_at_rings();
        }
    }

    fn resume(&mut self) {
        let interrupt = &self.worker.core.interrupt;
        interrupt.restore(interrupt.status());
        let arriving = std::mem::take(&mut self.arriving);
        self.worker.core.quiesced(|active| {
            // As in a loaded device.
            active.rings.iter_mut().for_each(Ring::look_again);
            if arriving {
                active.model.arrive(interrupt);
            }
        });
        self.worker.core.gate.resume();
    }
}

impl<M: Model> fmt::Debug for Virtio<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Virtio").field("name", &self.name).field("registers", &self.registers).finish_non_exhaustive()
    }
}
