//! Guest memory: the only mmap. RAM below 3 GiB and from 4 GiB, as QEMU's `microvm` lays it out.

use vm_memory::bitmap::AtomicBitmap;

/// Guest memory whose device writes are recorded page by page.
pub type GuestMemory = vm_memory::GuestMemoryMmap<AtomicBitmap>;
