//! A virtio device as a section of QEMU's stream: one field `virtio` of hand-written bytes (see [`super::wire`]).

use std::time::Duration;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use vmstate::codec::{Reader, Writer};
use vmstate::error::{Error, ErrorKind, Result};
use vmstate::schema::{Description, Kind, MaybeStatic};
use vmstate::{VmState, Wire};

use super::mmio::Virtio;
use super::registers::{QueueRegisters, Registers};
use super::wire::{ALIGN, Head, QueueHead, RingAddresses, Tail};
use super::{Broken, Model, QUEUE_SIZE_MAX, Ring};

/// How long a device that was not paused may take to finish its current piece of work; it cannot be saved otherwise.
const TIMEOUT: Duration = Duration::from_secs(2);

const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;

/// State that a load replaces.
#[derive(Debug)]
pub struct Snapshot<S> {
    registers: Registers,
    interrupt_status: u8,
    fault: Option<Broken>,
    rings: Vec<Ring>,
    driving: bool,
    model: S,
    /// Whether the device is paused; a load leaves it paused.
    paused: bool,
    /// Whether the device was loaded and not resumed since.
    arriving: bool,
}

impl<M: Model> Virtio<M> {
    fn replace(&mut self, with: Snapshot<M::State>) {
        let features = with.registers.features;
        self.registers = with.registers;
        self.arriving = with.arriving;
        let core = &self.worker.core;
        core.pause(None);
        core.quiesced(|active| {
            active.rings = with.rings;
            active.driving = with.driving;
            active.model.reset();
            if features != 0 {
                active.agree(features);
            }
            active.model.set_state(with.model);
        });
        core.restore_fault(with.fault);
        core.interrupt.restore(with.interrupt_status);
        if !with.paused {
            core.gate.resume();
        }
    }

    fn head(&self, rings: &[Ring], config: Vec<u8>) -> Head {
        let queues = self.registers.queues.iter().zip(rings).zip(M::QUEUES);
        Head {
            device_features_sel: self.registers.device_features_sel,
            driver_features_sel: self.registers.driver_features_sel,
            guest_page_shift: 0,
            status: self.status(),
            interrupt_status: self.worker.core.interrupt.status(),
            queue_sel: self.registers.queue_sel,
            features_low: self.registers.features as u32,
            config_len: config.len() as u32,
            config,
            queue_count: M::QUEUES.len() as u32,
            queues: queues
                .map(|((registers, ring), default)| QueueHead {
                    size: u32::from(size(registers, *default)),
                    align: ALIGN,
                    descriptors: if registers.ready { registers.layout().descriptors } else { 0 },
                    next_available: ring.next_available(),
                })
                .collect(),
        }
    }

    fn tail(&self) -> Tail {
        let mut tail = Tail { features: self.registers.features, ..Tail::default() };
        for (index, (registers, default)) in self.registers.queues.iter().zip(M::QUEUES).enumerate() {
            let layout = registers.layout();
            if registers.ready {
                tail.rings.0[index] = RingAddresses { available: layout.available, used: layout.used };
            }
            tail.default_sizes.0[index] = u32::from(*default);
            tail.chosen_size |= size(registers, *default) != *default;
            tail.transport.queues.0[index] = *registers;
        }
        tail.transport.driver_features = self.registers.driver_features;
        tail.broken = self.worker.core.fault().is_some();
        tail.started = self.registers.status & DRIVER_OK != 0;
        tail
    }

    /// Checks everything that was read against this device, and builds the state for [`replace`](Self::replace).
    fn accept(&self, head: &Head, tail: &Tail, model: M::State) -> Result<Snapshot<M::State>, String> {
        let status = head.status & !NEEDS_RESET;
        let features = self.accept_features(head, tail, status)?;
        let registers = Registers {
            device_features_sel: head.device_features_sel,
            driver_features_sel: head.driver_features_sel,
            driver_features: tail.transport.driver_features,
            features,
            queue_sel: head.queue_sel,
            status,
            queues: tail.transport.queues.0[..M::QUEUES.len()].to_vec(),
        };
        if status & DRIVER_OK != 0 && status & FEATURES_OK == 0 || tail.started != (status & DRIVER_OK != 0) {
            return Err(format!("status {status:#x} contradicts itself"));
        }
        if head.queues.len() != M::QUEUES.len() {
            return Err(format!("{} queues, the device has {}", head.queues.len(), M::QUEUES.len()));
        }
        if tail.transport.queues.0[M::QUEUES.len()..].iter().any(|queue| *queue != QueueRegisters::default()) {
            return Err(format!("registers of a queue past the device's {}", M::QUEUES.len()));
        }
        if tail.disabled {
            return Err("the device was disabled at its source, and there is no way to enable one".into());
        }
        let is_broken = tail.broken || head.status & NEEDS_RESET != 0;
        let fault = is_broken.then(|| Broken::new("the device was broken before the migration"));
        let interrupt_status = head.interrupt_status;
        let driving = status & DRIVER_OK != 0;
        let mut rings = Vec::with_capacity(M::QUEUES.len());
        for (index, (registers, queue)) in registers.queues.iter().zip(&head.queues).enumerate() {
            let ring = self.accept_ring(registers, *queue, tail.rings.0[index], features);
            rings.push(ring.map_err(|Broken(what)| format!("queue {index}: {what}"))?);
        }
        Ok(Snapshot { registers, interrupt_status, fault, rings, driving, model, paused: true, arriving: true })
    }

