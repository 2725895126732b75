//! Gets files from the distribution: a guest kernel, downloaded into a cache without root, and tools by name.
//!
//! Debian and Ubuntu are supported. Elsewhere the error names each missing file or program, and `--kernel` gives the
//! kernel.

use std::fs;
use std::path::{Path, PathBuf};

use crate::apt;
use crate::error::{Error, FileContext, Result};
use crate::kernel::Kernel;
use crate::python::Python;
use crate::qemu;
use crate::tree::find_program;

/// Metapackages that depend on the newest small kernel for virtual machines: Debian's, then Ubuntu's.
const KERNELS: &[&str] = &["linux-image-cloud-amd64", "linux-image-virtual", "linux-image-kvm"];

/// Installs or downloads all that the tests need: a QEMU that is new enough, the tools, and the kernel.
///
/// # Errors
/// A sentence with what is missing and the command that brings it.
pub fn prepare() -> Result<()> {
    qemu::install()?;
    mkfs()?;
    busybox()?;
    passt()?;
    Python::with_qmp_client()?;
    if let Err(error) = qemu::oldest() {
        eprintln!("lab: the tests run without QEMU {}: {error}", qemu::OLDEST);
    }
    kernel().map(|_| ())
}

/// The newest cloud kernel of the distribution, from the cache or downloaded into it.
///
/// # Errors
/// When there is no apt, or the download fails.
pub fn kernel() -> Result<Kernel> {
    let cache = cache()?;
    if let Some(image) = cached(&cache) {
        return Kernel::open(&image);
    }
    let remedy = "give one with --kernel FILE";
    if !apt::is_here() {
        return Err(Error::missing("a guest kernel", format!("{remedy} (no apt here to download one)")));
    }
    apt::refresh();
    let Some(image) = newest_image()? else {
        let remedy = format!("run `sudo apt-get update` so that apt knows {}, or {remedy}", KERNELS[0]);
        return Err(Error::missing("a guest kernel", remedy));
    };
    eprintln!("lab: downloading {image} into {}", cache.display());
    // Ubuntu keeps a kernel's modules in a package of their own.
    let modules = apt::dependency(&image, "linux-modules-")?;
    let packages: Vec<_> = [Some(image.clone()), modules].into_iter().flatten().collect();
    apt::download(&packages, &cache.join(&image))?;
    let image = cached(&cache).ok_or_else(|| Error::failed(format!("{image} holds no kernel image")))?;
    Kernel::open(&image)
}

/// `mkfs.ext4`, as [`tool`].
///
/// # Errors
/// A sentence with the command that installs it.
pub fn mkfs() -> Result<PathBuf> {
    tool("mkfs.ext4", "e2fsprogs")
}

/// A statically linked busybox: the shell of a guest; downloaded into the cache when it is not installed.
///
/// # Errors
/// When there is no apt, or the download fails.
pub fn busybox() -> Result<PathBuf> {
    cached_program("busybox", "busybox-static")
}

/// passt, user-mode networking that needs no rights; downloaded into the cache when it is not installed.
///
/// # Errors
/// When there is no apt, or the download fails.
pub fn passt() -> Result<PathBuf> {
    cached_program("passt", "passt")
}

/// A program that needs nothing of its package but files in its own directory.
fn cached_program(program: &str, package: &str) -> Result<PathBuf> {
    let cached = cache()?.join(package);
    let inside = ["bin", "usr/bin"].map(|folder| cached.join(folder).join(program));
    if let Some(path) = find_program(program).or_else(|| inside.iter().find(|path| path.is_file()).cloned()) {
        return Ok(path);
    }
    apt::download(&[package.to_owned()], &cached)?;
    let missing = || Error::missing(program, format!("install it with `sudo apt-get install {package}`"));
    inside.into_iter().find(|path| path.is_file()).ok_or_else(missing)
}

