//! Operations of a program on a virtio device, or after a move on two devices, the original and its copy.

use minivmm::bus::BusDevice;
use minivmm::devices::Device;
use minivmm::devices::virtio::Model;
use vm_memory::{Bytes, GuestAddress};

use super::chains::{AVAILABLE, QUEUE, TO_DRIVER, USED, descriptor};
use super::hosts::Host;
use super::world::{CONFIG_GENERATION, INTERRUPT_STATUS, MEMORY, STATUS, World};
use crate::program::Program;

const QUEUE_NOTIFY: u64 = 0x050;
pub(super) const INTERRUPT_ACK: u64 = 0x064;
const CONFIG: u64 = 0x100;
/// VIRTIO_F_EVENT_IDX.
const EVENT_INDEX: u32 = 1 << 29;

/// Operations; the argument is a queue where one is needed.
pub(super) mod operation {
    /// Operands: register number, value.
    pub(in super::super) const WRITE: u8 = 0;
    /// Operands: offset, and as many bytes as the argument says.
    pub(in super::super) const WRITE_BYTES: u8 = 1;
    /// Operand: offset. The argument is the binary logarithm of the width, or from 8 on the width plus seven.
    pub(in super::super) const READ: u8 = 2;
    /// Operands: address, length, bytes.
    pub(in super::super) const STORE: u8 = 3;
    /// Operands: index, address, length, flags, next.
    pub(in super::super) const DESCRIPTOR: u8 = 4;
    /// Operand: head.
    pub(in super::super) const PUBLISH: u8 = 5;
    /// Operand: available index.
    pub(in super::super) const AVAILABLE_INDEX: u8 = 6;
    pub(in super::super) const NOTIFY: u8 = 7;
    /// Operand: features. The argument is the binary logarithm of the queues' size, or from 11 on the step after which
    /// the driver stops.
    pub(in super::super) const START: u8 = 8;
    /// Argument 0 pauses, others resume.
    pub(in super::super) const PAUSE_OR_RESUME: u8 = 9;
    /// With argument 1, the copy takes the place of the original.
    pub(in super::super) const MOVE: u8 = 10;
    /// Operand: for [`Host::act`].
    pub(in super::super) const HOST: u8 = 11;
    /// Operands: position and change of a byte of the section.
    pub(in super::super) const DAMAGE: u8 = 12;
    /// Operands: flags of the available ring, index of the used event.
    pub(in super::super) const WISHES: u8 = 13;
    /// Operands: pieces, number of device-readable and of device-writable bytes, the first device-readable bytes.
    pub(in super::super) const REQUEST: u8 = 14;
    /// Operands: count, size of each buffer, first bytes. The argument is the queue, with
    /// [`TO_DRIVER`](super::TO_DRIVER).
    pub(in super::super) const LONG_CHAIN: u8 = 15;
}

/// The driver of one device; after a move of two devices, which must behave alike.
pub(super) struct Driver<H: Host> {
    pub(super) worlds: Vec<World<H>>,
    pub(super) queue_size: u16,
    pub(super) paused: bool,
    /// The devices were paused at a move, and still are. The guest does nothing meanwhile, because vCPUs resume after
    /// the devices.
    pub(super) arriving: bool,
    /// A rate limit has stopped the device within its work.
    pub(super) resting: bool,
    /// The driver has started the device with the rings where [`start`](Self::start) puts them, and no operation has
    /// written there what a proper driver would not.
    pub(super) tidy: bool,
    pub(super) event_index: bool,
    /// Number of requests that [`request`](Self::request) has made, which selects descriptors and buffers.
    pub(super) next: u64,
}

impl<H: Host> Driver<H> {
    pub(super) fn new(host: H) -> Self {
        Self {
            worlds: vec![World::new(host)],
            queue_size: 16,
            paused: false,
            arriving: false,
            resting: false,
            tidy: false,
            event_index: false,
            next: 0,
        }
    }

