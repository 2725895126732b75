//! Migration to the release whose schema is in a file, by QMP: the guest arrives there, or runs on here with a reason.

use std::path::Path;

use minivmm::control::{Client, Server};
use minivmm::vm::{MigrationStatus, RunState};
use serde_json::{Value, json};

use crate::machine::{Machine, lab, unix_address};

#[test]
fn a_guest_goes_to_the_release_of_a_schema_or_runs_on_here() {
    let Some(dir) = lab() else { return };
    let file = |name: &str| dir.path().join(name).display().to_string();
    let source = Machine::start(dir.path(), None);
    source.await_passes(1);
    let _server = Server::bind(&dir.path().join("qmp"), source.handle.clone()).unwrap();
    let mut client = Client::connect(&dir.path().join("qmp")).unwrap();
    client.execute("dump-schema", json!({"file": file("schema")})).unwrap();

    let schema: Value = serde_json::from_str(&std::fs::read_to_string(file("schema")).unwrap()).unwrap();
    let write = |name: &str, schema: &Value| std::fs::write(Path::new(&file(name)), schema.to_string()).unwrap();
    let mut lacking = schema.clone();
    lacking.as_object_mut().unwrap().remove("kvmclock").unwrap();
    let apic = &mut lacking["apic"];
    (apic["version_id"], apic["Description"]["version_id"]) = (json!(2), json!(2));
    (apic["minimum_version_id"], apic["Description"]["minimum_version_id"]) = (json!(2), json!(2));
    write("lacking", &lacking);
    let mut unsent = schema.clone();
    unsent["tsc"] = schema["timer"].clone();
    (unsent["tsc"]["Name"], unsent["tsc"]["Description"]["name"]) = (json!("tsc"), json!("tsc"));
    write("unsent", &unsent);

    let address = unix_address(dir.path(), "incoming");
    let destination = Machine::start(dir.path(), Some(&address));
    let states = source.statuses();
    let refusals: [(&str, &[&str]); 2] = [
        ("lacking", &["apic/0: its version there is 2, the oldest", "kvmclock/0: this section is not known there"]),
        ("unsent", &["tsc: a load there is refused without this section"]),
    ];
    for (name, reasons) in refusals {
        client.execute("migrate", json!({"uri": address.to_string(), "target-schema": file(name)})).unwrap();
        assert_eq!(source.await_end(), MigrationStatus::Failed);
        let told = client.execute("query-migrate", json!({})).unwrap();
        let why = told["error-desc"].as_str().unwrap();
        assert!(reasons.iter().all(|reason| why.contains(reason)), "{why}");
        assert_eq!(source.handle.run_state(), RunState::Running);
        source.await_passes(2);
    }
    // A schema that cannot be read begins no migration.
    std::fs::write(file("torn"), "{").unwrap();
    assert!(client.execute("migrate", json!({"uri": address.to_string(), "target-schema": file("torn")})).is_err());
    assert!(!states.lock().unwrap().contains(&"device"), "the guest was paused");

    client.execute("migrate", json!({"uri": address.to_string(), "target-schema": file("schema")})).unwrap();
    assert_eq!(source.await_end(), MigrationStatus::Completed, "{:?}", source.handle.migration());
    destination.await_passes(2);
    source.quit();

    // The schema of the machine where the guest is now; the refused schemas have no effect.
    let _server = Server::bind(&dir.path().join("there"), destination.handle.clone()).unwrap();
    let mut client = Client::connect(&dir.path().join("there")).unwrap();
    let address = unix_address(dir.path(), "next");
    let next = Machine::start(dir.path(), Some(&address));
    client.execute("migrate", json!({"uri": address.to_string(), "target-schema": file("lacking")})).unwrap();
    assert_eq!(destination.await_end(), MigrationStatus::Failed);
    client.execute("migrate", json!({"uri": address.to_string()})).unwrap();
    assert_eq!(destination.await_end(), MigrationStatus::Completed, "{:?}", destination.handle.migration());
    next.await_passes(2);
    destination.quit();
    next.quit();
}
