//! Operations of a program at a virtio device, or at two of which one took the other's place.

use minivmm::bus::BusDevice;
use minivmm::devices::Device;
use minivmm::devices::virtio::Model;
use vm_memory::{Bytes, GuestAddress};

use super::hosts::Host;
use super::program::Program;
use super::world::{CONFIG_GENERATION, INTERRUPT_STATUS, MEMORY, STATUS, World};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Bytes between two queues; a queue has descriptors, available ring and used ring at these offsets.
const QUEUE: u64 = 0x4000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Where the indirect tables of [`Driver::request`] lie, and its buffers: in one of so many slots each.
const TABLES: u64 = 3 * QUEUE;
const DATA: u64 = 4 * QUEUE;
const DATA_BYTES: u64 = MEMORY as u64 / 4;
const SLOT: u64 = 0x800;
const SLOTS: u64 = 16;
/// Bits of the pieces of a request: it has an indirect table, and is eight times as large, but for
/// its last byte.
pub(super) const IN_TABLE: u8 = 0x80;
pub(super) const LARGE: u8 = 0x40;
/// Bytes of a request that the program says, as a disk's header and a range to erase.
pub(super) const FIRST_BYTES: usize = 32;

/// Operations; the argument is a queue where one is needed.
pub(super) mod operation {
    /// Register number, value.
    pub(in super::super) const WRITE: u8 = 0;
    /// Offset, and as many bytes as the argument says.
    pub(in super::super) const WRITE_BYTES: u8 = 1;
    /// Offset; the argument is the binary logarithm of the width.
    pub(in super::super) const READ: u8 = 2;
    /// Address, length, bytes.
    pub(in super::super) const STORE: u8 = 3;
    /// Index, address, length, flags, next.
    pub(in super::super) const DESCRIPTOR: u8 = 4;
    /// Head.
    pub(in super::super) const PUBLISH: u8 = 5;
    /// Available index.
    pub(in super::super) const AVAILABLE_INDEX: u8 = 6;
    pub(in super::super) const NOTIFY: u8 = 7;
    /// Features; the argument is the binary logarithm of the queues' size.
    pub(in super::super) const START: u8 = 8;
    /// Argument 0: pause.
    pub(in super::super) const PAUSE_OR_RESUME: u8 = 9;
    /// Argument 1: from now on, the copy is the original.
    pub(in super::super) const MOVE: u8 = 10;
    /// As the host wants.
    pub(in super::super) const HOST: u8 = 11;
    /// Position and change of a byte of the section.
    pub(in super::super) const DAMAGE: u8 = 12;
    /// Flags of the available ring, index of the used event.
    pub(in super::super) const WISHES: u8 = 13;
    /// Pieces, bytes the device reads and writes, the first bytes of what it reads.
    pub(in super::super) const REQUEST: u8 = 14;
}

/// A driver of one device. After a move there are two, which are to do the same.
pub(super) struct Driver<H: Host> {
    worlds: Vec<World<H>>,
    queue_size: u16,
    paused: bool,
    /// A limit has stopped the device within its work.
    resting: bool,
    /// Descriptors and buffers that [`request`](Self::request) used.
    next: u64,
}

impl<H: Host> Driver<H> {
    pub(super) fn new(host: H) -> Self {
        Self { worlds: vec![World::new(host)], queue_size: 16, paused: false, resting: false, next: 0 }
    }

    pub(super) fn run(&mut self, program: &mut Program<'_>) {
        while let Some((operation, argument)) = program.operation() {
            let queue = u64::from(argument) % H::Model::QUEUES.len() as u64;
            match operation {
                operation::WRITE => self.write32(4 * u64::from(program.u8()), program.u32()),
                operation::WRITE_BYTES => self.write(u64::from(program.u16() & 0x3ff), program.bytes(argument.into())),
                operation::READ => self.read(u64::from(program.u16() & 0x3ff), 1 << (argument & 3)),
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
                operation::START => self.start(program.u64(), 1 << argument.min(10)),
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
                _ => self.work(),
            }
        }
        self.move_on(false);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (STATUS, [0, _, _, _]) = (offset, data) {
            if self.worlds.iter().any(|world| world.host.is_held()) {
                self.worlds.iter().for_each(|world| world.host.forget_held());
            }
            self.resting = false;
        }
        self.worlds.iter_mut().for_each(|world| world.device.write(offset, data));
    }

    fn write32(&mut self, register: u64, value: u32) {
        self.write(register, &value.to_le_bytes());
    }

