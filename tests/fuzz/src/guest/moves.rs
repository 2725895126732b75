//! Moves of the guest to another device, and loads of damaged states.

use minivmm::bus::BusDevice;
use minivmm::devices::Device;
use minivmm::devices::virtio::Model;
use vm_memory::{Bytes, GuestAddress};

use super::driver::Driver;
use super::hosts::Host;
use super::world::{CONFIG_GENERATION, STATUS, World};

impl<H: Host> Driver<H> {
    /// Moves the guest to another device, after which there are both. With `to_copy`, if there are two devices already,
    /// the copy becomes the original.
    pub(super) fn move_on(&mut self, to_copy: bool) {
        let was_paused = self.paused;
        if !was_paused {
            self.pause();
        }
        let mut sections: Vec<_> = self.worlds.iter_mut().map(World::saved).collect();
        let chosen = if to_copy { self.worlds.len() - 1 } else { 0 };
        let mut original = self.worlds.swap_remove(chosen);
        let section = sections[chosen].clone();
        if let [ours, theirs] = &mut sections[..] {
            // The copy may have an interrupt pending that the driver did not ask for.
            let interrupt_status = 13;
            theirs[interrupt_status] &= ours[interrupt_status] | !1;
            assert!(ours == theirs, "two devices with the same history save different states");
        }
        let mut copy = original.fork();
        copy.pause();
        let rest =
            copy.load(&section).unwrap_or_else(|error| panic!("a state that a guest reached does not load: {error}"));
        assert_eq!(rest, 0, "the load leaves bytes of the saved state");
        // A load checks the available indices of all queues, a device only those of the queues it works on.
        let found_broken = copy.is_broken() && !original.is_broken();
        if !found_broken {
            assert!(copy.saved() == section, "the loaded state saves as other bytes");
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
        self.arriving = true;
        if !was_paused {
            self.resume();
        }
    }

    /// Loads a damaged section: the device must refuse it, or work on without a panic.
    pub(super) fn damage(&mut self, position: usize, change: u8) {
        let mut section = self.worlds[0].saved();
        let mut copy = self.worlds[0].fork();
        let position = position % section.len();
        section[position] ^= change;
        copy.pause();
        // Bytes after the section are an error of the stream.
        if copy.load(&section).is_ok_and(|rest| rest == 0) {
            Self::go_on_after_damage(copy);
        }
    }

    fn go_on_after_damage(mut copy: World<H>) {
        let loaded = copy.saved();
        let mut again = copy.fork();
        let rest = again
            .load(&loaded)
            .unwrap_or_else(|error| panic!("the state saved after the damage does not load: {error}"));
        assert_eq!(rest, 0, "the load leaves bytes of the saved state");
        assert!(again.saved() == loaded, "the state saved after the damage loads as another one");
        copy.device.resume();
        copy.drain();
        copy.device.write(STATUS, &[0; 4]);
        assert_eq!(copy.read32(STATUS), 0, "a reset restores every device");
    }
}

/// Whether the card at the destination announces itself to the network, which the original does not do.
fn announces(section: &[u8]) -> bool {
    let features = u32::from_be_bytes(*section[16..].first_chunk().expect("a head"));
    let needed = 1 << 16 | 1 << 17 | 1 << 21;
    features & needed == needed
}

/// Whether the used indices, which are in guest memory, are those of the device: a guest that overwrites them changes
/// what its device does after a move.
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
