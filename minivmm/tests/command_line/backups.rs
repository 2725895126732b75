//! Backups of a disk by processes that are confined as by default, with an increment after a migration.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use minivmm::control::Client;
use serde_json::{Value, json};

use super::snapshots::{boot, disk, end, text, watch};
use super::{Running, TIMEOUT};

/// Waits until `done` of the answer to a query.
fn await_answer(client: &mut Client, query: &str, done: impl Fn(&Value) -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let answer = client.execute(query, json!({})).unwrap();
        if done(&answer) {
            return;
        }
        assert!(Instant::now() < deadline, "{query}: {answer}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Makes a backup with these arguments, which begins while the guest is stopped; it is the image at that time.
fn back_up(client: &mut Client, disk: &Path, backup: &Path, mut arguments: Value) {
    if arguments["mode"] == "existing" {
        let file = File::options().read(true).write(true).open(backup).unwrap();
        client.pass("backup", &file.into()).unwrap();
        arguments["target"] = "fd:backup".into();
    } else {
        arguments["target"] = text(backup).into();
    }
    arguments["device"] = "virtio0".into();
    client.execute("stop", json!({})).unwrap();
    client.execute("drive-backup", arguments).unwrap();
    let image = fs::read(disk).unwrap();
    client.execute("cont", json!({})).unwrap();
    await_answer(client, "query-block-jobs", |jobs| *jobs == json!([]));
    assert!(fs::read(backup).unwrap() == image, "the backup is not the image");
}

fn increment(client: &mut Client, disk: &Path, backup: &Path) {
    back_up(client, disk, backup, json!({"sync": "incremental", "bitmap": "b", "mode": "existing"}));
}

#[test]
fn increments_to_one_image_go_on_after_a_migration() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, backup) = (disk(folder.path()), folder.path().join("backup"));
    let Some(mut machine) = boot(&disk) else { return };
    let mut client = machine.control();
    client.execute("block-dirty-bitmap-add", json!({"node": "virtio0", "name": "b"})).unwrap();
    watch(&mut machine);
    let full = json!({"sync": "full", "bitmap": "b", "bitmap-mode": "on-success"});
    back_up(&mut client, &disk, &backup, full);
    watch(&mut machine);
    increment(&mut client, &disk, &backup);
    watch(&mut machine);
    for (mode, why) in
        [("existing", "pass it with getfd, and name it as fd:NAME"), ("absolute-paths", "it exists already")]
    {
        let arguments = json!({"device": "virtio0", "sync": "full", "target": text(&backup), "mode": mode});
        let refused = client.execute("drive-backup", arguments).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    let slow = json!({"device": "virtio0", "sync": "full", "target": text(&folder.path().join("slow")), "speed": 1});
    client.execute("drive-backup", slow).unwrap();
    client.execute("block-job-cancel", json!({"device": "virtio0"})).unwrap();
    await_answer(&mut client, "query-block-jobs", |jobs| *jobs == json!([]));
    let socket = folder.path().join("socket");
    let to = format!("unix:{}", socket.display());
    let mut there = Running::start(&["--disk", text(&disk), "--incoming", &to], Stdio::null()).unwrap();
    let mut new = there.control();
    let on = json!({"capabilities": [{"capability": "dirty-bitmaps", "state": true}]});
    client.execute("migrate-set-capabilities", on).unwrap();
    client.execute("migrate", json!({"uri": to})).unwrap();
    await_answer(&mut client, "query-migrate", |migration| migration["status"] == "completed");
    watch(&mut there);
    increment(&mut new, &disk, &backup);
    watch(&mut there);
    end(there);
    client.execute("quit", json!({})).unwrap();
    assert_eq!(machine.end().0, Some(0));
}
