//! Backups of the disk of a guest that rewrites its first sector in each pass, and nothing else.

use std::path::Path;
use std::sync::{Arc, Mutex};

use minivmm::devices::virtio::blk::Stop;
use minivmm::vm::{BackupTerms, Event, JobEvent, Request, Target, Terms};
use vmstate_lab::skip;
use vmstate_lab::tmpfs::Tmpfs;

use crate::disks::{BYTES, assert_copied, disk, original, pass};
use crate::machine::{Machine, lab, unix_address, until};

/// Events of backup jobs.
type Events = Arc<Mutex<Vec<Event>>>;

fn events(machine: &Machine) -> Events {
    let events = Events::default();
    let seen = Arc::clone(&events);
    machine.handle.subscribe(move |event| {
        if matches!(event, Event::Job(_) | Event::JobError { .. }) {
            seen.lock().unwrap().push(event);
        }
        true
    });
    events
}

/// Begins a full backup of the disk.
fn begin(machine: &Machine, to: &Path, speed: u64) {
    let terms = BackupTerms { id: "j".into(), disk: 0, target: Target::New(to.into()), speed };
    machine.handle.ask(Request::Backup(terms)).unwrap();
    let job = machine.handle.jobs().find("j").unwrap();
    job.backup().set_parts(None);
    job.begin(None);
}

/// Waits for the end of the job, and returns its events.
fn end(machine: &Machine, events: &Events) -> Vec<Event> {
    let has_ended = || matches!(events.lock().unwrap().last(), Some(Event::Job(_)));
    until(has_ended, || format!("{:?}", machine.handle.jobs()));
    std::mem::take(&mut *events.lock().unwrap())
}

fn ended(outcome: Result<(), Stop>, [copied, speed]: [u64; 2]) -> Event {
    let progress = (copied, BYTES.next_multiple_of(65536));
    Event::Job(JobEvent { id: "j".into(), progress, speed, outcome })
}

#[test]
fn each_backup_of_a_running_guest_has_a_whole_pass_of_it() {
    let Some(dir) = lab() else { return };
    let path = original(dir.path().join("disk"));
    let machine = Machine::start_writing(dir.path(), None, disk(&path, None), None);
    machine.await_passes(1);
    let (events, mut last) = (events(&machine), 0);
    for number in 0..8 {
        let backup = dir.path().join(format!("backup{number}"));
        let before = pass(&path);
        begin(&machine, &backup, 0);
        // A write that was under way when the job began is in the backup, and may end after this line.
        let after = pass(&path) + 1;
        assert_eq!(end(&machine, &events), [ended(Ok(()), [BYTES.next_multiple_of(65536), 0])]);
        assert_copied(&backup);
        last = pass(&backup);
        assert!((before..=after).contains(&last), "pass {last} is not from {before} to {after}");
    }
    assert!(last > 0);
    machine.await_passes(2);
    machine.quit();
}

#[test]
fn a_job_keeps_the_guest_from_leaving_and_a_cancel_leaves_no_file() {
    let Some(dir) = lab() else { return };
    let path = original(dir.path().join("disk"));
    let machine = Machine::start_writing(dir.path(), None, disk(&path, None), None);
    machine.await_passes(1);
    let (events, backup) = (events(&machine), dir.path().join("backup"));
    begin(&machine, &backup, 1);
    let migration = Request::Migrate(unix_address(dir.path(), "nobody"), Terms::default());
    let refused = machine.handle.ask(migration).unwrap_err().0;
    assert!(refused.starts_with("the backup job 'j' reads a disk of the guest: wait for its end"), "{refused}");
    machine.await_passes(2);
    machine.handle.jobs().find("j").unwrap().backup().cancel();
    let end = end(&machine, &events);
    assert!(matches!(&end[..], [Event::Job(JobEvent { outcome: Err(Stop::Cancelled), .. })]), "{end:?}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().starts_with("backup")), "{left:?}");
    // A machine that ends cancels its job, too.
    begin(&machine, &backup, 1);
    machine.await_passes(1);
    machine.quit();
    assert!(!backup.with_extension("partial").exists() && !backup.exists());
}

#[test]
fn a_full_file_system_ends_the_job_and_not_the_guest() {
    let Some(dir) = lab() else { return };
    let small = match Tmpfs::mount(&dir.path().join("small"), 1 << 19) {
        Ok(small) => small,
        Err(error) => return skip::skip(format_args!("a small file system cannot be mounted: {error}")),
    };
    let path = original(dir.path().join("disk"));
    let machine = Machine::start_writing(dir.path(), None, disk(&path, None), None);
    machine.await_passes(1);
    let events = events(&machine);
    begin(&machine, &small.path().join("backup"), 0);
    let end = end(&machine, &events);
    assert_eq!(end[0], Event::JobError { id: "j".into(), reads: false });
    let failed = Err(Stop::Write("No space left on device".into()));
    assert!(matches!(&end[1..], [Event::Job(JobEvent { outcome, .. })] if *outcome == failed), "{end:?}");
    machine.await_passes(2);
    assert_eq!(std::fs::read_dir(small.path()).unwrap().count(), 0, "no file is left");
    machine.quit();
}
