//! Signals to a command that waits for a machine: the first one cancels what the machine does, the second one ends the command.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use crate::cli::EXIT_UNKNOWN;
use crate::error::print_message;
use crate::sandbox::{self, Kind};

/// Time until the next poll of the signals, which asks the machine to cancel; and time for that request to be sent.
const POLL_TIMEOUT: Duration = Duration::from_secs(1);
const SEND_TIME: Duration = Duration::from_millis(50);

/// Handles SIGINT and SIGTERM: the first signal is noted for the next poll, the second ends the process once the machine was
/// asked to cancel. Both may come at once: timeout(1) signals its command and then the command's process group.
pub(super) struct Interrupts {
    pending: Arc<AtomicBool>,
    asking: mpsc::Sender<()>,
}

impl Interrupts {
    pub(super) fn new() -> io::Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        signals.thread_block()?;
        let pending = Arc::new(AtomicBool::new(false));
        let is_pending = Arc::clone(&pending);
        let (asking, asked) = mpsc::channel();
        sandbox::spawn(Kind::Console, "signals", move || {
            if signals.wait().is_ok() {
                is_pending.store(true, Ordering::Release);
                let _ = signals.wait();
                // Bounded: a machine that does not answer must not keep the process.
                let _ = asked.recv_timeout(POLL_TIMEOUT);
                thread::sleep(SEND_TIME);
                print_message(
                    "the machine was asked to cancel; this command does not wait for its answer: see minivmm status",
                );
                std::process::exit(EXIT_UNKNOWN.into());
            }
        })?;
        Ok(Self { pending, asking })
    }

    /// True if there was a signal since the last call.
    pub(super) fn pending(&self) -> bool {
        self.pending.swap(false, Ordering::AcqRel)
    }

    /// Records that the machine is about to be asked to cancel.
    pub(super) fn asking(&self) {
        // Fails where the thread has ended; the second signal ended the process then.
        let _ = self.asking.send(());
    }
}
