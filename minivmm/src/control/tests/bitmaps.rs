//! Dirty bitmaps against those of a running QEMU, whose disk is written at the same places.

use std::sync::Arc;

use serde_json::{Value, json};

use super::qemu::{DISK, Qemu};
use super::{TestClient, running};
use crate::devices::virtio::blk::Bitmaps;
use crate::vm::{DiskFacts, Inventory};

/// Lines to which minivmm gives the same answers as a QEMU with a disk of the same size, in this order.
const LINES: &[&str] = &[
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"nope","name":"b"}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"nope","name":""}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0"}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"b","granularity":500}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"b","granularity":768}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"b","granularity":0}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"b","granularity":4294967296}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"b","granularity":-1}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"b","granularity":"x"}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"b","persistent":true}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"b","nope":true}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"a","granularity":2147483648}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"b"}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"b"}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"c","granularity":512,"disabled":true}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"d","granularity":4096,"persistent":false}}"#,
    r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"e","granularity":131072}}"#,
    r#"{"execute":"block-dirty-bitmap-remove","arguments":{"node":"virtio0","name":"nope"}}"#,
    r#"{"execute":"block-dirty-bitmap-remove","arguments":{"node":"nope","name":"b"}}"#,
    r#"{"execute":"block-dirty-bitmap-remove","arguments":{"node":"virtio0","name":"e"}}"#,
    r#"{"execute":"block-dirty-bitmap-remove","arguments":{"node":"virtio0","name":"e"}}"#,
    r#"{"execute":"block-dirty-bitmap-clear","arguments":{"node":"virtio0","name":"nope"}}"#,
    r#"{"execute":"block-dirty-bitmap-enable","arguments":{"node":"virtio0","name":"nope"}}"#,
    r#"{"execute":"block-dirty-bitmap-disable","arguments":{"node":"nope","name":"b"}}"#,
    r#"{"execute":"block-dirty-bitmap-disable","arguments":{"node":"virtio0"}}"#,
    r#"{"execute":"block-dirty-bitmap-merge","arguments":{"node":"virtio0","target":"nope","bitmaps":["b"]}}"#,
    r#"{"execute":"block-dirty-bitmap-merge","arguments":{"node":"virtio0","target":"b","bitmaps":["nope"]}}"#,
    r#"{"execute":"block-dirty-bitmap-merge","arguments":{"node":"virtio0","target":"b","bitmaps":["c",5]}}"#,
    r#"{"execute":"block-dirty-bitmap-merge","arguments":{"node":"virtio0","target":"b","bitmaps":[{"name":"c"}]}}"#,
    r#"{"execute":"block-dirty-bitmap-merge","arguments":{"node":"virtio0","target":"b","bitmaps":[{"node":"nope","name":"c"}]}}"#,
    r#"{"execute":"block-dirty-bitmap-merge","arguments":{"node":"virtio0","target":"b","bitmaps":[{"node":"virtio0","name":"c"}]}}"#,
    r#"{"execute":"x-debug-block-dirty-bitmap-sha256","arguments":{"node":"nope","name":"c"}}"#,
    r#"{"execute":"x-debug-block-dirty-bitmap-sha256","arguments":{"node":"virtio0","name":"nope"}}"#,
];

