//! apt of Debian and Ubuntu: queries package versions, adds Debian's backports, installs and downloads packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use crate::error::{FileContext, Result};
use crate::process::{output, run};
use crate::tree::find_program;

const SOURCES: &str = "/etc/apt";

/// Whether this machine has apt.
pub(crate) fn is_here() -> bool {
    find_program("apt-get").is_some() && find_program("dpkg-deb").is_some()
}

/// Whether this process may install packages with apt.
pub(crate) fn may_install() -> bool {
    is_root() && is_here()
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Updates apt's package lists once, with backports added; only root may. Without a network, the lists already here are
/// used.
pub(crate) fn refresh() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if !may_install() {
            return;
        }
        let update = || run(Command::new("apt-get").args(["update", "-q"]));
        let added = add_backports().unwrap_or_else(|error| {
            eprintln!("lab: backports are not added: {error}");
            None
        });
        let mut updated = update();
        if let (Err(_), Some(entry)) = (&updated, &added) {
            // A suite that this release does not have would break every later update of the machine.
            let _ = fs::remove_file(entry);
            updated = update();
        }
        if let Err(error) = updated {
            eprintln!("lab: {error}; going on with apt's present package lists");
        }
    });
}

/// Installs a package or brings it to its newest version, from backports where apt has it there.
pub(crate) fn install(package: &str) -> Result<()> {
    refresh();
    let from = |suite: Option<&str>| {
        eprintln!("lab: installing {package}{}", suite.map(|name| format!(" from {name}")).unwrap_or_default());
        let mut install = Command::new("apt-get");
        install.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-y", "-q", "--no-install-recommends"]);
        run(install.args(suite.map(|suite| ["-t", suite]).into_iter().flatten()).arg(package))
    };
    match backports(package) {
        Some(suite) => from(Some(&suite)).or_else(|_| from(None)),
        None => from(None),
    }
}

/// Downloads packages and unpacks them together into `home`, which appears only when it is whole.
pub(crate) fn download(packages: &[String], home: &Path) -> Result<()> {
    refresh();
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

/// Version and source line of each version of `package` in apt's lists.
pub(crate) fn versions(package: &str) -> Result<Vec<(String, String)>> {
    let listing = output(Command::new("apt-cache").args(["madison", package]))?;
    let lines = listing.lines().filter_map(|line| {
        let mut columns = line.split('|').map(str::trim);
        let (name, version, source) = (columns.next()?, columns.next()?, columns.next()?);
        (name == package).then(|| (version.to_owned(), source.to_owned()))
    });
    Ok(lines.collect())
}

/// The first package that `package` (`NAME` or `NAME=VERSION`) depends on whose name begins with `prefix`.
pub(crate) fn dependency(package: &str, prefix: &str) -> Result<Option<String>> {
    Ok(dependency_in(&output(Command::new("apt-cache").args(["show", package]))?, prefix))
}

fn dependency_in(record: &str, prefix: &str) -> Option<String> {
    let line = record.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    let names = line.split(',').map(|one| one.split_whitespace().next().unwrap_or_default());
    names.map(str::to_owned).find(|name| name.starts_with(prefix))
}

/// The suite `CODENAME-backports` when apt has the package there.
fn backports(package: &str) -> Option<String> {
    let known = versions(package).ok()?;
    let (_, line) = known.into_iter().find(|(_, line)| line.contains("-backports/"))?;
    line.split_whitespace()
        .find_map(|word| word.split('/').find(|part| part.ends_with("-backports")))
        .map(str::to_owned)
}

/// Adds Debian's backports, which have a newer QEMU and kernel, to apt's sources, unless they are there already.
/// Returns the sources file that was added.
fn add_backports() -> Result<Option<PathBuf>> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let word = |name: &str| release.lines().find_map(|line| line.strip_prefix(name)).map(|word| word.trim_matches('"'));
    let (Some("debian"), Some(codename)) = (word("ID="), word("VERSION_CODENAME=")) else { return Ok(None) };
    let parts = Path::new(SOURCES).join("sources.list.d");
    let listed = fs::read_dir(&parts).into_iter().flatten().flatten().map(|entry| entry.path());
    let files: Vec<PathBuf> = listed.chain([Path::new(SOURCES).join("sources.list")]).collect();
    let texts: Vec<String> = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    let suite = format!("{codename}-backports");
    if texts.iter().any(|text| text.contains(&suite)) {
        return Ok(None);
    }
    let Some((kind, entry)) = texts.iter().find_map(|text| entry_for(text, codename, &suite)) else { return Ok(None) };
    let file = parts.join(format!("backports.{kind}"));
    eprintln!("lab: adding {suite} to apt's sources as {}", file.display());
    fs::write(&file, entry).doing("write", &file)?;
    Ok(Some(file))
}

/// The sources entry for `suite`, copied from the one that names `codename`, with the extension of its file: `sources`
/// for a stanza or `list` for a line (sources.list(5)).
fn entry_for(text: &str, codename: &str, suite: &str) -> Option<(&'static str, String)> {
    const SUITES: &str = "Suites:";
    let names = |line: &str| line.split_whitespace().any(|word| word == codename);
    let is_suites = |line: &&str| line.starts_with(SUITES) && names(line);
    if let Some(stanza) = text.split("\n\n").find(|stanza| stanza.lines().any(|line| is_suites(&line))) {
        let lines = stanza
            .lines()
            .map(|line| if is_suites(&line) { format!("{SUITES} {suite}\n") } else { format!("{line}\n") });
        return Some(("sources", lines.collect()));
    }
    let line = text.lines().find(|line| line.starts_with("deb ") && names(line))?;
    let words = line.split_whitespace().map(|word| if word == codename { suite } else { word });
    Some(("list", words.collect::<Vec<_>>().join(" ") + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_found_among_the_dependencies() {
        let record = "Package: x\nDepends: linux-base, linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), z\n";
        assert_eq!(dependency_in(record, "linux-image-").unwrap(), "linux-image-6.1.0-56-cloud-amd64");
        assert_eq!(dependency_in(record, "linux-modules-"), None);
    }

    #[test]
    fn backports_come_from_where_the_release_comes_from() {
        let entry = |text| entry_for(text, "bookworm", "bookworm-backports");
        let stanzas = "Types: deb\nURIs: http://a\nSuites: bookworm-security\n\n\
                       Types: deb\n# a note\nURIs: http://b\nSuites: bookworm bookworm-updates\nSigned-By: /k\n";
        let made = "Types: deb\n# a note\nURIs: http://b\nSuites: bookworm-backports\nSigned-By: /k\n";
        assert_eq!(entry(stanzas), Some(("sources", made.to_owned())));
        let lines = "# deb http://a bookworm main\ndeb http://a bookworm-updates main\ndeb [signed-by=/k] http://b bookworm main\n";
        assert_eq!(entry(lines), Some(("list", "deb [signed-by=/k] http://b bookworm-backports main\n".to_owned())));
        assert_eq!(entry("deb http://a trixie main\n"), None);
    }
}
