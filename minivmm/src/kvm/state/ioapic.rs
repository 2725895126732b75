//! Section `ioapic`, version 3: the in-kernel I/O APIC.

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip};
use kvm_ioctls::VmFd;
use vmstate::VmState;
use vmstate::state::Unused;

use super::{StateError, call};

/// I/O APIC registers.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "ioapic", version = 3, minimum_version = 1)]
pub struct IoApic {
    /// Id register.
    pub id: u8,
    /// Selected register.
    pub ioregsel: u8,
    #[vmstate(since = 2)]
    unused: Unused<8>,
    /// Pending lines.
    #[vmstate(since = 2)]
    pub irr: u32,
    /// Redirection table.
    pub ioredtbl: [u64; 24],
}

impl IoApic {
    /// Reads the chip.
    ///
    /// # Errors
    /// KVM_GET_IRQCHIP failed.
    pub fn get(vm: &VmFd) -> Result<Self, StateError> {
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        call("KVM_GET_IRQCHIP", vm.get_irqchip(&mut chip))?;
        // SAFETY: the kernel filled the member that `chip_id` names; any bytes are a valid `kvm_ioapic_state`.
        let state = unsafe { chip.chip.ioapic };
        Ok(Self {
            id: state.id as u8,
            ioregsel: state.ioregsel as u8,
            unused: Unused,
            irr: state.irr,
            // SAFETY: `bits` covers the whole union; any bytes are a valid u64.
            ioredtbl: state.redirtbl.map(|entry| unsafe { entry.bits }),
        })
    }

    /// Writes the chip.
    ///
    /// # Errors
    /// An irqchip ioctl failed.
    pub fn set(&self, vm: &VmFd) -> Result<(), StateError> {
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        call("KVM_GET_IRQCHIP", vm.get_irqchip(&mut chip))?;
        // SAFETY: as in `get`.
        let state = unsafe { &mut chip.chip.ioapic };
        state.id = self.id.into();
        state.ioregsel = self.ioregsel.into();
        state.irr = self.irr;
        for (entry, &bits) in state.redirtbl.iter_mut().zip(&self.ioredtbl) {
            entry.bits = bits;
        }
        call("KVM_SET_IRQCHIP", vm.set_irqchip(&chip))
    }
}
