//! Loads a kernel into guest memory: image, initial RAM disk, command line, tables, and the start of the first vCPU.

pub mod acpi;
pub mod cpu;
pub mod image;
pub mod layout;
mod params;

use crate::boot::cpu::Entry;
pub use crate::boot::image::BootFile;
use crate::error::Result;
use crate::memory::Ram;

/// Files and command line to boot.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// bzImage or PVH ELF.
    pub kernel: &'a BootFile,
    /// Initial RAM disk.
    pub initrd: Option<&'a BootFile>,
    /// Command line.
    pub append: &'a str,
}

/// Loads the payload and writes the machine's tables into `ram`.
///
/// # Errors
/// [`Error::File`](crate::error::Error::File) and [`Error::Flag`](crate::error::Error::Flag), naming the flag.
pub fn load(ram: &Ram, payload: Payload<'_>, acpi: &acpi::Machine) -> Result<Entry> {
    let kernel = image::load_kernel(ram, payload.kernel)?;
    let initrd = payload.initrd.map(|file| image::load_initrd(ram, file, &kernel)).transpose()?;
    image::write_command_line(ram, payload.append, &kernel)?;
    acpi::write(ram, acpi)?;
    cpu::write_tables(ram, kernel.entry)?;
    params::write(ram, &kernel, initrd)?;
    Ok(kernel.entry)
}