    fn read(&mut self, offset: u64, width: usize) {
        let answers: Vec<_> = self.worlds.iter_mut().map(|world| world.read(offset, width)).collect();
        let compared_elsewhere = [INTERRUPT_STATUS, CONFIG_GENERATION].contains(&offset);
        if !compared_elsewhere && let [ours, theirs] = answers[..] {
            assert_eq!(ours, theirs, "{width} bytes at {offset:#x}");
        }
    }

    fn store(&self, address: u64, bytes: &[u8]) {
        for world in &self.worlds {
            // Where memory ends, the rest is lost.
            let _ = world.memory.write(bytes, GuestAddress(address));
        }
    }

    fn load16(&self, address: u64) -> u16 {
        self.worlds[0].memory.read_obj(GuestAddress(address)).unwrap_or(0)
    }

    fn publish(&self, queue: u64, head: u16) {
        let available = queue * QUEUE + AVAILABLE;
        let index = self.load16(available + 2);
        self.store(available + 4 + 2 * u64::from(index % self.queue_size), &head.to_le_bytes());
        self.store(available + 2, &index.wrapping_add(1).to_le_bytes());
    }

    fn notify(&mut self, queue: u32) {
        self.write32(0x050, queue);
        self.work();
    }

    /// Lets the devices work. Two are only alike where both have nothing left to do.
    fn work(&mut self) {
        if self.paused {
            return;
        }
        if let [original, copy] = &mut self.worlds[..] {
            original.drain();
            copy.drain();
            original.compare(copy);
        } else {
            self.resting = self.worlds[0].device.work().is_some();
        }
    }

    fn pause(&mut self) {
        self.work();
        self.worlds.iter_mut().for_each(World::pause);
        self.paused = true;
    }

    fn resume(&mut self) {
        self.worlds.iter_mut().for_each(|world| world.device.resume());
        // Whoever arrives may have announced itself.
        self.worlds.iter().for_each(|world| world.host.begin());
        self.paused = false;
        self.work();
    }

    /// virtio 1.2 §3.1.1, with those of `features` that are offered, and VIRTIO_F_VERSION_1.
    fn start(&mut self, features: u64, size: u16) {
        self.queue_size = size;
        for status in [0, 1, 3] {
            self.write32(STATUS, status);
        }
        for (half, word) in [(0, features as u32), (1, (features >> 32) as u32 | 1)] {
            self.write32(0x014, half);
            let offered = self.worlds[0].read32(0x010);
            self.write32(0x024, half);
            self.write32(0x020, word & offered);
        }
        self.write32(STATUS, 11);
        for queue in 0..H::Model::QUEUES.len() as u64 {
            self.write32(0x030, queue as u32);
            self.write32(0x038, size.into());
            let base = queue * QUEUE;
            for (register, address) in [(0x080, base), (0x090, base + AVAILABLE), (0x0a0, base + USED)] {
                self.write32(register, address as u32);
                self.write32(register + 4, 0);
            }
            self.store(base + AVAILABLE, &[0; 4]);
            self.store(base + USED, &[0; 4]);
            self.write32(0x044, 1);
        }
        self.write32(STATUS, 15);
    }

    /// A well-formed chain, in pieces, in a table of its own or not.
    fn request(&mut self, queue: u64, program: &mut Program<'_>) {
        let (pieces, mut reads, mut writes) = (program.u8(), u32::from(program.u16()), u32::from(program.u16()));
        let bytes = program.bytes(FIRST_BYTES.min(reads as usize));
        let slot = self.next % SLOTS;
        self.next += 1;
        self.store(DATA + slot * SLOT, bytes);
        if pieces & LARGE != 0 {
            (reads, writes) = (reads * 8, writes.saturating_sub(1) * 8 + 1);
        }
        let mut buffers = Vec::new();
        for (from, len, count, flags) in [(0, reads, pieces & 3, 0), (reads, writes, pieces >> 2 & 3, WRITE)] {
            let piece = (len / (u32::from(count) + 1) + 1).min(DATA_BYTES as u32);
            for at in (0..len).step_by(piece as usize) {
                let address = DATA + (slot * SLOT + u64::from(from + at)) % DATA_BYTES;
                buffers.push((address, piece.min(len - at), flags));
            }
        }
        let size = u64::from(self.queue_size);
        let first = slot * 8 % size;
        let indirect = pieces & IN_TABLE != 0;
        let (table, base, entries) =
            if indirect { (TABLES + slot * 0x100, 0, 16) } else { (queue * QUEUE, first, size) };
        for (position, &(address, len, flags)) in (0u64..).zip(&buffers) {
            let more = if position as usize + 1 < buffers.len() { NEXT } else { 0 };
            let next = (base + position + 1) % entries;
            self.store(
                table + 16 * ((base + position) % entries),
                &descriptor(address, len, flags | more, next as u16),
            );
        }
        if indirect {
            let entry = descriptor(table, 16 * buffers.len() as u32, INDIRECT, 0);
            self.store(queue * QUEUE + 16 * first, &entry);
        }
        self.publish(queue, first as u16);
        self.notify(queue as u32);
    }

