//! What the lab takes from the distribution: a guest kernel into a cache without root, QEMU and tools by name.
//!
//! Debian and Ubuntu are known. Elsewhere each missing piece is named with what it is, and `--kernel` gives the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, FileContext, Result};
use crate::kernel::Kernel;
use crate::tree::find_program;

/// Packages whose newest version depends on a small kernel for virtual machines: Debian's, then Ubuntu's.
const KERNELS: &[&str] = &["linux-image-cloud-amd64", "linux-image-virtual", "linux-image-kvm"];

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
    if find_program("apt-get").is_none() || find_program("dpkg-deb").is_none() {
        return Err(Error::missing("a guest kernel", format!("{remedy} (no apt here to download one)")));
    }
    let mut image = newest_image()?;
    if image.is_none() && is_root() {
        run(Command::new("apt-get").args(["update", "-q"]))?;
        image = newest_image()?;
    }
    let Some(image) = image else {
        let remedy = format!("run `sudo apt-get update` so that apt knows {}, or {remedy}", KERNELS[0]);
        return Err(Error::missing("a guest kernel", remedy));
    };
    eprintln!("lab: downloading {image} into {}", cache.display());
    let packages: Vec<_> = [Some(image.clone()), modules_of(&image)?].into_iter().flatten().collect();
    download(&packages, &cache.join(&image))?;
    let image = cached(&cache).ok_or_else(|| Error::failed(format!("{image} holds no kernel image")))?;
    Kernel::open(&image)
}

/// QEMU, installed when it is missing and the user is root.
///
/// # Errors
/// A sentence with the command that installs it.
pub fn qemu() -> Result<PathBuf> {
    tool("qemu-system-x86_64", "qemu-system-x86")
}

/// A statically linked busybox: the shell of a guest; downloaded into the cache when it is not installed.
///
/// # Errors
/// When there is no apt, or the download fails.
pub fn busybox() -> Result<PathBuf> {
    let cached = cache()?.join("busybox-static");
    let inside = ["bin/busybox", "usr/bin/busybox"].map(|path| cached.join(path));
    if let Some(path) = find_program("busybox").or_else(|| inside.iter().find(|path| path.is_file()).cloned()) {
        return Ok(path);
    }
    download(&["busybox-static".to_owned()], &cached)?;
    let missing = || Error::missing("busybox", "install it with `sudo apt-get install busybox-static`");
    inside.into_iter().find(|path| path.is_file()).ok_or_else(missing)
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
    if !is_root() || find_program("apt-get").is_none() {
        return Err(missing());
    }
    let suite = backports(package);
    eprintln!("lab: installing {package}{}", suite.as_ref().map(|name| format!(" from {name}")).unwrap_or_default());
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-y", "-q", "--no-install-recommends"]);
    if let Some(suite) = suite {
        install.args(["-t", &suite]);
    }
    run(install.arg(package))?;
    find_program(program).ok_or_else(missing)
}

/// Downloads packages and unpacks them together into `home`, which appears only when it is whole.
fn download(packages: &[String], home: &Path) -> Result<()> {
    let parent = home.parent().unwrap_or(home);
    let scratch = tempfile::tempdir_in(parent).doing("make", parent)?;
    let root = scratch.path().join("root");
    run(Command::new("apt-get").args(["download", "-q"]).args(packages).current_dir(scratch.path()))?;
    for entry in fs::read_dir(scratch.path()).doing("list", scratch.path())?.flatten() {
        if entry.path().extension().is_some_and(|end| end == "deb") {
            run(Command::new("dpkg-deb").arg("-x").arg(entry.path()).arg(&root))?;
        }
    }
    // Another process may have been faster; its copy is as good.
    if let Err(error) = fs::rename(&root, home)
        && !home.is_dir()
    {
        return Err(error).doing("create", home);
    }
    Ok(())
}

/// Where downloads are kept: in cargo's target directory when we were built there, else in the user's cache.
fn cache() -> Result<PathBuf> {
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

/// The numbers of a version, for comparison.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// The image package that the newest version apt knows of a kernel metapackage depends on; backports count.
fn newest_image() -> Result<Option<String>> {
    for meta in KERNELS {
        let Some(version) = versions(meta)?.into_iter().max_by_key(|(version, _)| numbers(version)) else { continue };
        let record = output(Command::new("apt-cache").args(["show", &format!("{meta}={}", version.0)]))?;
        if let Some(image) = dependency(&record, "linux-image-") {
            return Ok(Some(image));
        }
    }
    Ok(None)
}

/// Ubuntu keeps a kernel's modules in a package of their own.
fn modules_of(image: &str) -> Result<Option<String>> {
    let record = output(Command::new("apt-cache").args(["show", image]))?;
    Ok(dependency(&record, "linux-modules-"))
}

/// The suite `CODENAME-backports` when apt has the package there.
fn backports(package: &str) -> Option<String> {
    let known = versions(package).ok()?;
    let (_, line) = known.into_iter().find(|(_, line)| line.contains("-backports/"))?;
    line.split_whitespace()
        .find_map(|word| word.split('/').find(|part| part.ends_with("-backports")))
        .map(str::to_owned)
}

/// Version and source line of each version that apt knows.
fn versions(package: &str) -> Result<Vec<(String, String)>> {
    let listing = output(Command::new("apt-cache").args(["madison", package]))?;
    let lines = listing.lines().filter_map(|line| {
        let mut columns = line.split('|').map(str::trim);
        let (name, version, source) = (columns.next()?, columns.next()?, columns.next()?);
        (name == package).then(|| (version.to_owned(), source.to_owned()))
    });
    Ok(lines.collect())
}

fn dependency(record: &str, prefix: &str) -> Option<String> {
    let line = record.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    let names = line.split(',').map(|one| one.split_whitespace().next().unwrap_or_default());
    names.map(str::to_owned).find(|name| name.starts_with(prefix))
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().doing("run", Path::new(command.get_program()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.output().doing("run", Path::new(command.get_program()))?;
    if output.status.success() {
        return Ok(());
    }
    let words: Vec<_> =
        [command.get_program()].into_iter().chain(command.get_args()).map(|w| w.to_string_lossy()).collect();
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(Error::failed(format!(
        "`{}` failed: {}",
        words.join(" "),
        reason.trim().lines().next_back().unwrap_or_default()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number_not_by_character() {
        assert!(numbers("vmlinuz-6.12.95+deb12-cloud-amd64") > numbers("vmlinuz-6.1.0-56-cloud-amd64"));
        assert!(numbers("6.12.95-1~bpo12+1") > numbers("6.1.192-2"));
    }

    #[test]
    fn the_image_is_found_among_the_dependencies() {
        let record = "Package: x\nDepends: linux-base, linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), z\n";
        assert_eq!(dependency(record, "linux-image-").unwrap(), "linux-image-6.1.0-56-cloud-amd64");
        assert_eq!(dependency(record, "linux-modules-"), None);
    }
}
