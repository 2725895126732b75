//! Ctrl-C removes the temporary files and ends every process that the demo started.

use std::path::PathBuf;

use nix::sys::signal::{SigSet, Signal};

/// Lets an interrupt remove `directory` and end the process. To be called before any other thread is started.
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
        // The child processes end with this one: see the lab's process module.
        std::process::exit(128 + signal.map_or(0, |signal| signal as i32));
    });
}
