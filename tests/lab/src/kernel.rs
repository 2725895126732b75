//! A distribution's kernel image and the loadable modules that belong to it.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, FileContext, Result};
use crate::tree::Tree;

/// Modules that an emulated host needs, each after its dependencies. A module without a file is built into the kernel.
pub const HOST_MODULES: &[&str] = &[
    "irqbypass",
    "ccp",
    "kvm",
    "kvm-amd",
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "tun",
    "tap",
    "veth",
    "vhost_iotlb",
    "vhost",
    "vhost_net",
    "llc",
    "stp",
    "bridge",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vsock_loopback",
];

/// Modules that a guest needs, each after its dependencies. A module without a file is built into the kernel.
pub const GUEST_MODULES: &[&str] =
    &["virtio", "virtio_ring", "virtio_mmio", "virtio_blk", "failover", "net_failover", "virtio_net"];

/// A kernel image and the directory of its modules.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// `lib/modules/VERSION`; `None` for a kernel without modules, which has everything built in.
    pub modules: Option<PathBuf>,
    /// The version as `uname -r` prints it.
    pub version: String,
}

impl Kernel {
    /// Opens the kernel in `image`; its modules are looked for in `../lib/modules` relative to the image, as in a
    /// package, and in the machine's `/lib/modules`.
    ///
    /// # Errors
    /// When the image cannot be read or is no bzImage.
    pub fn open(image: &Path) -> Result<Self> {
        let version = version(image)?;
        let beside = image.parent().and_then(Path::parent).map(|root| root.join("lib/modules"));
        let usr = image.parent().and_then(Path::parent).map(|root| root.join("usr/lib/modules"));
        let roots = beside.into_iter().chain(usr).chain([PathBuf::from("/lib/modules")]);
        let modules = roots.map(|root| root.join(&version)).find(|directory| directory.is_dir());
        Ok(Self { image: image.to_owned(), modules, version })
    }

    /// Adds those of `names` that exist as loadable modules, in the directory where [`Kernel::open`] and `pid1` look
    /// for them.
    pub fn add_modules(&self, tree: &mut Tree, names: &[&str]) {
        let Some(directory) = &self.modules else { return };
        for module in find_modules(directory, names).into_iter().flatten() {
            let file = module.file_name().unwrap_or_default().to_owned();
            tree.host(Path::new("/lib/modules").join(&self.version).join(file), module);
        }
    }
}

/// The file of each name below `directory`; `None` for a name without one.
pub(crate) fn find_modules(directory: &Path, names: &[&str]) -> Vec<Option<PathBuf>> {
    let mut found = vec![None; names.len()];
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(path);
                continue;
            }
            let file = entry.file_name().to_string_lossy().into_owned();
            let Some((stem, suffix)) = file.split_once(".ko") else { continue };
            let is_module = matches!(suffix, "" | ".xz" | ".zst" | ".gz");
            // The file of kvm_amd is kvm-amd: modprobe treats `_` and `-` alike.
            let same = |name: &&str| name.replace('-', "_") == stem.replace('-', "_");
            if let Some(index) = names.iter().position(same).filter(|_| is_module) {
                found[index] = Some(path);
            }
        }
    }
    found
}

/// The version in a bzImage's header (the kernel's Documentation/arch/x86/boot.rst: `kernel_version` at 0x20e, relative
/// to 0x200).
fn version(image: &Path) -> Result<String> {
    let mut head = Vec::new();
    let file = File::open(image).doing("open", image)?;
    file.take(64 << 10).read_to_end(&mut head).doing("read", image)?;
    let find = || -> Option<String> {
        if head.get(0x202..0x206)? != b"HdrS" {
            return None;
        }
        let start = usize::from(u16::from_le_bytes([*head.get(0x20e)?, *head.get(0x20f)?])) + 0x200;
        let text = head.get(start..)?.split(|byte| matches!(byte, 0 | b' ')).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    find().ok_or_else(|| Error::failed(format!("{}: not a Linux kernel image (bzImage)", image.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_header() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("vmlinuz");
        let mut bytes = vec![0; 0x400];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        bytes[0x300..0x317].copy_from_slice(b"6.12.1-cloud (a@b) #1 x");
        fs::write(&image, bytes).unwrap();
        assert_eq!(Kernel::open(&image).unwrap().version, "6.12.1-cloud");
        fs::write(&image, "#!/bin/sh").unwrap();
        assert!(Kernel::open(&image).unwrap_err().to_string().contains("not a Linux kernel image"));
    }

    #[test]
    fn modules_are_found_in_either_spelling_and_compressed() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("kernel/arch");
        fs::create_dir_all(&deep).unwrap();
        for file in ["kvm-amd.ko.xz", "tun.ko", "kvm.ko.txt"] {
            fs::write(deep.join(file), "").unwrap();
        }
        let found = find_modules(directory.path(), &["kvm", "kvm_amd", "tun"]);
        assert_eq!(found, [None, Some(deep.join("kvm-amd.ko.xz")), Some(deep.join("tun.ko"))]);
    }
}
