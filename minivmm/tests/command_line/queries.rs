//! Cost of migration queries for the machine, during a whole migration, measured by the kernel.

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Running, TIMEOUT};

/// Limit for the median processor time of a query.
const MOST: Duration = Duration::from_millis(1);

/// Counters of a sleeping thread: nanoseconds on a processor, and voluntary context switches (proc(5)).
fn done(task: &str) -> (u64, u64) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let status = fs::read_to_string(format!("{task}/status")).unwrap();
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        if line("State:").starts_with('S') {
            let ran = fs::read_to_string(format!("{task}/schedstat")).unwrap();
            return (
                ran.split(' ').next().unwrap().parse().unwrap(),
                line("voluntary_ctxt_switches:").parse().unwrap(),
            );
        }
        assert!(Instant::now() < deadline, "the thread does not come to rest");
        thread::yield_now();
    }
}

/// The thread that reads the client's commands.
fn reader(machine: &Running) -> String {
    let tasks = format!("/proc/{}/task", machine.child.id());
    let tasks = fs::read_dir(tasks).unwrap().map(|task| task.unwrap().path().display().to_string());
    let readers: Vec<_> =
        tasks.filter(|task| fs::read_to_string(format!("{task}/comm")).unwrap().trim() == "qmp-read").collect();
    assert_eq!(readers.len(), 1, "{readers:?}");
    readers.into_iter().next().unwrap()
}

/// Measures only the answering thread, independently of the host's load: its processor time, and whether it waits for anything
/// but its client.
#[test]
fn a_query_is_answered_at_once_at_any_moment_of_a_migration() {
    let folder = tempfile::tempdir().unwrap();
    let incoming_socket = format!("unix:{}/incoming", folder.path().display());
    let Some(there) = Running::start(&["--serial", "none", "--incoming", &incoming_socket], Stdio::null()) else {
        return;
    };
    let Some(here) = Running::start(&["--serial", "none"], Stdio::null()) else { return };
    let mut controls = [here.control(), there.control()];
    let tasks = [reader(&here), reader(&there)];
    // At this bandwidth 16384 zero pages take 3 s, and what the guest writes meanwhile fits into the pause.
    let parameters = json!({"max-bandwidth": 50_000, "downtime-limit": 2000});
    controls[0].execute("migrate-set-parameters", parameters).unwrap();
    controls[0].execute("migrate", json!({"uri": incoming_socket})).unwrap();

    let (mut took, mut slept) = (Vec::new(), 0);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let mut states = Vec::new();
        for (control, task) in controls.iter_mut().zip(&tasks) {
            let before = done(task);
            let answer = control.execute("query-migrate", json!({})).unwrap();
            let after = done(task);
            took.push(Duration::from_nanos(after.0 - before.0));
            // One sleep for the next command, and one more in the same wait: a client that reads an answer from the socket
            // wakes the thread, too.
            slept += u64::from(after.1 - before.1 > 2);
            states.push(answer["status"].clone());
        }
        if states == ["completed"; 2].map(Value::from) {
            break;
        }
        assert!(Instant::now() < deadline && !states.contains(&json!("failed")), "{states:?}");
    }
    took.sort();
    let part = |percent: usize| took[(took.len() - 1) * percent / 100];
    let (half, most) = (part(50), part(99));
    println!(
        "{} queries: half of them within {half:?}, 99 % within {most:?}, the longest {:?}; {slept} waited",
        took.len(),
        part(100)
    );
    // Interrupts of the host count as well, so a few queries of an unoptimised build may take longer.
    assert!(half < MOST, "half of the queries took more than {half:?} of a processor");
    assert!(slept * 100 <= took.len() as u64, "{slept} of {} queries waited for something", took.len());
    for (machine, mut control) in [here, there].into_iter().zip(controls) {
        control.execute("quit", json!({})).unwrap();
        machine.end();
    }
}