    pub(super) fn run(&mut self, program: &mut Program<'_>) {
        while let Some((operation, argument)) = program.operation() {
            let queue = u64::from(argument) % H::Model::QUEUES.len() as u64;
            self.tidy &= !matches!(
                operation,
                operation::STORE
                    | operation::DESCRIPTOR
                    | operation::PUBLISH
                    | operation::AVAILABLE_INDEX
                    | operation::LONG_CHAIN
            );
            let is_guests = !matches!(
                operation,
                operation::READ | operation::PAUSE_OR_RESUME | operation::MOVE | operation::HOST | operation::DAMAGE
            );
            if self.arriving && is_guests {
                self.resume();
            }
            match operation {
                operation::WRITE => {
                    let (register, value) = (4 * u64::from(program.u8()), program.u32());
                    self.tidy &= [QUEUE_NOTIFY, INTERRUPT_ACK].contains(&register) || register >= CONFIG;
                    self.write32(register, value);
                }
                operation::WRITE_BYTES => {
                    let offset = u64::from(program.u16() & 0x3ff);
                    self.tidy &= offset >= CONFIG;
                    self.write(offset, program.bytes(argument.into()));
                }
                operation::READ => {
                    let width = if argument < 8 { 1 << (argument & 3) } else { usize::from(argument) - 7 };
                    self.read(u64::from(program.u16() & 0x3ff), width);
                }
                operation::STORE => {
                    let (address, len) = (program.u32(), program.u8());
                    self.store(u64::from(address) % MEMORY as u64, program.bytes(len.into()));
                }
                operation::DESCRIPTOR => {
                    let index = u64::from(program.u8());
                    let mut address = u64::from(program.u32());
                    if argument & 8 != 0 {
                        address |= u64::from(program.u32()) << 32;
                    }
                    let (len, flags, next) = (program.u32(), program.u8(), program.u8());
                    self.store(queue * QUEUE + 16 * index, &descriptor(address, len, flags.into(), next.into()));
                }
                operation::PUBLISH => self.publish(queue, program.u8().into()),
                operation::AVAILABLE_INDEX => self.store(queue * QUEUE + AVAILABLE + 2, &program.u16().to_le_bytes()),
                operation::NOTIFY => self.notify(argument.into()),
                operation::START => self.start(program.u64(), argument),
                operation::PAUSE_OR_RESUME if argument == 0 => self.pause(),
                operation::PAUSE_OR_RESUME => self.resume(),
                operation::MOVE => self.move_on(argument == 1),
                operation::HOST => {
                    let operand = program.u16();
                    self.worlds.iter().for_each(|world| world.host.act(operand));
                    self.work();
                }
                operation::DAMAGE => self.damage(program.u16().into(), program.u8()),
                operation::WISHES => {
                    self.store(queue * QUEUE + AVAILABLE, &program.u16().to_le_bytes());
                    let used_event = AVAILABLE + 4 + 2 * u64::from(self.queue_size);
                    self.store(queue * QUEUE + used_event, &program.u16().to_le_bytes());
                }
                operation::REQUEST => self.request(queue, program),
                _ => self.long_chain(queue, argument & TO_DRIVER != 0, program),
            }
        }
        self.move_on(false);
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        if let (STATUS, [0, _, _, _]) = (offset, data) {
            if self.worlds.iter().any(|world| world.host.is_held()) {
                self.worlds.iter().for_each(|world| world.host.forget_held());
            }
            self.resting = false;
        }
        self.worlds.iter_mut().for_each(|world| world.device.write(offset, data));
    }

    pub(super) fn write32(&mut self, register: u64, value: u32) {
        self.write(register, &value.to_le_bytes());
    }

    fn read(&mut self, offset: u64, width: usize) {
        let answers: Vec<_> = self.worlds.iter_mut().map(|world| world.read(offset, width)).collect();
        let compared_elsewhere = [INTERRUPT_STATUS, CONFIG_GENERATION].contains(&offset);
        if !compared_elsewhere && let [ours, theirs] = answers[..] {
            assert_eq!(ours, theirs, "{width} bytes at {offset:#x}");
        }
    }

    pub(super) fn store(&self, address: u64, bytes: &[u8]) {
        for world in &self.worlds {
            // Bytes past the end of memory are dropped.
            let _ = world.memory.write(bytes, GuestAddress(address));
        }
    }

    pub(super) fn notify(&mut self, queue: u32) {
        self.write32(QUEUE_NOTIFY, queue);
        self.work();
    }

    /// Lets the devices work. Two devices are compared only once neither has work left.
    pub(super) fn work(&mut self) {
        if self.paused {
            return;
        }
        if let [original, copy] = &mut self.worlds[..] {
            original.drain();
            copy.drain();
            original.compare(copy);
        } else {
            self.resting = self.worlds[0].work();
        }
    }

    pub(super) fn pause(&mut self) {
        self.work();
        self.worlds.iter_mut().for_each(World::pause);
        self.paused = true;
    }

    pub(super) fn resume(&mut self) {
        self.worlds.iter_mut().for_each(|world| world.device.resume());
        // The device that resumes at the destination may have announced itself to the network.
        self.worlds.iter().for_each(|world| world.host.begin());
        (self.paused, self.arriving) = (false, false);
        self.work();
    }

    /// Initializes the device by virtio 1.2 §3.1.1, with the offered ones of `features` and VIRTIO_F_VERSION_1:
    /// completely, with queues of size 2^`argument`, or up to one of the steps.
    fn start(&mut self, features: u64, argument: u8) {
        let (size, steps) = if argument <= 10 { (1 << argument, usize::MAX) } else { (16, argument.into()) };
        self.queue_size = size;
        // Larger rings overlap the next queue.
        self.tidy = argument <= 8;
        for status in [0, 1, 3] {
            self.write32(STATUS, status);
        }
        if steps == 11 {
            return;
        }
        for (half, word) in [(0, features as u32), (1, (features >> 32) as u32 | 1)] {
            self.write32(0x014, half);
            let offered = self.worlds[0].read32(0x010);
            self.write32(0x024, half);
            self.write32(0x020, word & offered);
            if half == 0 {
                self.event_index = word & offered & EVENT_INDEX != 0;
            }
        }
        if steps == 12 {
            return;
        }
        self.write32(STATUS, 11);
        for queue in (0..H::Model::QUEUES.len()).take(steps - 13) {
            self.write32(0x030, queue as u32);
            self.write32(0x038, size.into());
            let base = queue as u64 * QUEUE;
            for (register, address) in [(0x080, base), (0x090, base + AVAILABLE), (0x0a0, base + USED)] {
                self.write32(register, address as u32);
                self.write32(register + 4, 0);
            }
            self.store(base, &[0; AVAILABLE as usize]);
            self.store(base + AVAILABLE, &[0; 4]);
            self.store(base + USED, &[0; 4]);
            self.write32(0x044, 1);
        }
        if steps == usize::MAX {
            self.write32(STATUS, 15);
        }
    }
}
