//! The schema against real answers, and against the rules of its format.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use vmstate::migrate::{Downtime, Phase, Slowdown, SourcePhase, Takeover};
use vmstate::ram::XbzrleCount;

use super::{TestClient, running};
use crate::control::kind::Kind;
use crate::control::table::COMMANDS;
use crate::devices::virtio::blk::Bitmaps;
use crate::migration::block_time::BlockTime;
use crate::migration::disk::DiskFigures;
use crate::vm::{DiskFacts, Inventory};

fn ask(test_client: &mut TestClient, command: &str) -> Value {
    test_client.send(json!({"execute": command}).to_string().as_bytes()).remove(0)["return"].take()
}

/// Every type that is named is described, and every described type is used, except those of commands and events.
#[test]
fn every_name_in_the_schema_is_described_once() {
    let (handle, _shared, _seen) = running();
    let schema = ask(&mut TestClient::negotiated(&handle), "query-qmp-schema");
    let mut uses = BTreeMap::new();
    for entity in schema.as_array().unwrap() {
        let (name, meta) = (entity["name"].as_str().unwrap(), entity["meta-type"].as_str().unwrap());
        let root = matches!(meta, "command" | "event");
        assert_eq!(uses.insert(name.to_owned(), usize::from(root)), None, "{name} is described twice");
    }
    let mut used = |name: &Value| {
        let name = name.as_str().unwrap();
        *uses.get_mut(name).unwrap_or_else(|| panic!("'{name}' is not described")) += 1;
    };
    for entity in schema.as_array().unwrap() {
        for place in ["arg-type", "ret-type", "element-type"] {
            entity.get(place).into_iter().for_each(&mut used);
        }
        let parts = ["members", "variants"].into_iter().filter_map(|part| entity.get(part)?.as_array()).flatten();
        parts.filter_map(|part| part.get("type")).for_each(&mut used);
    }
    assert!(uses.iter().all(|(_, uses)| *uses > 0), "{uses:?}");
}

/// Answers to queries, empty ones and ones with all members, match the schema.
#[test]
fn every_query_answers_as_the_schema_says() {
    let (handle, shared, _seen) = running();
    let mut test_client = TestClient::negotiated(&handle);
    for full in [false, true] {
        if full {
            let bitmaps = Arc::new(Bitmaps::new(512));
            bitmaps.add("b", 512, true).unwrap();
            let disk = DiskFacts {
                name: "virtio0".into(),
                path: "/d".into(),
                read_only: true,
                bytes: 512,
                bytes_per_second: 7,
                operations_per_second: 8,
                bitmaps,
            };
            shared.set_inventory(Inventory {
                vcpu_threads: vec![11, 12],
                vcpu_exits: Vec::new(),
                disks: vec![disk.clone(), DiskFacts { name: "virtio1".into(), ..disk }],
                chardevs: vec![("serial0", "stdio".into())],
                no_block_time: None,
            });
            shared.update_migration(|info| {
                info.phase = Phase::Source(SourcePhase::Rounds);
                info.error = Some("why".into());
                info.block_time =
                    Some(BlockTime { all: Duration::from_millis(5), each: vec![Duration::from_millis(6); 2] });
                info.disk = Some(DiskFigures::default());
                let figures = &mut info.figures;
                figures.expected_downtime = Some(Duration::from_millis(3));
                figures.expected_total = Some(Duration::from_millis(4));
                figures.downtime = Some(Downtime::default());
                figures.takeover = Some(Takeover::default());
                figures.page_waits.count = 1;
                figures.throttle_percent = 20;
                figures.slowdown = Slowdown::default();
                figures.slowdown.throttled = Duration::from_millis(1);
                figures.xbzrle = Some(XbzrleCount::default());
            });
        }
        for command in COMMANDS.iter().filter(|command| command.name.starts_with("query-")) {
            let reply = ask(&mut test_client, command.name);
            command.reply.check(&reply, "reply", "reply").unwrap_or_else(|why| panic!("{}: {why}", command.name));
        }
    }
    // Every optional member was present.
    let migration = COMMANDS.iter().find(|command| command.name == "query-migrate").unwrap();
    let Kind::Object(shape) = &migration.reply else { panic!() };
    let reply = ask(&mut test_client, "query-migrate");
    let absent: Vec<_> = shape.members.iter().filter(|member| reply.get(member.name).is_none()).collect();
    assert!(absent.is_empty(), "{absent:?}");
    assert_eq!((&reply["postcopy-blocktime"], &reply["postcopy-vcpu-blocktime"]), (&json!(5), &json!([6, 6])));
    assert_eq!(ask(&mut test_client, "query-block")[1]["device"], "virtio1");
    assert_eq!(ask(&mut test_client, "query-cpus-fast")[1]["thread-id"], 12);
}

#[test]
fn what_is_not_here_is_refused_with_the_reason() {
    let (handle, _shared, seen) = running();
    let mut test_client = TestClient::negotiated(&handle);
    let mut refusal = |command: &str, arguments: Value| {
        let answer =
            test_client.send(json!({"execute": command, "arguments": arguments}).to_string().as_bytes()).remove(0);
        assert_eq!(answer["error"]["class"], "GenericError", "{command}: {answer}");
        answer["error"]["desc"].as_str().unwrap().to_owned()
    };
    for (name, state, why) in [
        ("zero-copy-send", true, "copied"),
        ("return-path", false, "decides who runs"),
        ("events", false, "every client"),
    ] {
        let one = json!({"capabilities": [{"capability": name, "state": state}]});
        let said = refusal("migrate-set-capabilities", one);
        assert!(said.contains(why) && said.contains(name), "{said}");
    }
    for name in ["vcpu-dirty-limit", "multifd-zlib-level"] {
        let mut arguments = Map::from_iter([("downtime-limit".to_owned(), json!(5))]);
        arguments.insert(name.into(), json!(1));
        let said = refusal("migrate-set-parameters", arguments.into());
        assert!(said.starts_with(&format!("Parameter '{name}' is not supported: ")), "{said}");
    }
    assert!(seen.try_recv().is_err(), "a refused command must change nothing");
    let fine = json!({"capabilities": [
        {"capability": "zero-copy-send", "state": false}, {"capability": "return-path", "state": true},
    ]});
    let command = json!({"execute": "migrate-set-capabilities", "arguments": fine});
    assert_eq!(test_client.send(command.to_string().as_bytes()), [json!({"return": {}})]);
}

#[test]
fn block_time_needs_a_kernel_that_reports_the_waiting_thread() {
    let (handle, shared, _seen) = running();
    let mut test_client = TestClient::negotiated(&handle);
    let mut switch = |on: bool| {
        let one = json!({"capabilities": [{"capability": "postcopy-blocktime", "state": on}]});
        let line = json!({"execute": "migrate-set-capabilities", "arguments": one}).to_string();
        let answer = test_client.send(line.as_bytes()).remove(0);
        let all = ask(&mut test_client, "query-migrate-capabilities");
        let shown = all.as_array().unwrap().iter().find(|one| one["capability"] == "postcopy-blocktime").unwrap();
        (answer, shown["state"] == true)
    };
    let fine = json!({"return": {}});
    assert_eq!(switch(true), (fine.clone(), true));
    assert_eq!(switch(false), (fine, false));
    shared.set_inventory(Inventory { no_block_time: Some("no such host".into()), ..Inventory::default() });
    let (answer, on) = switch(true);
    let why = "Capability 'postcopy-blocktime' is not supported: no such host";
    assert_eq!((&answer["error"]["desc"], on), (&json!(why), false));
}
