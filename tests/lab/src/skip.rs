//! Skipping a test that the machine cannot run: said aloud, and a failure where everything must run.

use std::io::Write;

/// Set to `1` by `tests/run`: whatever would be skipped fails instead.
pub const NO_SKIP: &str = "VMSTATE_NO_SKIP";

/// Says that a test is skipped and why.
///
/// # Panics
/// When the environment says that nothing may be skipped.
pub fn skip(reason: impl std::fmt::Display) {
    assert!(std::env::var_os(NO_SKIP).is_none_or(|value| value != "1"), "must not be skipped here: {reason}");
    // Past the test harness, which keeps what `eprintln!` says of a test that passes.
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(std::io::stderr(), "\nskipped: {test}: {reason}");
}
