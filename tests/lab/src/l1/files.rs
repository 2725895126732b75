//! The files of an emulated host: everything that a migration needs, and the programs of a job.

use std::path::Path;

use crate::error::Result;
use crate::kernel::{GUEST_MODULES, Kernel};
use crate::packages;
use crate::qemu;
use crate::tree::Tree;

/// Path of the guests' kernel inside.
pub const GUEST_KERNEL: &str = "/boot/vmlinuz";

/// The files of an emulated host that a migration needs besides the monitor: the guest's kernel with its modules, and
/// the tools.
///
/// # Errors
/// When one of these files is missing on this machine.
pub fn for_migrations(guest: &Kernel) -> Result<Tree> {
    let mut files = Tree::new();
    files.host(GUEST_KERNEL, &guest.image);
    guest.add_modules(&mut files, GUEST_MODULES);
    files.program("/sbin/mkfs.ext4", &packages::mkfs()?)?;
    files.host("/etc/mke2fs.conf", "/etc/mke2fs.conf");
    files.program("/bin/busybox", &packages::busybox()?)?;
    Ok(files)
}

/// Adds QEMU as the program `name`, and the firmware with which its microvm boots a kernel.
///
/// # Errors
/// When QEMU cannot be read.
pub fn add_qemu(files: &mut Tree, name: &str, qemu: &Path) -> Result<()> {
    files.program(Path::new("/bin").join(name), qemu)?;
    for directory in qemu::FIRMWARE {
        for file in ["bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin"] {
            let path = Path::new(directory).join(file);
            if path.is_file() {
                files.host(Path::new(qemu::FIRMWARE[0]).join(file), path);
            }
        }
    }
    Ok(())
}