/// Unpacks a package whose version, after its epoch, begins with `version` into the cache, and returns the directory of
/// its files.
///
/// # Errors
/// When apt has no such version, or the download fails.
pub(crate) fn unpacked(package: &str, version: &str) -> Result<PathBuf> {
    let home = cache()?.join(format!("{package}-{version}"));
    if home.is_dir() {
        return Ok(home);
    }
    if !apt::is_here() {
        return Err(Error::failed(format!("{package} {version}: no apt here to download it")));
    }
    apt::refresh();
    let known = apt::versions(package)?.into_iter().map(|(known, _)| known).filter(|known| is_of(version, known));
    let Some(newest) = known.max_by_key(|known| numbers(known)) else {
        return Err(Error::failed(format!("apt has no {package} of version {version}")));
    };
    eprintln!("lab: downloading {package} {newest} into {}", home.display());
    apt::download(&[format!("{package}={newest}")], &home)?;
    Ok(home)
}

/// Whether the Debian version `known` is upstream's `version`: an epoch may precede it, and no digit may follow it
/// (deb-version(7)).
fn is_of(version: &str, known: &str) -> bool {
    let upstream = known.split_once(':').map_or(known, |(_epoch, rest)| rest);
    upstream.strip_prefix(version).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// A program of the distribution, installed when it is missing and the user is root.
///
/// # Errors
/// A sentence with the command that installs it.
pub fn tool(program: &str, package: &str) -> Result<PathBuf> {
    if let Some(path) = find_program(program) {
        return Ok(path);
    }
    let missing = || Error::missing(program, format!("install it with `sudo apt-get install {package}`"));
    if !apt::may_install() {
        return Err(missing());
    }
    apt::install(package)?;
    find_program(program).ok_or_else(missing)
}

/// The directory of downloads: in cargo's target directory when this executable was built there, else in the user's
/// cache.
pub(crate) fn cache() -> Result<PathBuf> {
    let own = std::env::current_exe().doing("find", Path::new("our executable"))?;
    // Cargo marks its target directory with this file.
    let target = own.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file());
    let home = || {
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home)
    };
    let parent = target.map(Path::to_owned).or_else(home).unwrap_or_else(std::env::temp_dir);
    let cache = parent.join("lab-cache");
    fs::create_dir_all(&cache).doing("create", &cache)?;
    Ok(cache)
}

/// The kernel image in the cache with the highest version.
fn cached(cache: &Path) -> Option<PathBuf> {
    let images = fs::read_dir(cache).ok()?.flatten().flat_map(|package| {
        let boot = fs::read_dir(package.path().join("boot")).into_iter().flatten().flatten();
        boot.map(|file| file.path()).filter(|file| file.to_string_lossy().contains("/vmlinuz-"))
    });
    images.max_by_key(|image| numbers(&image.file_name().unwrap_or_default().to_string_lossy()))
}

/// The numbers in a version, for comparison.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// The image package that a kernel metapackage depends on, for the newest version in apt's lists, backports included.
fn newest_image() -> Result<Option<String>> {
    for meta in KERNELS {
        let newest = apt::versions(meta)?.into_iter().max_by_key(|(version, _)| numbers(version));
        let Some((version, _)) = newest else { continue };
        if let Some(image) = apt::dependency(&format!("{meta}={version}"), "linux-image-")? {
            return Ok(Some(image));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_of_upstream_does_not_match_longer_ones() {
        for (known, is) in [
            ("1:7.2+dfsg-7+deb12u18+b3", true),
            ("7.2.22-1", true),
            ("7.2", true),
            ("1:7.20+dfsg-1", false),
            ("1:10.0.2+ds-2~bpo12+1", false),
            ("7:2-1", false),
        ] {
            assert_eq!(is_of("7.2", known), is, "{known}");
        }
    }

    #[test]
    fn versions_compare_by_number_not_by_character() {
        assert!(numbers("vmlinuz-6.12.95+deb12-cloud-amd64") > numbers("vmlinuz-6.1.0-56-cloud-amd64"));
        assert!(numbers("6.12.95-1~bpo12+1") > numbers("6.1.192-2"));
    }
}
