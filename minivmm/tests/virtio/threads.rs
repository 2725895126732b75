//! Threads of devices as the kernel reports them, by the names that tests give them.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::driver::TIMEOUT;

/// Finds the thread with this name, of at most 15 bytes.
fn find(name: &str) -> Option<PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let mut named = tasks.filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name));
    named.next()
}

/// Processor time of the thread with this name. A thread sets its name when it first runs, so this waits for it.
pub fn processor_time(name: &str) -> Duration {
    let end = Instant::now() + TIMEOUT;
    let task = loop {
        match find(name) {
            Some(task) => break task,
            None => assert!(Instant::now() < end, "no thread {name}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    // Documentation/scheduler/sched-stats.rst: nanoseconds on the processor come first.
    let stat = fs::read_to_string(task.join("schedstat")).unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// Waits for the end of the thread with this name, which has run.
pub fn await_end(name: &str) {
    let end = Instant::now() + TIMEOUT;
    while find(name).is_some() {
        assert!(Instant::now() < end, "thread {name} goes on");
        std::thread::sleep(Duration::from_millis(1));
    }
}
