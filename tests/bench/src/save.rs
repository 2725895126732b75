//! Measures the time to save a paused guest to a file, until all of the file is on the disk: one thread, several threads, and
//! direct I/O, in minivmm and in QEMU.

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::monitor::{Guest, Monitor, Place};

const MEMORY_MIB: u64 = 1280;
/// Number of pages with contents: 1 GiB.
const PAGES: u64 = 262_144;

/// A way to write the file: the state of capability `multifd`, and of parameter `direct-io`.
const WAYS: [(&str, bool, bool); 3] =
    [("one thread", false, false), ("`multifd`", true, false), ("`multifd`, `direct-io`", true, true)];

/// A table with a line for each monitor; all ways take turns, `turns` times each. The files are written to `directory`.
pub(crate) fn table(turns: u64, directory: &Path) -> String {
    let place = Place::new(directory, MEMORY_MIB, PAGES);
    let mut guests: Vec<_> = Monitor::all().iter().map(|&monitor| place.boot(monitor)).collect();
    let mut times = vec![WAYS.map(|_| Vec::new()); guests.len()];
    // The first turn is not counted.
    for turn in 0..=turns {
        for (guest, times) in guests.iter_mut().zip(&mut times) {
            for ((_, threads, direct), times) in WAYS.iter().zip(times) {
                let time = save(guest, *threads, *direct, &directory.join("state"));
                times.extend((turn > 0).then_some(time));
            }
        }
    }
    let mut text = String::from("| best / median, ms |");
    for (name, ..) in WAYS {
        text += &format!(" {name} |");
    }
    text += "\n| --- | ---: | ---: | ---: |\n";
    for (guest, times) in guests.iter().zip(times) {
        text += &format!("| {} |", guest.monitor.name());
        for mut times in times {
            times.sort();
            let [best, median] = [times[0], times[times.len() / 2]].map(|time| time.as_millis());
            // Writing to a string does not fail.
            let _ = write!(text, " {best} / {median} |");
        }
        text.push('\n');
    }
    text
}

/// Saves the paused guest, and returns the time.
fn save(guest: &mut Guest, threads: bool, direct: bool, state: &Path) -> Duration {
    let _ = std::fs::remove_file(state);
    // QEMU saves no guest that it has just saved.
    guest.execute("cont", json!({}));
    guest.execute("stop", json!({}));
    guest.execute(
        "migrate-set-capabilities",
        json!({ "capabilities": [{ "capability": "multifd", "state": threads }] }),
    );
    let parameters = json!({ "max-bandwidth": 0, "multifd-channels": 2, "direct-io": direct });
    guest.execute("migrate-set-parameters", parameters);
    let uri = format!("file:{}", state.display());
    let begun = Instant::now();
    match guest.monitor {
        Monitor::Minivmm => guest.migrate(json!({ "uri": uri, "keep-running": true })),
        Monitor::Qemu => guest.migrate(json!({ "uri": uri })),
    };
    // minivmm has done it already.
    File::open(state).and_then(|file| file.sync_all()).expect("the state on the disk");
    begun.elapsed()
}
