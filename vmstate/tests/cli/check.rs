//! `vmstate check` on QEMU's own dump and on copies of it with one change each: every gap that QEMU's checker
//! (scripts/vmstate-static-checker.py) has is reported.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::vmstate;

/// Two releases in a temporary folder.
struct Releases {
    _folder: TempDir,
    old: PathBuf,
    new: PathBuf,
}

impl Releases {
    fn new(old: &Value, new: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = [("old.json", old), ("new.json", new)].map(|(name, schema)| {
            let path = folder.path().join(name);
            std::fs::write(&path, schema.to_string()).unwrap();
            path
        });
        Self { _folder: folder, old, new }
    }

    fn check(&self, arguments: &[&str]) -> (i32, String) {
        let (code, out, err) = vmstate(&[&["check"], arguments].concat(), &[&self.old, &self.new]);
        assert_eq!(err, "");
        (code, out)
    }
}

fn dump() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/qemu-10.0-dump-vmstate.json")
}

fn qemu() -> Value {
    serde_json::from_str(&std::fs::read_to_string(dump()).unwrap()).unwrap()
}

/// QEMU's dump, and a copy with a change to one section's description.
fn changed(section: &str, change: impl FnOnce(&mut Value)) -> Releases {
    let old = qemu();
    let mut new = old.clone();
    change(&mut new[section]["Description"]);
    for version in ["version_id", "minimum_version_id"] {
        new[section][version] = new[section]["Description"][version].clone();
    }
    Releases::new(&old, &new)
}

fn fields(description: &mut Value) -> &mut Vec<Value> {
    description["Fields"].as_array_mut().unwrap()
}

fn field(name: &str, size: u32) -> Value {
    json!({"field": name, "version_id": 0, "field_exists": false, "size": size})
}

/// QEMU's I/O APIC has `id`, `ioregsel`, 8 bytes unused and `irr` since 2, and `ioredtbl`, 24 entries of 8 bytes.
const IOAPIC: &str = "kvm-ioapic";

#[track_caller]
fn reported(releases: &Releases, arguments: &[&str], code: i32, says: &[&str]) {
    let (found, out) = releases.check(arguments);
    assert_eq!(found, code, "{out}");
    assert!(says.iter().all(|says| out.contains(says)), "{says:?} in:\n{out}");
}

#[test]
fn the_same_release_is_compatible() {
    for arguments in [&["check"][..], &["check", "--both"]] {
        let (code, out, err) = vmstate(arguments, &[&dump(), &dump()]);
        assert_eq!((code, err.as_str()), (0, ""));
        assert!(out.starts_with("24 sections load both ways\ncompatible: "), "{out}");
    }
}

#[test]
fn g1_a_field_is_appended_without_a_version() {
    let releases = changed(IOAPIC, |ioapic| fields(ioapic).push(field("extra", 4)));
    reported(&releases, &[], 1, &["old -> new, version 3: breaks at extra", "load: kvm-ioapic\n"]);
}

#[test]
fn g2_an_array_grows() {
    let releases = changed(IOAPIC, |ioapic| fields(ioapic)[4]["num"] = json!(48));
    reported(&releases, &[], 1, &["old -> new, version 3: breaks at ioredtbl"]);
}

#[test]
fn g3_a_field_gets_a_predicate() {
    let releases = changed(IOAPIC, |ioapic| fields(ioapic)[3]["field_exists"] = json!(true));
    reported(&releases, &[], 1, &["old -> new, version 3: loads if "]);
}

#[test]
fn g4_the_version_of_a_field_rises() {
    let releases = changed(IOAPIC, |ioapic| fields(ioapic)[4]["version_id"] = json!(2));
    reported(&releases, &[], 1, &["old -> new, version 3: loads\n", "old -> new, version 1: breaks at ioredtbl"]);
}

#[test]
fn g5_a_subsection_is_added() {
    let releases = changed(IOAPIC, |ioapic| {
        let fields = [field("timeout", 4)];
        ioapic["Subsections"] =
            json!([{"name": "ioapic/eoi", "version_id": 1, "minimum_version_id": 1, "Fields": fields}]);
    });
    let condition = "new -> old, version 3: loads if subsection \"ioapic/eoi\" is not sent, else breaks";
    reported(&releases, &[], 0, &[condition, "compatible: in the new release"]);
    // If the opposite direction is required, the user has to assume that the subsection is not sent.
    let assumed = "subsection \"ioapic/eoi\" is not sent";
    reported(&releases, &["--both"], 1, &[condition, &format!(": --assume '{assumed}'\n")]);
    reported(&releases, &["--both", "--assume", assumed], 0, &["compatible: in the old release"]);
}

