//! Backup jobs against those of a running QEMU, whose disk is written at the same places with the same content.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::TestClient;
use super::qemu::{DISK, Qemu};
use crate::control::report;
use crate::devices::virtio::blk::Image;
use crate::vm::{AnyRequest, DiskFacts, Handle, Inventory, Jobs, Next, Request, RunState};

/// Arguments of `drive-backup` to which minivmm gives the same answers as QEMU, after the bitmap `b` was added. `<>` stands for a
/// directory.
const ARGUMENTS: &[&str] = &[
    r#""#,
    r#""device":"nope","target":"<>/t","sync":"full""#,
    r#""device":"virtio0","target":"<>/t""#,
    r#""device":"virtio0","sync":"full""#,
    r#""device":"virtio0","target":5,"sync":"full""#,
    r#""device":"virtio0","target":"<>/t","sync":"nope""#,
    r#""device":"virtio0","target":"<>/t","sync":"full","mode":"nope""#,
    r#""device":"virtio0","target":"<>/t","sync":"full","nope":1"#,
    r#""device":"virtio0","target":"<>/no/t","sync":"full""#,
    r#""device":"virtio0","target":"<>/none","sync":"full","mode":"existing","format":"raw""#,
    r#""device":"virtio0","target":"<>/short","sync":"full","mode":"existing","format":"raw""#,
    r#""device":"virtio0","target":"<>/t","sync":"full","speed":-1"#,
    r#""device":"virtio0","target":"<>/t","sync":"full","speed":"x""#,
    r#""device":"virtio0","target":"<>/t","sync":"full","job-id":"""#,
    r#""device":"virtio0","target":"<>/t","sync":"full","job-id":"1a""#,
    r#""device":"virtio0","target":"<>/t","sync":"full","job-id":"a b""#,
    r#""device":"virtio0","target":"<>/t","sync":"incremental""#,
    r#""device":"virtio0","target":"<>/t","sync":"bitmap""#,
    r#""device":"virtio0","target":"<>/t","sync":"incremental","bitmap-mode":"never""#,
    r#""device":"virtio0","target":"<>/t","sync":"incremental","bitmap":"nope""#,
    r#""device":"virtio0","target":"<>/t","sync":"incremental","bitmap":"b","bitmap-mode":"never""#,
    r#""device":"virtio0","target":"<>/t","sync":"incremental","bitmap":"nope","bitmap-mode":"always""#,
    r#""device":"virtio0","target":"<>/t","sync":"bitmap","bitmap":"nope""#,
    r#""device":"virtio0","target":"<>/t","sync":"bitmap","bitmap":"b""#,
    r#""device":"virtio0","target":"<>/t","sync":"full","bitmap":"b""#,
    r#""device":"virtio0","target":"<>/t","sync":"full","bitmap":"b","bitmap-mode":"never""#,
    r#""device":"virtio0","target":"<>/t","sync":"full","bitmap-mode":"never""#,
    r#""device":"virtio0","target":"<>/t","sync":"full","bitmap-mode":"x""#,
];

