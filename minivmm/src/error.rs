//! Errors of building and running a machine: each text names the flag, file or call, and what to do.
//!
//! Rank 0: imports nothing of the crate.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use serde_json::{Value, json};
use vmstate::error::Printable;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The text of a system's error without its number, as QEMU prints it (strerror(3)).
pub fn reason(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| Errno::from_raw(number).desc().into())
}

/// An error of the machine. The text of the source is not repeated in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `/dev/kvm` does not open.
    #[error("/dev/kvm does not open: {remedy}")]
    OpenKvm {
        /// What to do.
        remedy: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The host's KVM is too old or too small.
    #[error("the host's KVM lacks {capability}, which minivmm needs: use a Linux kernel from {since} on")]
    MissingCapability {
        /// KVM's name of the capability, as `KVM_CAP_IRQCHIP`.
        capability: &'static str,
        /// First kernel release that has it.
        since: &'static str,
    },
    /// A call into KVM failed.
    #[error("KVM refused {call}")]
    Kvm {
        /// The ioctl and what it was for.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Guest RAM cannot be allocated.
    #[error("--memory: {what}")]
    Memory {
        /// What is wrong and what to do.
        what: String,
    },
    /// An access outside guest RAM.
    #[error("guest RAM has no {len} bytes at {at:#x}")]
    OutsideRam {
        /// First byte, as an offset in the RAM block or a guest address.
        at: u64,
        /// Bytes.
        len: u64,
    },
    /// A file named by a flag cannot be read or is not what it should be.
    #[error("{flag} {}: {what}", path.display())]
    File {
        /// The flag, as `--kernel`.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
        /// Why, where the system said so.
        source: Option<io::Error>,
    },
    /// A flag's value cannot be used.
    #[error("{flag}: {what}")]
    Flag {
        /// The flag, as `--append`.
        flag: &'static str,
        /// What is wrong and what to do.
        what: String,
    },
    /// A device cannot be made.
    #[error("{what}")]
    Device {
        /// What is wrong and what to do.
        what: String,
    },
    /// A vCPU did not stop in time.
    #[error("vCPU {index} did not stop within {waited:.1?}")]
    VcpuStuck {
        /// Index of the vCPU.
        index: u8,
        /// Time that was waited.
        waited: Duration,
    },
}

impl Error {
    /// Formats the error and its causes in one line.
    pub fn with_causes(&self) -> String {
        chain(self)
    }

    /// For `map_err` after a device's constructor.
    pub(crate) fn device(error: impl Display) -> Self {
        Self::Device { what: error.to_string() }
    }

    /// For `map_err` after a kvm-ioctls call.
    pub(crate) fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |errno| Self::Kvm { call, source: errno.into() }
    }
}

/// Prints a sentence for the user on standard error, as one line of printable text.
#[expect(clippy::print_stderr, reason = "all messages are printed here")]
pub fn print_message(sentence: impl Display) {
    if AS_JSON.load(Ordering::Relaxed) {
        eprintln!("{}", event("warn", Printable(sentence).to_string().into(), "minivmm"));
        return;
    }
    eprintln!("minivmm: {}", Printable(sentence));
}

/// Formats an event as a line of JSON.
pub(crate) fn event(level: &str, message: Value, target: &str) -> Value {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({"time": since.as_micros() as f64 / 1e6, "level": level, "message": message, "target": target})
}

/// Whether [`print_message`] writes JSON.
static AS_JSON: AtomicBool = AtomicBool::new(false);

/// Makes [`print_message`] print events as the JSON log does.
pub fn print_messages_as_json() {
    AS_JSON.store(true, Ordering::Relaxed);
}

/// Messages that a peer can cause at any rate, limited to one in 10 s, so that a peer cannot fill the user's log.
#[derive(Debug, Default)]
pub struct RateLimitedLog {
    last: Option<Instant>,
}

/// How long a [`RateLimitedLog`] is silent after a message.
const QUIET: Duration = Duration::from_secs(10);

impl RateLimitedLog {
    /// Prints the sentence unless another one was printed in the last 10 s.
    pub fn print(&mut self, sentence: impl Display) {
        if self.last.is_none_or(|last| last.elapsed() >= QUIET) {
            print_message(sentence);
            self.last = Some(Instant::now());
        }
    }
}

/// Formats an error and its causes in one line of printable text.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    Printable(text).to_string()
}