#[test]
fn g6_a_field_becomes_a_struct_of_the_same_size() {
    let releases = changed(IOAPIC, |ioapic| {
        let halves = [field("low", 4), field("high", 4)];
        fields(ioapic)[4]["Description"] =
            json!({"name": "entry", "version_id": 1, "minimum_version_id": 1, "Fields": halves});
    });
    reported(
        &releases,
        &[],
        1,
        &["old -> new, version 3: breaks at ioredtbl because ioredtbl (8 bytes) is read as ioredtbl[0].low (4 bytes)"],
    );
}

#[test]
fn g7_there_were_no_fields() {
    let Releases { _folder, old, new } = changed("isa-pit", |pit| fields(pit).clear());
    let releases = Releases { _folder, old: new, new: old };
    reported(&releases, &[], 1, &["old -> new, version 3: breaks at \"channels[0].irq_disabled\""]);
}

#[test]
fn g8_a_section_is_new_or_gone() {
    let (with, mut without) = (qemu(), qemu());
    without.as_object_mut().unwrap().shift_remove("acpi-ged").unwrap();
    let says = "new -> old, version 1: breaks at acpi-ged because the reader does not have this section";
    let added = Releases::new(&without, &with);
    reported(&added, &[], 0, &[says]);
    reported(&added, &["--both"], 1, &[says]);
    let says = "old -> new, version 1: breaks at acpi-ged because the reader does not have this section";
    reported(&Releases::new(&with, &without), &[], 1, &[says]);
}

/// A schema with types: QEMU's dumps have none, this library's have.
fn typed(fields: &[(&str, u32, &str)]) -> Value {
    let field = |&(name, size, kind): &(&str, u32, &str)| {
        let mut field = field(name, size);
        field["type"] = json!(kind);
        field
    };
    let fields: Vec<Value> = fields.iter().map(field).collect();
    let versions = json!({"version_id": 1, "minimum_version_id": 1});
    let (mut section, mut description) = (versions.clone(), versions);
    section["Name"] = json!("dev");
    description["name"] = json!("dev");
    description["Fields"] = json!(fields);
    section["Description"] = description;
    json!({"dev": section})
}

#[test]
fn g9_another_type_of_the_same_size() {
    let old = typed(&[("level", 4, "uint32"), ("on", 1, "uint8")]);
    let new = typed(&[("level", 4, "int32"), ("on", 1, "bool")]);
    let says = ["warning: level (u32) is read as level (i32)", "old -> new, version 1: loads if on is 0 or 1, else"];
    reported(&Releases::new(&old, &new), &[], 1, &says);
    reported(&Releases::new(&old, &new), &["--assume", "on is 0 or 1"], 0, &says);
}

#[test]
fn g10_a_minimum_version_above_what_is_written() {
    let releases = changed("isa-pit", |pit| pit["minimum_version_id"] = json!(4));
    reported(&releases, &[], 1, &["old -> new, version 3: breaks at i8254 because version 3 is older than 4"]);
}

/// Support for streams of release 1, which the old release only loads, was dropped on purpose; the old release's own streams
/// count.
#[test]
fn a_version_is_dropped_on_purpose() {
    let releases = changed("isa-pit", |pit| pit["minimum_version_id"] = json!(3));
    reported(&releases, &[], 0, &["old -> new, version 2: breaks at i8254 because version 2 is older than 3"]);
}

#[test]
fn g11_unused_bytes_in_place_of_two_fields_are_no_break() {
    let old = typed(&[("a", 4, "uint32"), ("b", 8, "uint64"), ("y", 1, "uint8"), ("z", 1, "uint8")]);
    let new = typed(&[("gone", 12, "unused_buffer"), ("y", 1, "uint8"), ("z", 1, "uint8")]);
    let says = ["warning: a (u32) is skipped", "warning: b (u64) is skipped", "compatible: in the old release"];
    reported(&Releases::new(&old, &new), &["--both"], 0, &says);
    reported(&Releases::new(&new, &old), &["--both"], 0, &["warning: a (u32) becomes zero"]);
}

#[test]
fn g12_a_rename_is_no_change() {
    let releases = changed(IOAPIC, |ioapic| fields(ioapic)[3]["field"] = json!("requests"));
    reported(&releases, &["--both"], 0, &["24 sections load both ways\n"]);
}

