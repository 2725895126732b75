//! Loads kernel, initial RAM disk and command line from files into guest memory.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::ops::Range;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader, PvhBootCapability};
use vm_memory::{Bytes, GuestAddress};

use crate::boot::cpu::Entry;
use crate::boot::layout::{COMMAND_LINE, HIGH_MEMORY};
use crate::error::{Error, Result};
use crate::files::{self, Fit, Mode};
use crate::memory::{PAGE_SIZE, Ram};

/// `xloadflags`, bit 0: the image has the 64-bit entry point at +0x200 (boot.rst; protocol 2.12).
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;

/// An ELF kernel does not say where its initial RAM disk may be: the limit is RAM's hole, as in QEMU.
const PVH_INITRD_MAX: u64 = crate::memory::LOW_RAM_MAX - 1;

/// File that is loaded into guest memory at each boot of the machine.
#[derive(Debug)]
pub struct BootFile {
    flag: &'static str,
    path: PathBuf,
    file: File,
}

impl BootFile {
    /// Opens the file at `path`, which `flag` names.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn open(flag: &'static str, path: &Path) -> Result<Self> {
        let opened = files::open(path, Mode::Read, Fit::Regular);
        let file = opened.map_err(|source| unreadable(flag, path, source))?;
        Ok(Self { flag, path: path.into(), file })
    }

    /// Returns the file at its beginning. One user at a time, since all share the file's position.
    fn begin(&self) -> Result<File> {
        let begin = || -> io::Result<File> {
            let mut file = self.file.try_clone()?;
            file.rewind()?;
            Ok(file)
        };
        begin().map_err(|source| unreadable(self.flag, &self.path, source))
    }

    /// Length in bytes.
    fn len(&self) -> Result<u64> {
        (&self.file).seek(io::SeekFrom::End(0)).map_err(|source| unreadable(self.flag, &self.path, source))
    }

    fn is_no_kernel(&self, why: &str) -> Error {
        refused(self.flag, &self.path, format!("is not a kernel that can be booted: {why}"))
    }
}

fn unreadable(flag: &'static str, path: &Path, source: io::Error) -> Error {
    refused(flag, path, format!("cannot be read: {source}"))
}

fn refused(flag: &'static str, path: &Path, what: String) -> Error {
    Error::File { flag, path: path.into(), what, source: None }
}

/// A kernel that was loaded into guest memory.
#[derive(Debug)]
pub struct Kernel {
    /// Where it starts.
    pub entry: Entry,
    /// First byte behind the memory that the kernel uses before it reads the memory map.
    pub end: u64,
    /// bzImage: its setup header, as it was in the file.
    pub header: Option<setup_header>,
}

/// Loads a bzImage or PVH ELF.
///
/// # Errors
/// [`Error::File`] for `--kernel`; [`Error::Memory`] if RAM is too small for it.
pub fn load_kernel(ram: &Ram, image: &BootFile) -> Result<Kernel> {
    let mut magic = [0; 4];
    image.begin()?.read_exact(&mut magic).map_err(|_| image.is_no_kernel("it is shorter than four bytes"))?;
    let kernel = if magic == *b"\x7fELF" { load_elf(ram, image)? } else { load_bzimage(ram, image)? };
    if kernel.end > ram.low_end() {
        return Err(Error::Memory { what: format!("the kernel needs more than {} bytes; give more", kernel.end) });
    }
    Ok(kernel)
}

fn load_elf(ram: &Ram, image: &BootFile) -> Result<Kernel> {
    let loaded = Elf::load(ram.guest(), None, &mut image.begin()?, Some(GuestAddress(HIGH_MEMORY)))
        .map_err(|error| image.is_no_kernel(&error.to_string()))?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => {
            Ok(Kernel { entry: Entry::Pvh(entry.0), end: loaded.kernel_end, header: None })
        }
        _ => Err(image.is_no_kernel("the ELF file has no PVH note; build it with CONFIG_PVH=y or give a bzImage")),
    }
}

fn load_bzimage(ram: &Ram, image: &BootFile) -> Result<Kernel> {
    let loaded = BzImage::load(ram.guest(), None, &mut image.begin()?, Some(GuestAddress(HIGH_MEMORY)))
        .map_err(|error| image.is_no_kernel(&format!("neither ELF nor bzImage, or larger than RAM ({error})")))?;
    let header = loaded.setup_header.ok_or_else(|| image.is_no_kernel("it has no setup header"))?;
    if header.version < 0x20c || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(image.is_no_kernel("it has no 64-bit entry point; give an x86-64 kernel of Linux 3.8 or newer"));
    }
    let load = loaded.kernel_load.0;
    // The kernel moves itself to its preferred address if it was loaded below, and unpacks there (boot.rst, init_size).
    let run = load.max(header.pref_address);
    let end = loaded.kernel_end.max(run.saturating_add(header.init_size.into()));
    Ok(Kernel { entry: Entry::Linux64(load + ENTRY_64), end, header: Some(header) })
}

/// Loads the initial RAM disk as high as `kernel` allows, and returns its place.
///
/// # Errors
/// [`Error::File`] for `--initrd`; [`Error::Memory`] if RAM is too small for it.
pub fn load_initrd(ram: &Ram, image: &BootFile, kernel: &Kernel) -> Result<Range<u64>> {
    let len = image.len()?;
    let max = kernel.header.map_or(PVH_INITRD_MAX, |header| header.initrd_addr_max.into());
    let end = ram.low_end().min(max + 1);
    let start = end.checked_sub(len).map(|start| start & !(PAGE_SIZE - 1)).filter(|&start| start >= kernel.end);
    let Some(start) = start else {
        return Err(Error::Memory {
            what: format!("the kernel and an initial RAM disk of {len} bytes do not fit below {end:#x}; give more"),
        });
    };
    ram.guest()
        .read_exact_volatile_from(GuestAddress(start), &mut image.begin()?, len as usize)
        .map_err(|error| refused(image.flag, &image.path, error.to_string()))?;
    Ok(start..start + len)
}

/// Writes the command line with its terminating zero.
///
/// # Errors
/// [`Error::Flag`] for `--append`.
pub fn write_command_line(ram: &Ram, append: &str, kernel: &Kernel) -> Result<()> {
    let room = COMMAND_LINE.end - COMMAND_LINE.start - 1;
    let max = kernel.header.map_or(room, |header| room.min(header.cmdline_size.into()));
    if append.len() as u64 > max {
        let what = format!("{} bytes, but the kernel takes {max} at most; shorten it", append.len());
        return Err(Error::Flag { flag: "--append", what });
    }
    if append.contains('\0') {
        return Err(Error::Flag {
            flag: "--append",
            what: "it holds a zero byte, which would end it; remove it".into(),
        });
    }
    ram.write(COMMAND_LINE.start, append.as_bytes())?;
    ram.write(COMMAND_LINE.start + append.len() as u64, &[0])
}
