//! Where the loader puts things in low memory.
//!
//! The loader's places below 1 MiB are dead once the kernel has started, except [`ACPI`] and [`RESERVED`]. They stay below 0xe0000,
//! where QEMU has firmware instead of RAM: a guest that moves there keeps all it needs.

use std::ops::Range;

use crate::machine_map::GENERATION_ID;

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
pub const ACPI: Range<u64> = 0x9_0000..GENERATION_ID;
/// What the host writes beside the tables: the page of the generation id, which may not be in one of ordinary RAM or of ACPI tables.
pub const RESERVED: Range<u64> = GENERATION_ID..0xa_0000;
/// Kernels are loaded from here on; the legacy hole ends here.
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;
