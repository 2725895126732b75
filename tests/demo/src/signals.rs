//! Ctrl-C leaves nothing behind: temporary files go, and with us every process that we started.

use std::path::PathBuf;

use nix::sys::signal::{SigSet, Signal};

/// From now on an interrupt removes `directory` and ends the process. For a thread that has started no other yet.
pub(crate) fn remove_on_interrupt(directory: PathBuf) {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    if signals.thread_block().is_err() {
        return;
    }
    std::thread::spawn(move || {
        let signal = signals.wait();
        let _ = std::fs::remove_dir_all(&directory);
        eprintln!("\ninterrupted");
        // Our children die with us: see the process module.
        std::process::exit(128 + signal.map_or(0, |signal| signal as i32));
    });
}
