//! The program `vmstate`: what it prints, and its exit codes.

mod check;
mod hostile;
mod inspect;
mod releases;

use std::path::Path;
use std::process::Command;

/// Exit code, standard output, standard error.
fn vmstate(arguments: &[&str], files: &[&Path]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_vmstate")).args(arguments).args(files).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}
