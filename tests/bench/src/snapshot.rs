//! Measures the time to restore a guest from a file, from the start of the process, and the guest's pause while it is
//! saved: minivmm, which maps the file, compared with QEMU, which reads it. Both files have the layout mapped-ram.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::monitor::{Guest, Monitor, Place, Process};

const MEMORY_MIB: u64 = 4096;
/// Number of pages that the guest has written and keeps rewriting: 200 MB.
const PAGES: u64 = 50_000;

/// A table with a line for each monitor; both save and restore in turn, `turns` times each.
pub(crate) fn table(turns: u64, directory: &Path) -> String {
    let (place, monitors) = (Place::new(directory, MEMORY_MIB, PAGES), Monitor::all());
    let mut saves: Vec<_> = monitors.iter().map(|&monitor| (place.boot(monitor), Vec::new())).collect();
    // The first turn is not counted.
    for turn in 0..=turns {
        for (guest, pauses) in &mut saves {
            let pause = save(guest, &state(directory, guest.monitor));
            pauses.extend((turn > 0).then_some(pause));
        }
    }
    let pauses: Vec<_> = saves.into_iter().map(|(_, pauses)| pauses).collect();
    let mut restores = vec![Vec::new(); monitors.len()];
    for turn in 0..=turns {
        for (&monitor, times) in monitors.iter().zip(&mut restores) {
            let time = restore(&place, monitor, &state(directory, monitor));
            times.extend((turn > 0).then_some(time));
        }
    }
    let mut text = String::from(
        "| | restore, ms, best | restore, ms, median | pause of the save, ms, best | pause of the save, ms, median |\n\
         | --- | ---: | ---: | ---: | ---: |\n",
    );
    for ((monitor, mut restores), mut pauses) in monitors.into_iter().zip(restores).zip(pauses) {
        let best_and_median = |times: &mut Vec<Duration>| {
            times.sort();
            [times[0], times[times.len() / 2]].map(|time| time.as_secs_f64() * 1e3)
        };
        let ([restore, restore_median], [pause, pause_median]) =
            (best_and_median(&mut restores), best_and_median(&mut pauses));
        let name = monitor.name();
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {name} | {restore:.1} | {restore_median:.1} | {pause:.0} | {pause_median:.0} |");
    }
    text
}

fn state(directory: &Path, monitor: Monitor) -> PathBuf {
    directory.join(format!("{monitor:?}.state"))
}

/// Saves the guest and returns its pause. The guest runs only for that, so that it does not slow the other monitor
/// down.
fn save(guest: &mut Guest, state: &Path) -> Duration {
    let _ = std::fs::remove_file(state);
    let uri = format!("file:{}", state.display());
    guest.execute("cont", json!({}));
    // Let the guest work first.
    thread::sleep(Duration::from_millis(300));
    let figures = match guest.monitor {
        Monitor::Minivmm => guest.migrate(json!({ "uri": uri, "keep-running": true })),
        Monitor::Qemu => guest.migrate(json!({ "uri": uri })),
    };
    guest.execute("stop", json!({}));
    Duration::from_millis(figures["downtime"].as_u64().expect("a downtime"))
}

/// The time from the start of a process to the first tick of its guest.
fn restore(place: &Place<'_>, monitor: Monitor, state: &Path) -> Duration {
    let mut command = place.command(monitor);
    let flag = if monitor == Monitor::Minivmm { "--incoming" } else { "-incoming" };
    command.arg(flag).arg(format!("file:{}", state.display()));
    let begun = Instant::now();
    let mut process = Process::start(command);
    process.ticks(1);
    begun.elapsed()
}
