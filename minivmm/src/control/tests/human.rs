//! Lines of the monitor for people print what QEMU 10.0.2's monitor printed.

use serde_json::json;
use vmstate::migrate::{Phase, SourcePhase};

use super::{TestClient, running};
use crate::migration::disk::DiskFigures;
use crate::vm::{DiskCopies, ParameterChange, Request, Terms};

/// Returns what a line prints.
fn print(test_client: &mut TestClient, line: &str) -> String {
    let command = json!({"execute": "human-monitor-command", "arguments": {"command-line": line}});
    test_client.send(command.to_string().as_bytes()).remove(0)["return"].as_str().unwrap().to_owned()
}

#[test]
fn each_line_sends_its_request_to_the_driver() {
    let (handle, _shared, seen) = running();
    let mut test_client = TestClient::negotiated(&handle);
    let change = |name, value: u64| Request::MigrateSetParameters(ParameterChange::default().with(name, value));
    let detached = "terminal does not allow synchronous migration, continuing detached\r\n";
    let to = Request::Migrate("unix:/x".parse().unwrap(), Terms::default());
    let copies = Terms { copies: DiskCopies::All, ..Terms::default() };
    let with_disk = Request::Migrate("unix:/x".parse().unwrap(), copies);
    let resumes = Request::MigrateResume("unix:/x".parse().unwrap());
    for (line, printed, request) in [
        ("migrate -d unix:/x", "", to.clone()),
        ("migrate unix:/x", detached, to),
        ("migrate -d -b unix:/x", "", with_disk.clone()),
        ("migrate -b unix:/x", detached, with_disk),
        ("migrate -d -b -r unix:/x", "Error: Cannot resume if there is no paused migration\r\n", resumes),
        ("migrate_set_parameter max-bandwidth 20", "", change("max-bandwidth", 20 << 20)),
        ("migrate_set_parameter max-bandwidth 3K", "", change("max-bandwidth", 3 << 10)),
        ("migrate_set_parameter multifd-channels 3", "", change("multifd-channels", 3)),
        (
            "migrate_set_parameter direct-io on",
            "",
            Request::MigrateSetParameters(ParameterChange::default().with("direct-io", true)),
        ),
        (
            "migrate_set_capability xbzrle on",
            "",
            Request::MigrateSetParameters(ParameterChange::default().with("xbzrle", true)),
        ),
        ("stop", "", Request::Stop),
        ("c", "", Request::Cont),
        ("migrate_cancel", "", Request::MigrateCancel),
        ("migrate_start_postcopy", "", Request::MigrateStartPostcopy),
    ] {
        assert_eq!(print(&mut test_client, line), printed, "{line}");
        assert_eq!(seen.try_recv().unwrap(), request, "{line}");
    }
    for line in ["migrate_set_parameter vcpu-dirty-limit 1", "migrate_set_capability zero-copy-send on"] {
        assert!(print(&mut test_client, line).contains("is not supported: "), "{line}");
    }
    assert!(seen.try_recv().is_err());
}

#[test]
fn information_is_printed_as_qemu_prints_it() {
    let (handle, shared, _seen) = running();
    let mut test_client = TestClient::negotiated(&handle);
    shared.set_inventory(crate::vm::Inventory { vcpu_threads: vec![21475, 21476], ..Default::default() });
    assert_eq!(print(&mut test_client, "info cpus"), "* CPU #0: thread_id=21475\r\n  CPU #1: thread_id=21476\r\n");
    let parameters = print(&mut test_client, "info migrate_parameters");
    for line in [
        "downtime-limit: 300 ms\r\n",
        "max-bandwidth: 134217728 bytes/second\r\n",
        "multifd-channels: 2\r\n",
        "direct-io: off\r\n",
    ] {
        assert!(parameters.contains(line), "{parameters}");
    }
    shared.update_migration(|info| {
        info.phase = Phase::Source(SourcePhase::Rounds);
        info.disk = Some(DiskFigures { total: 9 << 20, transferred: 3 << 10, remaining: 2 << 20 });
    });
    // As in QEMU 9.0 (`hmp_info_migrate`, migration/migration-hmp-cmds.c).
    let migration = print(&mut test_client, "info migrate");
    let disk = "transferred disk: 3 kbytes\r\nremaining disk: 2048 kbytes\r\ntotal disk: 9216 kbytes\r\n";
    assert!(migration.contains(disk), "{migration}");
    assert!(print(&mut test_client, "info migrate_capabilities").starts_with("xbzrle: off\r\nrdma-pin-all: off\r\n"));
}
