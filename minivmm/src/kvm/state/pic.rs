//! Section `i8259`, version 1: one of the two in-kernel interrupt controllers; instance 0 is the master.

use kvm_bindings::kvm_irqchip;
use kvm_ioctls::VmFd;
use vmstate::VmState;

use super::{StateError, call};

/// 8259A registers and sequencing state.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "i8259", version = 1)]
pub struct Pic {
    /// Line levels at the last edge detection.
    pub last_irr: u8,
    /// Requested.
    pub irr: u8,
    /// Masked.
    pub imr: u8,
    /// In service.
    pub isr: u8,
    /// Highest priority line.
    pub priority_add: u8,
    /// Vector of line 0.
    pub irq_base: u8,
    /// Whether the next read returns ISR.
    pub read_reg_select: u8,
    /// Poll command given.
    pub poll: u8,
    /// Special mask mode.
    pub special_mask: u8,
    /// Initialisation word expected next.
    pub init_state: u8,
    /// Automatic end of interrupt.
    pub auto_eoi: u8,
    /// Rotate on automatic end of interrupt.
    pub rotate_on_auto_eoi: u8,
    /// Special fully nested mode.
    pub special_fully_nested_mode: u8,
    /// ICW4 follows.
    pub init4: u8,
    /// No cascade; KVM has no such state, QEMU's KVM chip sends 0.
    pub single_mode: u8,
    /// Edge/level control.
    pub elcr: u8,
}

impl Pic {
    /// Reads chip 0 (master) or 1 (slave).
    ///
    /// # Errors
    /// KVM_GET_IRQCHIP failed.
    pub fn get(vm: &VmFd, chip_id: u32) -> Result<Self, StateError> {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        call("KVM_GET_IRQCHIP", vm.get_irqchip(&mut chip))?;
        // SAFETY: the kernel filled the member that `chip_id` names; any bytes are a valid `kvm_pic_state`.
        let state = unsafe { chip.chip.pic };
        Ok(Self {
            last_irr: state.last_irr,
            irr: state.irr,
            imr: state.imr,
            isr: state.isr,
            priority_add: state.priority_add,
            irq_base: state.irq_base,
            read_reg_select: state.read_reg_select,
            poll: state.poll,
            special_mask: state.special_mask,
            init_state: state.init_state,
            auto_eoi: state.auto_eoi,
            rotate_on_auto_eoi: state.rotate_on_auto_eoi,
            special_fully_nested_mode: state.special_fully_nested_mode,
            init4: state.init4,
            single_mode: 0,
            elcr: state.elcr,
        })
    }

    /// Writes chip 0 (master) or 1 (slave).
    ///
    /// # Errors
    /// An irqchip ioctl failed.
    pub fn set(&self, vm: &VmFd, chip_id: u32) -> Result<(), StateError> {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        call("KVM_GET_IRQCHIP", vm.get_irqchip(&mut chip))?;
        // SAFETY: as in `get`.
        let state = unsafe { &mut chip.chip.pic };
        state.last_irr = self.last_irr;
        state.irr = self.irr;
        state.imr = self.imr;
        state.isr = self.isr;
        state.priority_add = self.priority_add;
        state.irq_base = self.irq_base;
        state.read_reg_select = self.read_reg_select;
        state.poll = self.poll;
        state.special_mask = self.special_mask;
        state.init_state = self.init_state;
        state.auto_eoi = self.auto_eoi;
        state.rotate_on_auto_eoi = self.rotate_on_auto_eoi;
        state.special_fully_nested_mode = self.special_fully_nested_mode;
        state.init4 = self.init4;
        state.elcr = self.elcr;
        call("KVM_SET_IRQCHIP", vm.set_irqchip(&chip))
    }
}
