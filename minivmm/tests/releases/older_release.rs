//! minivmm can save its sections at the versions of every release that was locked.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use minivmm::kvm::state::ClockReference;
use vmstate::Result;
use vmstate::channel::FileChannel;
use vmstate::dump::{Dump, Part};
use vmstate::migrate::snapshot;
use vmstate::ram::{GuestRam, RamBlock};
use vmstate::schema::json::Schema;
use vmstate::section::Sections;

use super::machine;

struct NoRam;

impl GuestRam for NoRam {
    fn blocks(&self) -> &[RamBlock] {
        &[]
    }

    fn read(&self, _: usize, _: u64, _: &mut [u8]) -> Result<()> {
        unreachable!("there is none")
    }

    fn write(&self, _: usize, _: u64, _: &[u8]) -> Result<()> {
        unreachable!("there is none")
    }

    fn zero_page(&self, _: usize, _: u64) -> Result<()> {
        unreachable!("there is none")
    }
}

/// Makes the schema of a lock's entry.
fn release(entry: &str) -> Schema {
    let locks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/locks");
    let schema = fs::read_to_string(locks.join(entry).join("schema.json")).unwrap();
    Schema::from_json(&schema).unwrap()
}

/// Returns name, version and size of each section that is sent.
fn sent(sections: &mut Sections<'_>) -> Result<Vec<(String, u32, u64)>> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapshot");
    snapshot::save(&mut FileChannel::create(&file).unwrap(), "microvm", sections, &NoRam)?;
    let dump = Dump::read(&fs::read(file).unwrap());
    let full = dump.sections().filter(|section| section.part == Part::Full);
    Ok(full.map(|section| (section.header.idstr.to_string(), section.header.version, section.size)).collect())
}

#[test]
fn a_machine_has_the_versions_of_the_release() {
    let mut sections = machine();
    sections.save_for(Some(release("machine/2")));
    let sent: BTreeSet<_> =
        sent(&mut sections).unwrap().into_iter().map(|(name, version, _)| (name, version)).collect();
    let release = release("machine/2");
    let there = release.sections().iter().map(|(name, description)| (name.clone(), description.version));
    assert_eq!(sent, there.collect());
}

/// The first release had no ownership record, and no preflight.
#[test]
fn state_unknown_to_the_first_release_is_named() {
    let mut sections = machine();
    sections.save_for(Some(release("machine/1")));
    let error = sent(&mut sections).unwrap_err().to_string();
    for name in ["minivmm/preflight/0", "minivmm/ownership/0"] {
        assert!(error.contains(&format!("{name}: this section is not known there")), "{error}");
    }
    assert_eq!(error.matches("; ").count(), 1, "{error}");
}

/// docs/minivmm-devices.md: version 2 is 8 bytes longer.
#[test]
fn a_clock_goes_without_what_its_first_version_did_not_have() {
    let sizes = ["minivmm-clock/1", "minivmm-clock/2"].map(|entry| {
        let mut sections = Sections::new();
        sections.add(ClockReference::default()).unwrap();
        sections.save_for(Some(release(entry)));
        sent(&mut sections).unwrap()
    });
    let name = || "minivmm/clock".to_owned();
    assert_eq!(sizes, [vec![(name(), 1, 16)], vec![(name(), 2, 24)]]);
}