#[test]
fn markdown_is_a_table_and_details() {
    let old = typed(&[("level", 4, "uint32")]);
    let mut new = typed(&[("level_now", 4, "int32")]);
    new["fan|1"] = json!({"Name": "fan|1", "version_id": 1, "minimum_version_id": 1,
        "Description": {"name": "fan", "version_id": 1, "minimum_version_id": 1}});
    let (code, out) = Releases::new(&old, &new).check(&["--both", "--markdown"]);
    let expected = "\
### Do migration streams still load?

- **compatible**: in the new release, streams of the old one load
- **not compatible**: in the old release, streams of the new one do not always load: fan\\|1

| section | old → new | new → old |
| --- | --- | --- |
| `dev` | ✅ loads, see below | ✅ loads, see below |
| `fan\\|1` | – | ❌ breaks |

#### `dev`

- old -\\> new, version 1: loads
  - warning: level (u32) is read as level\\_now (i32): the same bytes, another range of values
  - relies on: the hooks of dev, to accept the loaded values: the description does not name them
- new -\\> old, version 1: loads
  - warning: level\\_now (i32) is read as level (u32): the same bytes, another range of values
  - relies on: the hooks of dev, to accept the loaded values: the description does not name them

#### `fan\\|1`

- new -\\> old, version 1: breaks at fan\\|1 because the reader does not have this section -\\> leave the device out of \
machines of the old release
";
    assert_eq!((code, out.as_str()), (1, expected));
}

/// Whatever one section contains, the others get their verdicts.
#[test]
fn a_section_that_contradicts_its_description_is_not_compared() {
    let mut old = qemu();
    old[IOAPIC]["version_id"] = json!(7);
    let (code, out) = Releases::new(&old, &qemu()).check(&[]);
    assert_eq!(code, 1, "{out}");
    let why = "not compared at kvm-ioapic because the schema contradicts itself: the section is of version 7, its description of \
               version 3 -> ";
    assert!(out.contains(why), "{out}");
    assert!(out.contains("23 other sections load both ways"), "{out}");
}

#[test]
fn json_has_the_same_verdicts() {
    let mut other = qemu();
    other["vmschkmachine"]["Name"] = json!("virt");
    other.as_object_mut().unwrap().shift_remove("acpi-ged").unwrap();
    let (code, out) = Releases::new(&qemu(), &other).check(&["--json"]);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &found["compatible"], &found["machines"]), (1, &json!(false), &json!(["microvm", "virt"])));
    let sections = found["sections"].as_array().unwrap();
    let ged = sections.iter().find(|section| section["section"] == "acpi-ged").unwrap();
    assert_eq!(ged["comparisons"][0]["direction"], "old-to-new");
    assert_eq!(ged["comparisons"][0]["verdict"]["breaks"]["reason"], "no-section");
}

#[test]
fn bad_input_ends_with_2_and_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let stream = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/streams/microvm-linux-kvm.bin");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut odd = qemu();
    odd[IOAPIC]["Description"]["Fields"][4]["num"] = json!(-1);
    for (path, says) in [
        (folder.path().join("missing.json"), "missing.json: No such file"),
        (
            file("text.json", "{\n\"a\": nonsense}"),
            "text.json: the schema is no JSON: expected ident at line 2 column 7",
        ),
        (
            file("odd.json", &odd.to_string()),
            "odd.json: kvm-ioapic › Description › Fields[4]: \"num\" has to be a number",
        ),
        (file("empty.json", "{}"), "empty.json: no sections"),
        (stream, "microvm-linux-kvm.bin: a migration stream; a schema is JSON"),
    ] {
        for files in [[&*path, &*dump()], [&*dump(), &*path]] {
            let (code, out, err) = vmstate(&["check"], &files);
            assert_eq!((code, out.as_str()), (2, ""), "{err}");
            assert!(err.contains(says), "{err}");
        }
    }
}

/// A section under a new name, with and without its older one.
#[test]
fn a_rename_is_compatible_with_its_alias() {
    let old = qemu();
    let mut new = old.clone();
    let mut renamed = new.as_object_mut().unwrap().remove(IOAPIC).unwrap();
    renamed["Name"] = json!("x-ioapic");
    new["x-ioapic"] = renamed;
    reported(
        &Releases::new(&old, &new),
        &[],
        1,
        &["breaks at kvm-ioapic because the reader does not have this section"],
    );
    new["x-ioapic"]["aliases"] = json!([IOAPIC]);
    let releases = Releases::new(&old, &new);
    reported(&releases, &[], 0, &["compatible: in the new release, streams of the old one load"]);
    reported(&releases, &["--both"], 1, &["breaks at x-ioapic because the reader does not have this section"]);
}