/// Transactions to which minivmm gives the same answers as QEMU, and after which the bitmaps are the same: the rest of the command's
/// arguments behind `actions`, and the bitmaps `a` and `b` exist at first. In the shortened actions `+x`, `-x`, `0x`, `1x`, `2x` add, remove,
/// clear, enable and disable a bitmap, and `xy` merges y into x.
const TRANSACTIONS: &[(&str, &str)] = &[
    ("", ""),
    ("+c 2a 0b", ""),
    ("+c !", ""),
    ("ab 0b +d", ""),
    ("0a ab 0a ba 1a 2b -c ?", ""),
    ("-c +c", ""),
    ("-c 0c", ""),
    ("-c -c", ""),
    ("-c ac", ""),
    ("+e ea ea eb 0e ea -e", ""),
    ("+e ea -d", ""),
    ("?", ""),
    ("0nope", ""),
    ("0a", r#","properties":{}"#),
    ("0a", r#","properties":{"completion-mode":"individual"}"#),
    ("1a 0b", r#","properties":{"completion-mode":"grouped"}"#),
    ("! 0b", r#","properties":{"completion-mode":"grouped"}"#),
    ("", r#","properties":{"completion-mode":"grouped"}"#),
    ("", r#","properties":{"completion-mode":"nope"}"#),
    ("", r#","properties":{"nope":1}"#),
    ("", r#","properties":5"#),
];

/// Lines with a transaction that is malformed.
const MALFORMED: &[&str] = &[
    r#"{"execute":"transaction"}"#,
    r#"{"execute":"transaction","arguments":{"actions":5}}"#,
    r#"{"execute":"transaction","arguments":{"actions":[5]}}"#,
    r#"{"execute":"transaction","arguments":{"actions":[{}]}}"#,
    r#"{"execute":"transaction","arguments":{"actions":[{"type":5}]}}"#,
    r#"{"execute":"transaction","arguments":{"actions":[{"type":"nope"}]}}"#,
    r#"{"execute":"transaction","arguments":{"actions":[{"type":"abort"}]}}"#,
    r#"{"execute":"transaction","arguments":{"actions":[{"type":"abort","data":5}]}}"#,
    r#"{"execute":"transaction","arguments":{"actions":[{"type":"abort","data":{"x":5}}]}}"#,
    r#"{"execute":"transaction","arguments":{"actions":[{"type":"abort","data":{},"x":5}]}}"#,
    r#"{"execute":"transaction","arguments":{"actions":[{"type":"block-dirty-bitmap-clear","data":{"node":"virtio0"}}]}}"#,
    r#"{"execute":"transaction","arguments":{"actions":[{"type":"block-dirty-bitmap-add","data":{"node":"virtio0","name":"x","granularity":"x"}}]}}"#,
    r#"{"execute":"transaction","arguments":{"actions":[{"type":"block-dirty-bitmap-add","data":{"node":"virtio0","name":"x","granularity":5}}]}}"#,
    r#"{"execute":"transaction","arguments":{"actions":[{"type":"block-dirty-bitmap-merge","data":{"node":"virtio0","target":"a","bitmaps":[5]}}]}}"#,
    r#"{"execute":"transaction","arguments":{"actions":[],"x":5}}"#,
];

/// Values of the parameter `block-bitmap-mapping`; the last one stays. `<N>` stands for N letters.
const MAPPINGS: &[&str] = &[
    r#"5"#,
    r#"[5]"#,
    r#"[{}]"#,
    r#"[{"node-name":"n"}]"#,
    r#"[{"node-name":"n","alias":"a"}]"#,
    r#"[{"node-name":"n","alias":"a","bitmaps":5}]"#,
    r#"[{"node-name":"n","alias":"a","bitmaps":[],"x":1}]"#,
    r#"[{"node-name":"n","alias":"a","bitmaps":[{"name":"b"}]}]"#,
    r#"[{"node-name":"n","alias":"a","bitmaps":[{"name":"b","alias":5}]}]"#,
    r#"[{"node-name":"n","alias":"a","bitmaps":[{"name":"b","alias":"c","transform":5}]}]"#,
    r#"[{"node-name":"n","alias":"a","bitmaps":[{"name":"b","alias":"c","transform":{"persistent":5}}]}]"#,
    r#"[{"node-name":"n","alias":"a","bitmaps":[{"name":"b","alias":"c","transform":{"x":5}}]}]"#,
    r#"[{"node-name":"n","alias":"","bitmaps":[]}]"#,
    r#"[{"node-name":"n","alias":"1a","bitmaps":[]}]"#,
    r##"[{"node-name":"n","alias":"#block1","bitmaps":[]}]"##,
    r#"[{"node-name":"n","alias":"a b","bitmaps":[]}]"#,
    r#"[{"node-name":"n","alias":"ä","bitmaps":[]}]"#,
    r#"[{"node-name":"n","alias":"a","bitmaps":[]},{"node-name":"n","alias":"b","bitmaps":[]}]"#,
    r#"[{"node-name":"n","alias":"a","bitmaps":[]},{"node-name":"m","alias":"a","bitmaps":[]}]"#,
    r#"[{"node-name":"n","alias":"a","bitmaps":[{"name":"b","alias":"c"},{"name":"b","alias":"d"}]}]"#,
    r#"[{"node-name":"n","alias":"a","bitmaps":[{"name":"b","alias":"c"},{"name":"d","alias":"c"}]}]"#,
    r#"[{"node-name":"n","alias":"a","bitmaps":[{"name":"b","alias":"c"},{"name":"d","alias":"c"}]},{"node-name":"n","alias":"b","bitmaps":[]}]"#,
    r#"[{"node-name":"n","alias":"a","bitmaps":[]},{"node-name":"m","alias":"a","bitmaps":[{"name":"b","alias":"c"},{"name":"b","alias":"d"}]}]"#,
    r#"[{"node-name":"<32>","alias":"a","bitmaps":[]}]"#,
    r#"[{"node-name":"<31>","alias":"<256>","bitmaps":[]}]"#,
    r#"[{"node-name":"<31>","alias":"<255>","bitmaps":[{"name":"<1024>","alias":"<255>"}]}]"#,
    r#"[{"node-name":"<31>","alias":"<255>","bitmaps":[{"name":"<1023>","alias":"<256>"}]}]"#,
    r#"[]"#,
    r#"[{"node-name":"virtio0","alias":"a","bitmaps":[{"name":"b","alias":"c"},{"name":"d","alias":""},{"name":"e","alias":"f","transform":{"persistent":true}}]},{"node-name":"no-such","alias":"x-._9","bitmaps":[]}]"#,
];

/// Writes, each of some bytes at an offset, and commands between them.
const STEPS: &[Result<(u64, u64), &str>] = &[
    Ok((0, 1)),
    Ok((65_535, 2)),
    Ok((DISK - 512, 512)),
    Err(r#"{"execute":"block-dirty-bitmap-merge","arguments":{"node":"virtio0","target":"c","bitmaps":["b"]}}"#),
    Ok((1_000_000, 700_000)),
    Err(r#"{"execute":"block-dirty-bitmap-disable","arguments":{"node":"virtio0","name":"d"}}"#),
    Err(r#"{"execute":"block-dirty-bitmap-enable","arguments":{"node":"virtio0","name":"c"}}"#),
    Ok((3 << 20, 512)),
    Err(
        r#"{"execute":"block-dirty-bitmap-merge","arguments":{"node":"virtio0","target":"a","bitmaps":["b","c",{"node":"virtio0","name":"d"}]}}"#,
    ),
    Err(r#"{"execute":"block-dirty-bitmap-clear","arguments":{"node":"virtio0","name":"b"}}"#),
    Err(r#"{"execute":"block-dirty-bitmap-merge","arguments":{"node":"virtio0","target":"b","bitmaps":["d"]}}"#),
    Ok((0, DISK)),
];

/// A client of a machine with a disk, and the bitmaps of the disk.
fn with_disk() -> (TestClient, Arc<Bitmaps>) {
    let (handle, shared, _seen) = running();
    let bitmaps = Arc::new(Bitmaps::new(DISK));
    let disk = DiskFacts {
        name: "virtio0".into(),
        path: "/d".into(),
        read_only: false,
        bytes: DISK,
        bytes_per_second: 0,
        operations_per_second: 0,
        bitmaps: Arc::clone(&bitmaps),
    };
    shared.set_inventory(Inventory { disks: vec![disk], ..Inventory::default() });
    (TestClient::negotiated(&handle), bitmaps)
}

#[test]
fn names_for_migration_are_those_of_a_running_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut qemu) = Qemu::start(dir.path()) else { return };
    qemu.send(r#"{"execute":"qmp_capabilities"}"#);
    let (mut test_client, _bitmaps) = with_disk();
    let query = r#"{"execute":"query-migrate-parameters"}"#;
    let print = r#"{"execute":"human-monitor-command","arguments":{"command-line":"info migrate_parameters"}}"#;
    let printed = |answer: &Value| {
        let text = answer["return"].as_str().unwrap();
        let lines = text.lines().skip_while(|line| !line.starts_with("block-bitmap-mapping")).skip(1);
        lines.take_while(|line| line.starts_with(' ')).map(str::to_owned).collect::<Vec<_>>()
    };
    for mapping in MAPPINGS {
        let lengths = [31, 32, 255, 256, 1023, 1024];
        let mapping = lengths.iter().fold((*mapping).to_owned(), |mapping, length| {
            mapping.replace(&format!("<{length}>"), &"n".repeat(*length))
        });
        let line =
            format!(r#"{{"execute":"migrate-set-parameters","arguments":{{"block-bitmap-mapping":{mapping}}}}}"#);
        assert_eq!(test_client.send(line.as_bytes()), [qemu.send(&line)], "to {line}");
        let [ours, theirs] = [test_client.send(query.as_bytes()).remove(0), qemu.send(query)]
            .map(|answer| answer["return"].get("block-bitmap-mapping").cloned());
        assert_eq!(ours, theirs, "after {line}");
    }
    let ours = printed(&test_client.send(print.as_bytes())[0]);
    assert_eq!((ours.len(), ours), (5, printed(&qemu.send(print))));
}

/// The command of a shortened transaction.
fn transaction(actions: &str, rest: &str) -> String {
    let action = |short: &str| {
        let (kind, name) = short.split_at(1);
        let of = |kind: &str| json!({"type": format!("block-dirty-bitmap-{kind}"), "data": {"node": "virtio0", "name": name}});
        match kind {
            "!" => json!({"type": "abort", "data": {}}),
            "?" => json!({"type": "block-dirty-bitmap-clear", "data": {"node": "nope", "name": "a"}}),
            "+" => of("add"),
            "-" => of("remove"),
            "0" => of("clear"),
            "1" => of("enable"),
            "2" => of("disable"),
            target => {
                let data = json!({"node": "virtio0", "target": target, "bitmaps": [name]});
                json!({"type": "block-dirty-bitmap-merge", "data": data})
            }
        }
    };
    let actions: Value = actions.split_whitespace().map(action).collect();
    format!(r#"{{"execute":"transaction","arguments":{{"actions":{actions}{rest}}}}}"#)
}

/// The list of a disk's bitmaps in the answer of `query-block`.
fn listed(answer: &Value) -> Value {
    answer["return"][0]["inserted"]["dirty-bitmaps"].clone()
}

#[test]
fn transactions_are_those_of_a_running_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut qemu) = Qemu::start(dir.path()) else { return };
    qemu.send(r#"{"execute":"qmp_capabilities"}"#);
    let (mut test_client, bitmaps) = with_disk();
    let mut both = |line: &str| {
        let ours = test_client.send(format!("{line}\n").as_bytes()).remove(0);
        assert_eq!(ours, qemu.send(line), "to {line}");
        ours
    };
    both(r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"a","granularity":512}}"#);
    both(r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"b"}}"#);
    MALFORMED.iter().for_each(|line| drop(both(line)));
    for (number, (actions, rest)) in (0..).zip(TRANSACTIONS) {
        let line = transaction(actions, rest);
        let ours = test_client.send(format!("{line}\n").as_bytes()).remove(0);
        assert_eq!(ours, qemu.send(&line), "to {line}");
        let block = r#"{"execute":"query-block"}"#;
        let ours = listed(&test_client.send(block.as_bytes())[0]);
        assert_eq!(ours, listed(&qemu.send(block)), "after {line}");
        for bitmap in ours.as_array().unwrap() {
            let arguments = json!({"node": "virtio0", "name": bitmap["name"]});
            let line = json!({"execute": "x-debug-block-dirty-bitmap-sha256", "arguments": arguments}).to_string();
            assert_eq!(test_client.send(line.as_bytes()), [qemu.send(&line)], "{bitmap} after {line}");
        }
        // The guest writes.
        let offset = number * 65_536;
        bitmaps.mark(offset, 512);
        let write = format!("qemu-io virtio0 \"write {offset} 512\"");
        let line = json!({"execute": "human-monitor-command", "arguments": {"command-line": write}});
        assert_eq!(qemu.send(&line.to_string()), json!({"return": ""}));
    }
}

#[test]
fn the_ranges_of_a_bitmap_are_listed_in_parts() {
    let (mut test_client, bitmaps) = with_disk();
    bitmaps.add("b", 512, true).unwrap();
    // Each second sector, and one more.
    (0..5000).for_each(|index| bitmaps.mark(index * 1024, 1));
    bitmaps.mark(512, 1);
    let mut ask = |name: &str, start: Value| {
        let arguments = json!({"node": "virtio0", "name": name, "start": start});
        let line = json!({"execute": "block-dirty-bitmap-ranges", "arguments": arguments}).to_string();
        test_client.send(line.as_bytes()).remove(0)
    };
    let first = ask("b", 0.into())["return"].take();
    let ranges = first["ranges"].as_array().unwrap();
    assert_eq!((ranges.len(), &ranges[0]), (4096, &json!({"start": 0, "length": 1536})));
    assert_eq!(ranges[4095], json!({"start": 4096 * 1024, "length": 512}));
    let rest = ask("b", first["next"].clone())["return"].take();
    assert_eq!((rest["ranges"].as_array().unwrap().len(), rest.get("next")), (5000 - 4097, None));
    assert_eq!(rest["ranges"][0], json!({"start": 4097 * 1024, "length": 512}));
    assert_eq!(ask("c", 0.into())["error"]["desc"], "Dirty bitmap 'c' not found");
    assert_eq!(ask("b", DISK.into())["return"], json!({"ranges": []}));
}

#[test]
fn bitmaps_are_those_of_a_running_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut qemu) = Qemu::start(dir.path()) else { return };
    qemu.send(r#"{"execute":"qmp_capabilities"}"#);
    let (mut test_client, bitmaps) = with_disk();
    for line in LINES {
        assert_eq!(test_client.send(format!("{line}\n").as_bytes()), [qemu.send(line)], "to {line}");
    }
    for step in STEPS {
        match step {
            Ok((offset, len)) => {
                bitmaps.mark(*offset, *len);
                let write = format!("qemu-io virtio0 \"write {offset} {len}\"");
                let line = json!({"execute": "human-monitor-command", "arguments": {"command-line": write}});
                assert_eq!(qemu.send(&line.to_string()), json!({"return": ""}));
            }
            Err(line) => assert_eq!(test_client.send(line.as_bytes()), [qemu.send(line)], "to {line}"),
        }
        let block = r#"{"execute":"query-block"}"#;
        let ours = listed(&test_client.send(block.as_bytes())[0]);
        assert_eq!(ours, listed(&qemu.send(block)), "after {step:?}");
        for bitmap in ours.as_array().unwrap() {
            let arguments = json!({"node": "virtio0", "name": bitmap["name"]});
            let line = json!({"execute": "x-debug-block-dirty-bitmap-sha256", "arguments": arguments}).to_string();
            assert_eq!(test_client.send(line.as_bytes()), [qemu.send(&line)], "{bitmap} after {step:?}");
        }
    }
}
