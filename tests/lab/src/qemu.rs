//! QEMU on this machine: its path, its version, and the installation of one that is new enough.
//!
//! Any version can emulate a host. Tests that compare QEMU's streams with ours need a version that makes such streams,
//! and ask for it: Debian 12's own QEMU is 7.2.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::apt;
use crate::error::{Error, Result};
use crate::packages;
use crate::process::output;
use crate::tree::find_program;

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// Debian's build with the `microvm` machine alone, which needs few libraries.
const MICROVM_PROGRAM: &str = "qemu-system-x86_64-microvm";

/// The oldest version that every test here can run with: the sections that `tests/e2e/qemu` makes are of this release.
pub const NEEDED: Version = Version(10, 0);

/// Directories of the firmware of QEMU's machines on Debian.
pub const FIRMWARE: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];

/// The oldest version that guests migrate from and to: Debian 12's own.
pub const OLDEST: Version = Version(7, 2);

/// A version of QEMU: its first and second number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// Parses the output of `qemu-system-x86_64 --version`: "QEMU emulator version 10.0.2 (Debian …)".
    fn parse(text: &str) -> Option<Self> {
        let (_, version) = text.split_once(" version ")?;
        let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().ok());
        Some(Self(numbers.next()??, numbers.next()??))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// QEMU of any version, installed when it is missing and the user is root.
///
/// # Errors
/// A sentence with the command that installs it.
pub fn any() -> Result<PathBuf> {
    packages::tool(PROGRAM, PACKAGE)
}

/// QEMU of this version or a newer one, as [`any`] finds it.
///
/// # Errors
/// A sentence that says which version is needed, which one is there, and the command that brings a newer one.
pub fn at_least(least: Version) -> Result<PathBuf> {
    static FOUND: OnceLock<std::result::Result<(PathBuf, Version), String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| find().map_err(|error| error.to_string()));
    let (path, version) = found.clone().map_err(Error::Failed)?;
    enough(least, version).map(|()| path)
}

/// A QEMU of version [`OLDEST`] with `microvm`: as [`program`] names it, else in the cache, else unpacked from Debian's
/// package into the cache. The installed QEMU stays as it is.
///
/// # Errors
/// When apt has no such version, as outside of Debian 12, or the download fails.
pub fn oldest() -> Result<PathBuf> {
    if let Some(path) = find_program(&program(OLDEST)) {
        return Ok(path);
    }
    let unpacked = packages::unpacked(PACKAGE, &OLDEST.to_string())?;
    Ok(unpacked.join("usr/bin").join(MICROVM_PROGRAM))
}

/// Name of the program of a version that is installed beside another one.
pub fn program(version: Version) -> String {
    format!("{PROGRAM}-{version}")
}

/// Installs QEMU, or a newer one where the version is older than [`NEEDED`]; only root may do so.
///
/// # Errors
/// When no QEMU that is new enough is available; the sentence says what to do.
pub fn install() -> Result<()> {
    if enough(NEEDED, find()?.1).is_err() && apt::may_install() {
        apt::install(PACKAGE)?;
    }
    enough(NEEDED, find()?.1)
}

fn find() -> Result<(PathBuf, Version)> {
    let path = any()?;
    let text = output(Command::new(&path).arg("--version"))?;
    let nonsense = || Error::failed(format!("{}: `--version` names no version but says {text:?}", path.display()));
    let version = Version::parse(&text).ok_or_else(nonsense)?;
    Ok((path, version))
}

fn enough(least: Version, version: Version) -> Result<()> {
    if version >= least {
        return Ok(());
    }
    let what = format!("QEMU {least} or newer");
    let remedy = format!("{PROGRAM} here is {version}; install a newer {PACKAGE} (on Debian stable: from backports)");
    Err(Error::missing(what, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compare_by_number() {
        let read = |text| Version::parse(text);
        let old =
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022 Fabrice Bellard";
        assert_eq!(read(old), Some(Version(7, 2)));
        assert_eq!(read("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2~bpo12+1)\n"), Some(Version(10, 0)));
        assert_eq!(read("QEMU emulator version 9.1.50 (v9.1.0-12-gabcdef)"), Some(Version(9, 1)));
        assert_eq!(read("QEMU emulator version 11.0\n"), Some(Version(11, 0)));
        assert_eq!(read("QEMU emulator version ten"), None);
        assert_eq!(read("sh: not found"), None);
        assert!(Version(10, 0) > Version(9, 1) && Version(9, 10) > Version(9, 1) && Version(9, 1) > Version(7, 2));
    }

    #[test]
    fn the_error_for_an_old_version_names_it_and_the_needed_one() {
        assert!(enough(Version(9, 1), Version(9, 1)).is_ok());
        let error = enough(Version(9, 1), Version(7, 2)).unwrap_err().to_string();
        assert!(error.starts_with("QEMU 9.1 or newer is missing: qemu-system-x86_64 here is 7.2; install"), "{error}");
    }
}
