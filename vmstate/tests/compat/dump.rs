//! QEMU's own dump of a machine's devices: it loads in itself, and every gap of QEMU's checker
//! (scripts/vmstate-static-checker.py) is detected in a copy with one change.

use serde_json::{Value, json};
use vmstate::compat::{Assumption, Comparison, Direction, RegistryReport, Verdict, check_schemas};
use vmstate::schema::json::Schema;

const DUMP: &str = include_str!("../fixtures/qemu-10.0-dump-vmstate.json");

fn schema(dump: &Value) -> Schema {
    Schema::from_json(&dump.to_string()).expect("a dump in QEMU's shape")
}

/// The report on QEMU's dump and a copy with a change to one section's description.
fn changed(section: &str, change: impl FnOnce(&mut Value)) -> RegistryReport {
    let old: Value = serde_json::from_str(DUMP).unwrap();
    let mut new = old.clone();
    change(&mut new[section]["Description"]);
    for version in ["version_id", "minimum_version_id"] {
        new[section][version] = new[section]["Description"][version].clone();
    }
    check_schemas(&schema(&old), &schema(&new))
}

/// Checks the sentences about one section; all others load.
#[track_caller]
fn says(report: &RegistryReport, section: &str, expected: &[&str]) {
    let is_fine = |comparison: &Comparison| comparison.verdict == Verdict::Loads && comparison.warnings.is_empty();
    let mut sentences = Vec::new();
    for found in &report.sections {
        match found.section == section {
            true => sentences.extend(found.comparisons.iter().map(|comparison| {
                let way = if comparison.direction == Direction::OldToNew { "there" } else { "back" };
                let verdict = comparison.verdict.to_string();
                format!("{way} {}: {}", comparison.version, verdict.split(" -> ").next().unwrap())
            })),
            false => assert!(found.comparisons.iter().all(is_fine), "{found}"),
        }
    }
    assert_eq!(sentences, expected);
}

fn fields(description: &mut Value) -> &mut Vec<Value> {
    description["Fields"].as_array_mut().unwrap()
}

fn field(name: &str, size: u32) -> Value {
    json!({"field": name, "version_id": 0, "field_exists": false, "size": size})
}

/// QEMU's I/O APIC: `id`, `ioregsel`, 8 bytes unused and `irr` since 2, and `ioredtbl`, 24 entries of 8 bytes.
const IOAPIC: &str = "kvm-ioapic";

#[test]
fn a_dump_loads_in_itself_and_lists_its_assumptions() {
    let dump = serde_json::from_str(DUMP).unwrap();
    let report = check_schemas(&schema(&dump), &schema(&dump));
    assert_eq!(report.sections.len(), 24);
    for section in &report.sections {
        for comparison in &section.comparisons {
            assert_eq!((&comparison.verdict, comparison.warnings.as_slice()), (&Verdict::Loads, &[][..]), "{section}");
        }
    }
    // `config` is listed twice, under two predicates that the dump does not name.
    let bridge = report.sections.iter().find(|section| section.section == "pcie-pci-bridge").unwrap();
    let predicates = ["parent_obj.config", "parent_obj.config#2"].map(str::to_owned).to_vec();
    assert!(bridge.comparisons[0].relies_on.contains(&Assumption::Predicates(predicates)), "{bridge}");
}

#[test]
fn g1_a_field_is_appended_without_a_version() {
    let report = changed(IOAPIC, |ioapic| fields(ioapic).push(field("extra", 4)));
    let breaks = [
        "there 3: breaks at extra because the stream does not have it",
        "there 1: breaks at extra because the stream does not have it",
        "back 3: breaks at extra because the reader does not have it",
    ];
    says(&report, IOAPIC, &breaks);
}

#[test]
fn g2_an_array_grows() {
    let report = changed(IOAPIC, |ioapic| fields(ioapic)[4]["num"] = json!(25));
    let breaks = [
        "there 3: breaks at ioredtbl because the stream does not have it",
        "there 1: breaks at ioredtbl because the stream does not have it",
        "back 3: breaks at ioredtbl because the reader does not have it",
    ];
    says(&report, IOAPIC, &breaks);
}

#[test]
fn g3_a_predicate_appears() {
    let report = changed(IOAPIC, |ioapic| fields(ioapic)[4]["field_exists"] = json!(true));
    let unless = "loads if the predicate of ioredtbl is true, else breaks at ioredtbl because the";
    let says_so = [
        format!("there 3: {unless} reader does not have it"),
        format!("there 1: {unless} reader does not have it"),
        format!("back 3: {unless} stream does not have it"),
    ];
    says(&report, IOAPIC, &says_so.each_ref().map(String::as_str));
}

#[test]
fn g4_the_version_of_a_field_rises() {
    let report = changed(IOAPIC, |ioapic| fields(ioapic)[4]["version_id"] = json!(2));
    let loads = ["there 3: loads", "there 1: breaks at ioredtbl because the reader does not have it", "back 3: loads"];
    says(&report, IOAPIC, &loads);
}

#[test]
fn g5_a_subsection_is_added() {
    let report = changed(IOAPIC, |ioapic| {
        let subsection =
            json!({"name": "ioapic/eoi", "version_id": 1, "minimum_version_id": 1, "Fields": [field("timeout", 4)]});
        ioapic["Subsections"] = json!([subsection]);
    });
    let condition = "back 3: loads if subsection \"ioapic/eoi\" is not sent, \
                     else breaks at ioapic/eoi because the reader does not know this subsection";
    says(&report, IOAPIC, &["there 3: loads", "there 1: loads", condition]);
}