    /// Moves the guest to another device; from then on there are both. `to_copy`: of two that there are already, the copy is
    /// the original.
    fn move_on(&mut self, to_copy: bool) {
        let was_paused = self.paused;
        if !was_paused {
            self.pause();
        }
        let mut sections: Vec<_> = self.worlds.iter_mut().map(World::saved).collect();
        let chosen = if to_copy { self.worlds.len() - 1 } else { 0 };
        let mut original = self.worlds.swap_remove(chosen);
        let section = sections[chosen].clone();
        if let [ours, theirs] = &mut sections[..] {
            // An interrupt that nobody asked for.
            let interrupt_status = 13;
            theirs[interrupt_status] &= ours[interrupt_status] | !1;
            assert!(ours == theirs, "two devices that did the same save different states");
        }
        let mut copy = original.fork();
        copy.pause();
        copy.load(&section).unwrap_or_else(|error| panic!("what a guest reached does not load: {error}"));
        // A load looks at the available indices of all queues, a device only at those it needs.
        let found_broken = copy.is_broken() && !original.is_broken();
        if !found_broken {
            assert!(copy.saved() == section, "what was loaded saves as something else");
            for register in (0..0x140).step_by(4).filter(|&register| register != CONFIG_GENERATION) {
                assert_eq!(original.read32(register), copy.read32(register), "register {register:#x}");
            }
        }
        let alike =
            !found_broken && !self.resting && !announces(&section) && used_indices_are_right(&section, &original);
        self.worlds = match (alike, to_copy) {
            (true, _) => vec![original, copy],
            (false, false) => vec![original],
            (false, true) => vec![copy],
        };
        if !was_paused {
            self.resume();
        }
    }

    /// A device that loads a damaged section refuses it, or goes on with it somehow.
    fn damage(&mut self, position: usize, change: u8) {
        let mut section = self.worlds[0].saved();
        let mut copy = self.worlds[0].fork();
        let position = position % section.len();
        section[position] ^= change;
        copy.pause();
        if copy.load(&section).is_err() {
            return;
        }
        let loaded = copy.saved();
        let mut again = copy.fork();
        again.load(&loaded).unwrap_or_else(|error| panic!("what it saved does not load: {error}"));
        assert!(again.saved() == loaded, "what it saved loads as something else");
        copy.device.resume();
        copy.drain();
        copy.device.write(STATUS, &[0; 4]);
        assert_eq!(copy.read32(STATUS), 0, "a reset mends every device");
    }
}

/// True if the card that takes over announces itself, which the other one does not.
fn announces(section: &[u8]) -> bool {
    let features = u32::from_be_bytes(*section[16..].first_chunk().expect("a head"));
    let needed = 1 << 16 | 1 << 17 | 1 << 21;
    features & needed == needed
}

/// True if the used indices, which lie in guest memory, are the device's own: a guest that overwrote them changes what its
/// device does after a move.
fn used_indices_are_right<H: Host>(section: &[u8], world: &World<H>) -> bool {
    let (name, head) = (b"virtio/virtqueues", 20);
    let config = u32::from_be_bytes(*section[head..].first_chunk().expect("a length")) as usize;
    let queues = &section[head + 4 + config + 4..];
    let rings = section.windows(name.len()).position(|window| window == name).expect("the addresses of the rings");
    let rings = &section[rings + name.len() + 4..];
    (0..H::Model::QUEUES.len()).all(|queue| {
        let next_available = u16::from_be_bytes(*queues[18 * queue + 16..].first_chunk().expect("an index"));
        let [available, used] =
            [0, 8].map(|at| u64::from_be_bytes(*rings[16 * queue + at..].first_chunk().expect("an address")));
        let is_ready = available != 0;
        let used_index = world.memory.read_obj::<u16>(GuestAddress(used + 2));
        !is_ready || world.is_broken() || used_index.is_ok_and(|index| index == next_available)
    })
}

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut descriptor = [0; 16];
    descriptor[..8].copy_from_slice(&address.to_le_bytes());
    descriptor[8..12].copy_from_slice(&len.to_le_bytes());
    descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
    descriptor[14..].copy_from_slice(&next.to_le_bytes());
    descriptor
}
