//! Start information for the kernel: `boot_params` (boot.rst, "zero page") or `hvm_start_info` (PVH), with the memory map.

use std::ops::Range;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use crate::boot::cpu::Entry;
use crate::boot::image::Kernel;
use crate::boot::layout::{self, ACPI, COMMAND_LINE, HIGH_MEMORY, PVH_MEMORY_MAP, PVH_MODULES, START_INFO};
use crate::error::{Error, Result};
use crate::memory::Ram;

/// Types of the memory map, the same numbers in E820 and PVH (ACPI specification, table 15.1).
const USABLE: u32 = 1;
const RESERVED: u32 = 2;
const ACPI_RECLAIMABLE: u32 = 3;

/// `type_of_loader` of a loader without an assigned number (boot.rst).
const LOADER_UNDEFINED: u8 = 0xff;
/// "xEn3", with the top bit of the E set (xen/include/public/arch-x86/hvm/start_info.h).
const PVH_MAGIC: u32 = 0x336e_c578;

pub(crate) fn write(ram: &Ram, kernel: &Kernel, initrd: Option<Range<u64>>) -> Result<()> {
    match kernel.entry {
        Entry::Linux64(_) => write_boot_params(ram, kernel, initrd),
        Entry::Pvh(_) => write_start_info(ram, initrd),
    }
}

fn write_boot_params(ram: &Ram, kernel: &Kernel, initrd: Option<Range<u64>>) -> Result<()> {
    let mut params = boot_params { acpi_rsdp_addr: ACPI.start, ..Default::default() };
    params.hdr = kernel.header.unwrap_or_default();
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = COMMAND_LINE.start as u32;
    if let Some(initrd) = initrd {
        // Fits: `initrd_addr_max` has 32 bits.
        params.hdr.ramdisk_image = initrd.start as u32;
        params.hdr.ramdisk_size = (initrd.end - initrd.start) as u32;
    }
    for (n, (range, kind)) in memory_map(ram).into_iter().enumerate() {
        params.e820_table[n] = boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: kind };
        params.e820_entries = n as u8 + 1;
    }
    put(ram, START_INFO, &params)
}

fn write_start_info(ram: &Ram, initrd: Option<Range<u64>>) -> Result<()> {
    let map = memory_map(ram);
    for (at, (range, type_)) in (PVH_MEMORY_MAP..).step_by(size_of::<hvm_memmap_table_entry>()).zip(&map) {
        let size = range.end - range.start;
        put(ram, at, &hvm_memmap_table_entry { addr: range.start, size, type_: *type_, reserved: 0 })?;
    }
    if let Some(initrd) = &initrd {
        let module = hvm_modlist_entry { paddr: initrd.start, size: initrd.end - initrd.start, ..Default::default() };
        put(ram, PVH_MODULES, &module)?;
    }
    let info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() { PVH_MODULES } else { 0 },
        cmdline_paddr: COMMAND_LINE.start,
        rsdp_paddr: ACPI.start,
        memmap_paddr: PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    put(ram, START_INFO, &info)
}

fn memory_map(ram: &Ram) -> Vec<(Range<u64>, u32)> {
    let mut map = vec![
        (0..ACPI.start, USABLE),
        (ACPI, ACPI_RECLAIMABLE),
        (layout::RESERVED, RESERVED),
        (HIGH_MEMORY..ram.low_end(), USABLE),
    ];
    map.extend(ram.stretches().skip(1).map(|high| (high.guest_address..high.guest_address + high.len, USABLE)));
    map
}

fn put<T: ByteValued>(ram: &Ram, at: u64, value: &T) -> Result<()> {
    ram.guest()
        .write_slice(value.as_slice(), GuestAddress(at))
        .map_err(|_| Error::OutsideRam { at, len: size_of::<T>() as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u64_at(ram: &Ram, at: u64) -> u64 {
        let mut bytes = [0; 8];
        ram.read(at, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Offsets from Documentation/arch/x86/zero-page.rst and boot.rst.
    #[test]
    fn boot_params_are_where_linux_reads_them() {
        let ram = Ram::new((3 << 30) + (512 << 20)).unwrap();
        let kernel = Kernel { entry: Entry::Linux64(0x10_0200), end: 0, header: Some(Default::default()) };
        write(&ram, &kernel, Some(0x7fff_0000..0x7fff_1234)).unwrap();
        let mut page = [0; 4096];
        ram.read(START_INFO, &mut page).unwrap();
        assert_eq!(page[0x70..0x78], 0x9_0000_u64.to_le_bytes());
        assert_eq!(page[0x1e8], 5);
        assert_eq!(page[0x210], 0xff);
        assert_eq!(page[0x218..0x220], [0, 0, 0xff, 0x7f, 0x34, 0x12, 0, 0]);
        assert_eq!(page[0x228..0x22c], 0x2_0000_u32.to_le_bytes());
        let entry = |n: usize| {
            let bytes = &page[0x2d0 + n * 20..][..20];
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            (word(0), word(8), bytes[16])
        };
        assert_eq!(entry(0), (0, 0x9_0000, 1));
        assert_eq!(entry(1), (0x9_0000, 0xf000, 3));
        assert_eq!(entry(2), (0x9_f000, 0x1000, 2));
        assert_eq!(entry(3), (0x10_0000, (3 << 30) - 0x10_0000, 1));
        assert_eq!(entry(4), (4 << 30, 512 << 20, 1));
    }

    /// Offsets from xen/include/public/arch-x86/hvm/start_info.h.
    #[test]
    fn start_info_is_where_pvh_reads_it() {
        let ram = Ram::new(256 << 20).unwrap();
        let kernel = Kernel { entry: Entry::Pvh(0x100_0000), end: 0, header: None };
        write(&ram, &kernel, Some(0xf00_0000..0xf00_0800)).unwrap();
        assert_eq!(u64_at(&ram, START_INFO), 0x1_336e_c578);
        assert_eq!(u64_at(&ram, START_INFO + 8), 1 << 32);
        let modules = u64_at(&ram, START_INFO + 16);
        assert_eq!((u64_at(&ram, modules), u64_at(&ram, modules + 8)), (0xf00_0000, 0x800));
        assert_eq!(u64_at(&ram, START_INFO + 24), 0x2_0000);
        assert_eq!(u64_at(&ram, START_INFO + 32), 0x9_0000);
        let map = u64_at(&ram, START_INFO + 40);
        assert_eq!(u64_at(&ram, START_INFO + 48), 4);
        assert_eq!((u64_at(&ram, map + 72), u64_at(&ram, map + 80)), (0x10_0000, 255 << 20));
    }
}