/// Jobs, each after a write of some bytes at an offset, and whether it is cancelled. A job that is not cancelled is complete.
const JOBS: &[(u64, u64, &str, bool)] = &[
    (0, 3 << 20, r#""sync":"full","bitmap":"b","bitmap-mode":"on-success","target":"<>/chain""#, false),
    (65_000, 1000, r#""sync":"incremental","bitmap":"b","target":"<>/chain","mode":"existing","format":"raw""#, false),
    (5 << 20, 512, r#""sync":"bitmap","bitmap":"b","bitmap-mode":"never","target":"<>/never""#, false),
    (4 << 20, 512, r#""sync":"bitmap","bitmap":"b","bitmap-mode":"always","target":"<>/always","job-id":"j""#, false),
    (1 << 20, 2 << 20, r#""sync":"incremental","bitmap":"b","target":"<>/cancelled","speed":65536"#, true),
    (512, 512, r#""sync":"full","target":"<>/cancelled2","speed":65536"#, true),
    (512, 512, r#""sync":"incremental","bitmap":"b","target":"<>/chain","mode":"existing","format":"raw""#, false),
    (0, 512, r#""sync":"full","target":"<>/last""#, false),
];

/// Transactions with jobs: each list of actions, and whether a job begins.
const TRANSACTIONS: &[(&str, bool)] = &[
    (
        r#"[{"type":"block-dirty-bitmap-add","data":{"node":"virtio0","name":"c"}},
            {"type":"drive-backup","data":{"device":"virtio0","sync":"full","target":"<>/t1"}}]"#,
        true,
    ),
    (
        r#"[{"type":"block-dirty-bitmap-clear","data":{"node":"virtio0","name":"c"}},
            {"type":"drive-backup","data":{"device":"virtio0","sync":"full","target":"<>/t2"}},
            {"type":"abort","data":{}}]"#,
        false,
    ),
    (
        r#"[{"type":"drive-backup","data":{"device":"virtio0","sync":"incremental","bitmap":"c","target":"<>/t3"}},
            {"type":"abort","data":{}}]"#,
        false,
    ),
    (r#"[{"type":"drive-backup","data":{"device":"nope","sync":"full","target":"<>/t4"}}]"#, false),
    (r#"[{"type":"drive-backup","data":{"device":"virtio0","target":"<>/t4"}}]"#, false),
    (
        r#"[{"type":"block-dirty-bitmap-add","data":{"node":"virtio0","name":"e"}},
            {"type":"drive-backup","data":{"device":"virtio0","sync":"incremental","bitmap":"c","target":"<>/t5"}}]"#,
        true,
    ),
];

/// A client of a machine whose disk is a file in `dir`, the disk, and the events.
fn with_disk(dir: &Path) -> (TestClient, Arc<Image>, Receiver<Value>) {
    let path = dir.join("disk");
    std::fs::File::create(&path).unwrap().set_len(DISK).unwrap();
    let image = Arc::new(Image::open(&path, false).unwrap());
    let (handle, mut queue, shared) = Handle::new(RunState::Running);
    let facts = DiskFacts {
        name: "virtio0".into(),
        path: path.display().to_string(),
        read_only: false,
        bytes: DISK,
        bytes_per_second: 0,
        operations_per_second: 0,
        bitmaps: Arc::clone(image.bitmaps()),
    };
    shared.set_inventory(Inventory { disks: vec![facts], ..Inventory::default() });
    let images = vec![Arc::clone(&image)];
    thread::spawn(move || {
        while let Next::Asked((AnyRequest::User(Request::Backup(terms)), answer)) = queue.next(&|| None) {
            let _ = answer.send(Jobs::make(&shared, &images, &terms));
        }
    });
    let (sender, events) = channel();
    handle
        .subscribe(move |event| sender.send(report::event(event, SystemTime::UNIX_EPOCH).unwrap_or_default()).is_ok());
    (TestClient::negotiated(&handle), image, events)
}

/// A machine and a QEMU.
struct Both {
    ours: (TestClient, Arc<Image>, Receiver<Value>, PathBuf),
    theirs: (Qemu, PathBuf),
    /// Held for its directories.
    _dir: tempfile::TempDir,
}

impl Both {
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (dir.path().join("ours"), dir.path().join("qemu"));
        [&here, &there].into_iter().for_each(|path| std::fs::create_dir(path).unwrap());
        let mut qemu = Qemu::start(&there)?;
        qemu.send(r#"{"execute":"qmp_capabilities"}"#);
        let (client, image, events) = with_disk(&here);
        Some(Self { ours: (client, image, events, here), theirs: (qemu, there), _dir: dir })
    }

    /// Sends a line in which `<>` stands for a directory of each side; the answers must be equal but for that.
    fn send(&mut self, line: &str) -> Value {
        let line = line.replace('\n', " ");
        let (here, there) = (self.ours.3.to_str().unwrap(), self.theirs.1.to_str().unwrap());
        let ours = self.ours.0.send(line.replace("<>", here).as_bytes()).remove(0).to_string().replace(here, "<>");
        let theirs = self.theirs.0.send(&line.replace("<>", there)).to_string().replace(there, "<>");
        let [ours, theirs] = [ours, theirs].map(|answer| serde_json::from_str::<Value>(&answer).unwrap());
        assert_eq!(ours, theirs, "to {line}");
        ours
    }

    /// The guest writes.
    fn write(&mut self, offset: u64, len: u64, fill: usize) {
        let (image, data) = (&self.ours.1, vec![fill as u8; len as usize]);
        image.write(&data, offset).unwrap();
        image.bitmaps().mark(offset, len);
        let write = format!("qemu-io virtio0 \"write -P {fill} {offset} {len}\"");
        let line = json!({"execute": "human-monitor-command", "arguments": {"command-line": write}});
        assert_eq!(self.theirs.0.send(&line.to_string()), json!({"return": ""}));
    }

    /// The event of a job's end, without its time.
    fn end(&mut self) -> [Value; 2] {
        let theirs = self.theirs.0.event(|name| name.starts_with("BLOCK_JOB"));
        let ours = self.ours.2.recv_timeout(Duration::from_secs(60)).unwrap();
        [ours, theirs].map(|mut event| {
            event.as_object_mut().unwrap().remove("timestamp");
            event
        })
    }

    /// The bitmaps of the two are the same. QEMU lists the bitmap of a job as the newest.
    fn compare_bitmaps(&mut self, after: &str) {
        let block = r#"{"execute":"query-block"}"#;
        let listed = |mut answer: Value| {
            let mut all = answer["return"][0]["inserted"]["dirty-bitmaps"].take();
            all.as_array_mut().unwrap().sort_by_key(|bitmap| bitmap["name"].to_string());
            all
        };
        let ours = listed(self.ours.0.send(block.as_bytes()).remove(0));
        assert_eq!(ours, listed(self.theirs.0.send(block)), "after {after}");
        for bitmap in ours.as_array().unwrap() {
            let arguments = json!({"node": "virtio0", "name": bitmap["name"]});
            self.send(&json!({"execute": "x-debug-block-dirty-bitmap-sha256", "arguments": arguments}).to_string());
        }
    }
}

#[test]
fn jobs_are_those_of_a_running_qemu() {
    let Some(mut both) = Both::start() else { return };
    both.send(r#"{"execute":"block-dirty-bitmap-add","arguments":{"node":"virtio0","name":"b"}}"#);
    for dir in [&both.ours.3, &both.theirs.1] {
        std::fs::File::create(dir.join("short")).unwrap().set_len(512).unwrap();
    }
    for arguments in ARGUMENTS {
        both.send(&format!(r#"{{"execute":"drive-backup","arguments":{{{arguments}}}}}"#));
        assert!(!both.ours.3.join("t").exists() && !both.ours.3.join("t.partial").exists(), "after {arguments}");
    }
    for line in [
        r#"{"execute":"block-job-cancel"}"#,
        r#"{"execute":"block-job-cancel","arguments":{"device":"nope"}}"#,
        r#"{"execute":"block-job-cancel","arguments":{"device":"nope","force":5}}"#,
        r#"{"execute":"query-block-jobs"}"#,
    ] {
        both.send(line);
    }
    for (number, (offset, len, arguments, is_cancelled)) in JOBS.iter().enumerate() {
        both.write(*offset, *len, number + 1);
        let job = if arguments.contains("job-id") { "j" } else { "virtio0" };
        let line = format!(r#"{{"execute":"drive-backup","arguments":{{"device":"virtio0",{arguments}}}}}"#);
        assert_eq!(both.send(&line), json!({"return": {}}));
        if *is_cancelled {
            // The job is slow: it runs still.
            let query = r#"{"execute":"query-block-jobs"}"#;
            let [ours, theirs] =
                [both.ours.0.send(query.as_bytes()).remove(0), both.theirs.0.send(query)].map(|mut answer| {
                    answer["return"][0].as_object_mut().unwrap().remove("offset");
                    answer
                });
            assert_eq!(ours, theirs, "{line}");
            both.send(r#"{"execute":"drive-backup","arguments":{"device":"virtio0","sync":"full","target":"<>/t","job-id":"x"}}"#);
            both.send(&format!(r#"{{"execute":"block-job-cancel","arguments":{{"device":"{job}"}}}}"#));
        }
        let [mut ours, mut theirs] = both.end();
        if *is_cancelled {
            for event in [&mut ours, &mut theirs] {
                event["data"].as_object_mut().unwrap().remove("offset");
            }
        }
        assert_eq!(ours, theirs, "{line}");
        assert_eq!(ours["event"], if *is_cancelled { "BLOCK_JOB_CANCELLED" } else { "BLOCK_JOB_COMPLETED" });
        both.compare_bitmaps(&line);
    }
    for name in ["chain", "never", "always", "last"] {
        let [ours, theirs] = [&both.ours.3, &both.theirs.1].map(|dir| std::fs::read(dir.join(name)).unwrap());
        assert!(ours == theirs, "{name}");
    }
    let [ours, theirs] = [&both.ours.3, &both.theirs.1].map(|dir| std::fs::read(dir.join("disk")).unwrap());
    assert!(ours == theirs && ours == std::fs::read(both.ours.3.join("last")).unwrap());
    let left = |name: &str| both.ours.3.join(name).exists() || both.ours.3.join(format!("{name}.partial")).exists();
    assert!(!left("cancelled") && !left("cancelled2"), "a job that was cancelled leaves no new file");
}

#[test]
fn transactions_with_jobs_are_those_of_a_running_qemu() {
    let Some(mut both) = Both::start() else { return };
    for (number, (actions, begins)) in TRANSACTIONS.iter().enumerate() {
        both.write(1 << 20, 512, number + 1);
        let line = format!(r#"{{"execute":"transaction","arguments":{{"actions":{actions}}}}}"#);
        let answer = both.send(&line);
        assert_eq!(answer.get("return").is_some(), *begins, "{answer} to {line}");
        if *begins {
            let [ours, theirs] = both.end();
            assert_eq!(ours, theirs, "{line}");
        }
        both.send(r#"{"execute":"query-block-jobs"}"#);
        if number > 0 {
            both.compare_bitmaps(&line);
        }
    }
    for name in ["t1", "t5"] {
        let [ours, theirs] = [&both.ours.3, &both.theirs.1].map(|dir| std::fs::read(dir.join(name)).unwrap());
        assert!(ours == theirs, "{name}");
    }
}
