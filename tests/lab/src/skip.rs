//! Skips a test that the machine cannot run, with a printed reason; the test fails instead where everything must run.

use std::io::Write;

/// Set to `1` by `tests/run`: a test that would be skipped fails instead.
pub const NO_SKIP: &str = "VMSTATE_NO_SKIP";

/// Prints that a test is skipped, and why.
///
/// # Panics
/// When the environment says that nothing may be skipped.
pub fn skip(reason: impl std::fmt::Display) {
    assert!(std::env::var_os(NO_SKIP).is_none_or(|value| value != "1"), "must not be skipped here: {reason}");
    // Written past the test harness, which captures the `eprintln!` output of a test that passes.
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(std::io::stderr(), "\nskipped: {test}: {reason}");
}
