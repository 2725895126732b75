//! Map of the machine, which is QEMU's `microvm`: addresses, interrupts and register values that devices, ACPI tables and the
//! machine share.
//!
//! Rank 0: imports nothing of the crate.

/// Name of the machine type in a migration stream.
pub const MACHINE_TYPE: &str = "microvm";

/// ACPI generic event device, with the selector of events at its start.
pub const GED: u64 = 0xfea0_0000;
/// Bytes of its window.
pub const GED_LEN: u64 = 0x204;
/// Interrupt of the GED.
pub const GED_GSI: u32 = 9;
/// The GED's sleep control register, a byte (ACPI 6.5 §4.8.3.7).
pub const GED_SLEEP_CONTROL: u64 = 0x200;
/// The GED's sleep status register, a byte.
pub const GED_SLEEP_STATUS: u64 = 0x201;
/// The GED's reset register, a byte.
pub const GED_RESET: u64 = 0x202;
/// Value that resets the machine when it is written to the reset register (QEMU's `ACPI_GED_RESET_VALUE`).
pub const GED_RESET_VALUE: u8 = 0x42;
/// Bit of the selector: the power button was pressed (QEMU's `ACPI_GED_PWR_DOWN_EVT`).
pub const GED_POWER_BUTTON: u8 = 0x2;
/// Bit of the selector: the generation id has changed. QEMU uses the bits below for other events.
pub const GED_GENERATION: u8 = 0x80;
/// SLP_TYP of state S5 in the sleep control register.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Page of the generation id: RAM that the memory map reserves, behind the ACPI tables.
pub const GENERATION_ID: u64 = 0x9_f000;

/// First virtio-mmio window.
pub const VIRTIO_MMIO: u64 = 0xfeb0_0000;
/// Bytes of a virtio-mmio window.
pub const VIRTIO_MMIO_LEN: u64 = 0x200;
/// Number of virtio-mmio windows.
pub const VIRTIO_MMIO_COUNT: u8 = 8;
/// Interrupt of the first virtio-mmio window.
pub const VIRTIO_MMIO_GSI: u32 = 16;

/// I/O APIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APICs.
pub const LAPIC: u32 = 0xfee0_0000;

/// First serial port.
pub const COM1: u16 = 0x3f8;
/// Ports of a serial port.
pub const COM1_LEN: u16 = 8;
/// Interrupt of the first serial port.
pub const COM1_GSI: u32 = 4;

/// Window of virtio-mmio device `n`, in the order of the command line: as in QEMU, windows are filled from the last to the
/// first.
pub fn virtio_window(n: u8) -> u8 {
    VIRTIO_MMIO_COUNT - 1 - n
}

/// Address and GSI of a window.
pub fn virtio_place(window: u8) -> (u64, u32) {
    (VIRTIO_MMIO + u64::from(window) * VIRTIO_MMIO_LEN, VIRTIO_MMIO_GSI + u32::from(window))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From QEMU's own DSDT of a `microvm` with two virtio devices: VR07 at 0xfeb00e00 GSI 23, VR06 at 0xfeb00c00 GSI 22.
    #[test]
    fn virtio_devices_fill_the_windows_from_the_last_down() {
        assert_eq!(virtio_place(virtio_window(0)), (0xfeb0_0e00, 23));
        assert_eq!(virtio_place(virtio_window(1)), (0xfeb0_0c00, 22));
    }
}