    /// Reads the used indices from guest memory. An error in the stream fails the migration; but guest memory is the guest's,
    /// which must not be able to prevent its migration, so a wrong index there only breaks the device.
    pub(super) fn look_at_rings(&self) {
        let core = &self.worker.core;
        let looked = core.quiesced(|active| {
            let driving = active.driving;
            active.rings.iter_mut().filter(|ring| ring.is_ready()).try_for_each(|ring| {
                ring.go_on(&core.memory)?;
                if driving { ring.check_indices(&core.memory) } else { Ok(()) }
            })
        });
        if let Err(broken) = looked
            && core.fault().is_none()
        {
            core.set_fault(Some(broken));
        }
    }

    /// Returns the negotiated features. A source before FEATURES_OK has none, or some that it refused: an earlier minivmm sent
    /// everything that the driver had written, QEMU the offered ones of them. The driver then negotiates again.
    fn accept_features(&self, head: &Head, tail: &Tail, status: u8) -> Result<u64, String> {
        let features = if tail.features == 0 { u64::from(head.features_low) } else { tail.features };
        if features as u32 != head.features_low {
            return Err(format!("features are {features:#x} in a subsection, {:#x} before", head.features_low));
        }
        if status & FEATURES_OK == 0 {
            return Ok(features & self.offered);
        }
        if !self.acceptable(features) {
            return Err(format!("features {features:#x} are not among those offered here, {:#x}", self.offered));
        }
        Ok(features)
    }

    /// Builds a ring at its addresses.
    fn accept_ring(
        &self,
        registers: &QueueRegisters,
        queue: QueueHead,
        addresses: RingAddresses,
        features: u64,
    ) -> Result<Ring, Broken> {
        if !registers.ready {
            return Ok(Ring::new());
        }
        let layout = registers.layout();
        let same = queue.size == u32::from(layout.size)
            && queue.descriptors == layout.descriptors
            && addresses == RingAddresses { available: layout.available, used: layout.used };
        if !same {
            return Err(Broken::new(format_args!("{layout:x?} in the transport, {queue:x?} {addresses:x?} elsewhere")));
        }
        Ring::loaded_at(layout, features, queue.next_available, &self.worker.core.memory)
    }
}

fn size(registers: &QueueRegisters, default: u16) -> u16 {
    if registers.num == 0 { default } else { registers.num }
}

impl<M: Model> Wire for Virtio<M> {
    type Undo = Snapshot<M::State>;
    const KIND: Kind = Kind::Struct(MaybeStatic::Static(M::DESCRIPTION));

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        debug_assert!(M::QUEUES.iter().all(|size| *size <= QUEUE_SIZE_MAX));
        // A writer of its own, for the length; errors of the inner parts are reported by the outer one.
        let mut inner = Writer::new();
        let saved = self.worker.core.quiesced_within(TIMEOUT, |active| {
            self.head(&active.rings, active.model.config()).save(&mut inner)?;
            active.model.save_state(&mut inner)
        });
        saved.ok_or_else(|| Error::new(ErrorKind::Rejected, "the host keeps the device busy; try again later"))??;
        self.tail().save(&mut inner)?;
        out.outcome(inner.len() as u32);
        out.bytes(inner.as_slice());
        Ok(())
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        self.load_version(input, M::DESCRIPTION.version)
    }

    fn remember(&self) -> Self::Undo {
        let core = &self.worker.core;
        let (rings, driving, model) = core.quiesced(|active| {
            (active.rings.iter().map(Ring::duplicate).collect(), active.driving, active.model.state())
        });
        Snapshot {
            registers: self.registers.clone(),
            interrupt_status: core.interrupt.status(),
            fault: core.fault(),
            rings,
            driving,
            model,
            paused: core.gate.is_paused(),
            arriving: self.arriving,
        }
    }

    fn undo(&mut self, undo: Self::Undo) {
        self.replace(undo);
    }
}

impl<M: Model> VmState for Virtio<M> {
    const DESCRIPTION: &'static Description = M::DESCRIPTION;

    fn load_version(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()> {
        let start = input.offset();
        let refuse = |what: String| Error::new(ErrorKind::Rejected, what).at(start).in_field("virtio");
        let ours = M::DESCRIPTION;
        if version != ours.version {
            let what = format!("version {version} is not {}, the only one", ours.version);
            return Err(Error::new(ErrorKind::Incompatible, what).at(start));
        }
        let in_field = |error: Error| error.in_field("virtio");
        let (mut head, mut tail) = (Head::default(), Tail::default());
        head.load(input).map_err(in_field)?;
        let features = u64::from(head.features_low);
        let load_model = |model: &M, input: &mut Reader<'_>| model.load_state(&head.config, features, input);
        let model = self.worker.core.quiesced(|active| load_model(&active.model, input)).map_err(in_field)?;
        tail.load(input).map_err(in_field)?;
        let snapshot = self.accept(&head, &tail, model).map_err(refuse)?;
        self.replace(snapshot);
        Ok(())
    }
}

impl<M: Model> vmstate::Section for Virtio<M> {
    fn description(&self) -> &'static Description {
        Self::DESCRIPTION
    }

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        Wire::save(self, out)
    }

    fn load(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()> {
        self.load_or_keep(input, version)
    }
}
