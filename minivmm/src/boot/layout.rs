//! Places in low memory that the loader uses.
//!
//! The kernel does not need the loader's places below 1 MiB any more once it has started, except [`ACPI`] and [`RESERVED`].
//! These are below 0xe0000, where QEMU has firmware instead of RAM, so that a guest that migrates there keeps them.

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
/// Command line with its terminating zero.
pub(crate) const COMMAND_LINE: Range<u64> = 0x2_0000..0x3_0000;
/// ACPI tables; the memory map says so.
pub const ACPI: Range<u64> = 0x9_0000..GENERATION_ID;
/// Page of the generation id, which the host writes; it may be neither in ordinary RAM nor in a page of ACPI tables.
pub const RESERVED: Range<u64> = GENERATION_ID..0xa_0000;
/// Kernels are loaded from here on; the legacy hole ends here.
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;
