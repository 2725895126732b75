//! Backups of a disk by processes that are confined as by default, with an increment after a migration.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use minivmm::control::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vmstate_lab::process::Process;
use vmstate_lab::wait::until;

use super::snapshots::{boot, control, disk, end, text, watch};
use super::{Running, TIMEOUT, minivmm};

/// Waits until `done` of the answer to a query.
fn await_answer(client: &mut Client, query: &str, done: impl Fn(&Value) -> bool) {
    until(query, || done(&client.execute(query, json!({})).unwrap()));
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

/// `minivmm backup`: a chain of two backups, and a backup that is cancelled.
#[test]
fn a_disk_is_backed_up_from_the_shell() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, backup) = (disk(folder.path()), folder.path().join("backup"));
    let Some(mut machine) = boot(&disk) else { return };
    let mut client = machine.control();
    let control = control(&machine);
    let daily = |more: &[&str], file: &Path| {
        let words = [&["backup", "--control", &control, "--bitmap", "daily"][..], more, &[text(file)]].concat();
        let output = minivmm(&words);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, why) = daily(&["--increment"], &backup);
    assert!(code == Some(2) && why.contains("an increment goes to the image of an earlier backup"), "{code:?} {why}");
    let (code, told) = daily(&[], &backup);
    assert!(code == Some(0) && told.contains("disk virtio0 is in") && told.contains("4 MiB in"), "{code:?} {told}");
    let (code, why) = daily(&[], &backup);
    assert!(code == Some(1) && why.contains("it exists already"), "{code:?} {why}");
    watch(&mut machine);
    client.execute("stop", json!({})).unwrap();
    let (code, told) = daily(&["--increment"], &backup);
    assert!(code == Some(0) && told.contains("64 KiB in"), "{code:?} {told}");
    assert!(fs::read(&backup).unwrap() == fs::read(&disk).unwrap(), "the backup is not the image");

    let other = folder.path().join("other");
    let words = ["backup", "--control", &control, "--max-bandwidth", "1", text(&other)];
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    let mut cancelled = Process::start(command.args(words).stderr(Stdio::piped())).unwrap();
    await_answer(&mut client, "query-block-jobs", |jobs| jobs[0]["offset"].as_u64() > Some(0));
    let status = minivmm(&["status", "--control", &control]);
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.lines().any(|line| line.starts_with("backup: job minivmm-")), "{status}");
    kill(Pid::from_raw(cancelled.id() as i32), Signal::SIGINT).unwrap();
    let status = cancelled.wait(Instant::now() + TIMEOUT).unwrap();
    let mut why = String::new();
    cancelled.child().stderr.take().unwrap().read_to_string(&mut why).unwrap();
    assert!(status.code() == Some(1) && why.contains("the backup was cancelled"), "{status} {why}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "disk and backup");
    end(machine);
}