#[test]
fn g6_a_field_becomes_a_struct_of_the_same_size() {
    let report = changed(IOAPIC, |ioapic| {
        fields(ioapic)[4]["Description"] = json!({"name": "entry", "version_id": 1, "minimum_version_id": 1, "Fields": [field("l", 4), field("h", 4)]});
    });
    let breaks = [
        "there 3: breaks at ioredtbl because ioredtbl (8 bytes) is read as ioredtbl[0].l (4 bytes)",
        "there 1: breaks at ioredtbl because ioredtbl (8 bytes) is read as ioredtbl[0].l (4 bytes)",
        "back 3: breaks at ioredtbl[0].l because ioredtbl[0].l (4 bytes) is read as ioredtbl (8 bytes)",
    ];
    says(&report, IOAPIC, &breaks);
}

#[test]
fn g7_there_are_no_fields_any_more() {
    let report = changed(IOAPIC, |ioapic| fields(ioapic).clear());
    let breaks = [
        "there 3: breaks at id because the reader does not have it",
        "there 1: breaks at id because the reader does not have it",
        "back 3: breaks at id because the stream does not have it",
    ];
    says(&report, IOAPIC, &breaks);
}

#[test]
fn g8_a_section_is_new() {
    let old: Value = serde_json::from_str(DUMP).unwrap();
    let mut new = old.clone();
    new["extra"] = old[IOAPIC].clone();
    new["extra"]["Name"] = "extra".into();
    let there = check_schemas(&schema(&old), &schema(&new));
    says(&there, "extra", &["back 3: breaks at extra because the reader does not have this section"]);
    let back = check_schemas(&schema(&new), &schema(&old));
    says(&back, "extra", &["there 3: breaks at extra because the reader does not have this section"]);
}

#[test]
fn g9_another_size_of_the_same_number_of_bytes() {
    // Within the limits of a dump: another type of the same size in memory is not detected, and the report says so.
    let report = changed(IOAPIC, |ioapic| {
        fields(ioapic)[4]["size"] = json!(4);
        fields(ioapic)[4]["num"] = json!(48);
    });
    let breaks = [
        "there 3: breaks at ioredtbl because ioredtbl (8 bytes) is read as ioredtbl (4 bytes)",
        "there 1: breaks at ioredtbl because ioredtbl (8 bytes) is read as ioredtbl (4 bytes)",
        "back 3: breaks at ioredtbl because ioredtbl (4 bytes) is read as ioredtbl (8 bytes)",
    ];
    says(&report, IOAPIC, &breaks);
    let ioapic = report.sections.iter().find(|section| section.section == IOAPIC).unwrap();
    assert!(ioapic.comparisons.iter().all(|comparison| comparison.relies_on.is_empty()), "nothing relies on a break");
    let same = changed(IOAPIC, |_| {});
    let ioapic = same.sections.iter().find(|section| section.section == IOAPIC).unwrap();
    let sizes = ["id", "ioredtbl", "ioregsel", "irr"].map(str::to_owned).to_vec();
    assert_eq!(ioapic.comparisons[0].relies_on, [Assumption::Sizes(sizes), Assumption::Unsaid(vec!["ioapic".into()])]);
}

#[test]
fn g10_the_minimum_version_rises() {
    let report = changed(IOAPIC, |ioapic| ioapic["minimum_version_id"] = json!(3));
    let breaks = "there 1: breaks at ioapic because version 1 is older than 3, the oldest that loads";
    says(&report, IOAPIC, &["there 3: loads", breaks, "back 3: loads"]);
}

#[test]
fn g11_padding_is_as_many_bytes_wherever_it_is() {
    let rest = || [field("y", 1), field("z", 1)];
    for taken in [vec![(4, 1), (4, 2)], vec![(4, 2), (4, 1)]] {
        let device = |fields: Vec<Value>| {
            let of = json!({"name": "d", "version_id": 1, "minimum_version_id": 1, "Fields": fields});
            schema(&json!({"d": {"Name": "d", "version_id": 1, "minimum_version_id": 1, "Description": of}}))
        };
        let words = taken.iter().map(|(size, num)| {
            let mut word = field("word", *size);
            word["num"] = json!(num);
            word
        });
        let old = device(words.chain(rest()).collect());
        let new = device([field("unused", 12)].into_iter().chain(rest()).collect());
        let report = check_schemas(&old, &new);
        assert!(report.is_compatible(true), "{report}");
        assert_eq!(report.sections[0].comparisons[0].warnings.len(), 2, "{report}");
    }
}

#[test]
fn g12_renames_and_moves_into_a_struct_need_no_list() {
    let report = changed(IOAPIC, |ioapic| {
        let fields = fields(ioapic);
        fields[0]["field"] = "identifier".into();
        let moved: Vec<Value> = fields.drain(2..).collect();
        let version = json!(3);
        let mut all = field("table", 204);
        all["Description"] = json!({"name": "table", "version_id": version, "minimum_version_id": 1, "Fields": moved});
        fields.push(all);
        ioapic["name"] = "io-apic".into();
        // A nested struct is read at its own version.
        ioapic["minimum_version_id"] = version;
    });
    let too_old = "there 1: breaks at ioapic because version 1 is older than 3, the oldest that loads";
    says(&report, IOAPIC, &["there 3: loads", too_old, "back 3: loads"]);
}
