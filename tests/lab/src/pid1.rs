//! What the first process of a machine does before and after its work: mounts, modules, power-off.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::{chdir, chroot};

use crate::kernel::find_modules;

/// `MODULE_INIT_COMPRESSED_FILE` (linux/module.h): since 5.17 the kernel decompresses the module itself.
const COMPRESSED: ModuleInitFlags = ModuleInitFlags::from_bits_retain(4);

/// Mounts the kernel's file systems and makes the directories that programs expect.
pub(crate) fn mount_all() {
    for directory in ["/proc", "/sys", "/dev", "/tmp", "/run", "/out", "/mnt"] {
        let _ = fs::create_dir_all(directory);
    }
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        report(target, mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>));
    }
    for (kind, target) in [("devpts", "/dev/pts"), ("tmpfs", "/dev/shm")] {
        let _ = fs::create_dir_all(target);
        report(target, mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>));
    }
}

/// Puts a mount with the same files over the kernel's first root (rootfs): a process that changes its root to confine
/// itself, as passt does, may not do so on rootfs (pivot_root(2)).
pub(crate) fn leave_rootfs() {
    let move_onto = || -> nix::Result<()> {
        let none = None::<&str>;
        mount(Some("/"), "/mnt", none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
        chdir("/mnt")?;
        mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
        chroot(".")?;
        chdir("/")
    };
    report("/", move_onto());
}

/// Loads those of `names` that the initrd has.
pub(crate) fn load_modules(names: &[&str]) {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_owned()).unwrap_or_default();
    for module in find_modules(&Path::new("/lib/modules").join(release), names).into_iter().flatten() {
        let flags =
            if module.extension().is_some_and(|end| end != "ko") { COMPRESSED } else { ModuleInitFlags::empty() };
        let load = || -> io::Result<()> { Ok(finit_module(File::open(&module)?, c"", flags)?) };
        report(&module.display().to_string(), load());
    }
}

/// Turns the machine off.
pub(crate) fn power_off() -> ! {
    end(RebootMode::RB_POWER_OFF)
}

/// Restarts the machine.
pub(crate) fn reboot_now() -> ! {
    end(RebootMode::RB_AUTOBOOT)
}

fn end(mode: RebootMode) -> ! {
    nix::unistd::sync();
    let refused = reboot(mode);
    // Pid 1 must not end: the kernel would panic.
    println!("{mode:?}: {refused:?}");
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

fn report<E: std::fmt::Display>(what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        println!("{what}: {error}");
    }
}
