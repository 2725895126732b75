//! VM generation id: random bytes in guest memory by which a guest detects that it is a copy.
//!
//! ACPI gives the guest their address ("Virtual Machine Generation ID", Microsoft 2012; QEMU's `vmgenid`). The id stays the
//! same through resets, migrations and live updates, where one guest continues, and is renewed where several guests can begin:
//! from a file.

use std::io;

use vm_memory::{Bytes, GuestAddress};
use vmstate::VmState;

use crate::machine_map::GENERATION_ID;
use crate::memory::GuestMemory;

/// The id is a GUID.
const LEN: usize = 16;

/// Address of the guest's id. The id itself is in guest memory only.
#[derive(Debug, Default, PartialEq, Eq, VmState)]
#[vmstate(name = "minivmm/generation", version = 1, needed = Self::is_announced, validate = Self::check)]
pub struct Generation {
    /// Guest address; 0 if the guest's ACPI tables have no id, as those of a guest that began in a QEMU.
    address: u64,
}

impl Generation {
    /// Sets a new id at [`GENERATION_ID`], at power-on or reset, whose ACPI tables give this address.
    ///
    /// # Errors
    /// The address is outside of RAM, or the host has no random bytes.
    pub fn power_on(&mut self, memory: &GuestMemory) -> io::Result<()> {
        if self.address == GENERATION_ID {
            return Ok(());
        }
        self.address = GENERATION_ID;
        self.renew(memory)
    }

    /// Gives the stopped guest a new unique id. The caller has to notify the guest.
    ///
    /// # Errors
    /// As [`power_on`](Self::power_on).
    pub fn renew(&self, memory: &GuestMemory) -> io::Result<()> {
        let mut id = [0; LEN];
        let mut filled = 0;
        while let Some(rest) = id.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
        }
        memory.write_slice(&id, GuestAddress(self.address)).map_err(io::Error::other)
    }

    /// Whether the guest's ACPI tables have an id.
    pub fn is_announced(&self) -> bool {
        self.address != 0
    }

    /// Forgets the address, before another guest is loaded.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    fn check(&self) -> Result<(), String> {
        match self.address {
            GENERATION_ID => Ok(()),
            other => Err(format!(
                "the guest's generation id is at {other:#x}, and this release has it at {GENERATION_ID:#x}: update it"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use vmstate::Section;
    use vmstate::codec::{Reader, Writer};

    use super::*;
    use crate::memory::Ram;

    fn id(ram: &Ram) -> [u8; 16] {
        let mut id = [0; 16];
        ram.read(0x9_f000, &mut id).unwrap();
        id
    }

    #[test]
    fn an_id_stays_through_resets_and_changes_when_it_is_renewed() {
        let ram = Ram::new(1 << 20).unwrap();
        let mut generation = Generation::default();
        generation.power_on(ram.guest()).unwrap();
        let first = id(&ram);
        assert_ne!(first, [0; 16]);
        generation.power_on(ram.guest()).unwrap();
        assert_eq!(id(&ram), first, "a reset");
        generation.renew(ram.guest()).unwrap();
        assert_ne!(id(&ram), first);
        let mut around = [1; 32];
        ram.read(0x9_f010, &mut around).unwrap();
        assert_eq!(around, [0; 32]);
    }

    #[test]
    fn a_guest_without_an_id_has_no_section_and_other_places_are_refused() {
        let mut generation = Generation::default();
        assert!(!Section::is_needed(&generation));
        for address in [0, 8, 0x9_f001, 0x10_0000, u64::MAX] {
            let body = u64::to_be_bytes(address);
            let refusal = generation.load(&mut Reader::strict(&body), 1).unwrap_err().to_string();
            assert!(refusal.contains(&format!("at {address:#x}")), "{refusal}");
            assert!(!generation.is_announced());
        }
        let body = u64::to_be_bytes(0x9_f000);
        generation.load(&mut Reader::strict(&body), 1).unwrap();
        assert!(Section::is_needed(&generation));
        let mut out = Writer::new();
        Section::save(&mut generation, &mut out).unwrap();
        assert_eq!(out.as_slice(), body);
    }
}
