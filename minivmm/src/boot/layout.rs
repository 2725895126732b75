//! The machine's memory map: QEMU's `microvm`, and where the loader puts things in low memory.
//!
//! The loader's places below 1 MiB are dead once the kernel has started, except [`ACPI`]. They stay below 0xe0000,
//! where QEMU has firmware instead of RAM: a guest that moves there keeps all it needs.

use std::ops::Range;

/// What the machine is called in a migration stream.
pub const MACHINE_TYPE: &str = "microvm";

/// GED event selector; its registers are at +0x200.
pub const GED: u64 = 0xfea0_0000;
/// Sleep control, sleep status, reset: one byte each from here.
pub const GED_REGISTERS: u64 = GED + 0x200;
/// Interrupt of the GED.
pub const GED_GSI: u32 = 9;

/// First virtio-mmio window.
pub const VIRTIO_MMIO: u64 = 0xfeb0_0000;
/// Bytes of a window.
pub const VIRTIO_MMIO_LEN: u64 = 0x200;
/// Windows there are.
pub const VIRTIO_MMIO_COUNT: u8 = 8;
/// Interrupt of the first window.
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

/// Global descriptor table.
pub(crate) const GDT: u64 = 0x500;
/// `boot_params` or `hvm_start_info`.
pub(crate) const START_INFO: u64 = 0x7000;
/// PVH: memory map and module list, behind the start info.
pub(crate) const PVH_MEMORY_MAP: u64 = 0x7100;
/// PVH: module list.
pub(crate) const PVH_MODULES: u64 = 0x7f00;
/// Six pages: PML4, PDPT, four page directories.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// Command line with its end.
pub(crate) const COMMAND_LINE: Range<u64> = 0x2_0000..0x3_0000;
/// ACPI tables; marked as such in the memory map.
pub const ACPI: Range<u64> = 0x9_0000..0xa_0000;
/// Kernels are loaded from here on; the legacy hole ends here.
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;

/// Window of virtio-mmio device `n`, counted in the order of the command line: QEMU fills the windows from the last down.
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
