//! Compatibility in CI: the schema of each release is kept as a file, and a change after which streams of a kept release do not
//! load ends this program with an error.
//!
//! `cargo run --example compatibility` is what CI runs. At each release, `cargo run --example compatibility -- release-2` writes
//! the machine's schema under that name, to be committed. The program `vmstate check OLD.json NEW.json` compares two such files
//! by hand.

use std::error::Error;
use std::fs;
use std::path::Path;

use vmstate::VmState;
use vmstate::compat::{Direction, check_schemas};
use vmstate::schema::json::Schema;
use vmstate::section::Sections;

/// Release 1 had no `fifo_control`, and another name for `count`.
#[derive(VmState, Default)]
#[vmstate(name = "uart", version = 2, minimum_version = 1)]
struct Uart {
    divider: u16,
    received: u8,
    #[vmstate(since = 2)]
    fifo_control: u8,
}

/// Release 1 had no watchdog: its streams are complete without this section.
#[derive(VmState, Default)]
#[vmstate(name = "watchdog", version = 1)]
struct Watchdog {
    left_ms: u32,
}

/// The machine of today.
fn machine() -> vmstate::Result<Sections<'static>> {
    let mut sections = Sections::new();
    sections.add(Uart::default())?;
    sections.add(Watchdog::default())?.optional();
    Ok(sections)
}

const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/compatibility");

fn main() -> Result<(), Box<dyn Error>> {
    let today = machine()?.schema(Some("toy"))?;
    match std::env::args().nth(1) {
        Some(name) => Ok(fs::write(Path::new(KEPT).join(name).with_extension("json"), today.to_json())?),
        None => check(&today),
    }
}

/// Compares `today` with each release on file.
fn check(today: &Schema) -> Result<(), Box<dyn Error>> {
    let mut releases: Vec<_> = fs::read_dir(KEPT)?.collect::<Result<_, _>>()?;
    releases.retain(|entry| entry.path().extension().is_some_and(|end| end == "json"));
    releases.sort_by_key(|entry| entry.path());
    if releases.is_empty() {
        return Err(format!("no release is kept in {KEPT}").into());
    }
    for release in releases {
        let old = Schema::from_json(&fs::read_to_string(release.path())?)?;
        let report = check_schemas(&old, today);
        println!("# {}\n{report}", release.file_name().display());
        // The opposite direction was printed above, and nothing here requires it.
        let broken = report.sections.iter().find(|section| !section.broken(Direction::OldToNew, &[]).is_empty());
        if let Some(section) = broken {
            return Err(
                format!("{}: section {} does not load any more", release.path().display(), section.section).into()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_releases_load() {
        check(&machine().unwrap().schema(Some("toy")).unwrap()).unwrap();
    }

    #[test]
    fn a_section_that_release_1_lacks_must_be_optional() {
        let mut sections = machine().unwrap();
        sections.register("nic", 0, Watchdog::default()).unwrap();
        let error = check(&sections.schema(Some("toy")).unwrap()).unwrap_err();
        assert!(error.to_string().ends_with("release-1.json: section nic does not load any more"), "{error}");
    }
}
