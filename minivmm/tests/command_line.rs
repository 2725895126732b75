//! The built command itself: exit codes, and what goes to which stream.

use std::process::{Command, Output};

fn minivmm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_minivmm")).args(arguments).output().unwrap()
}

#[test]
fn a_mistake_is_one_line_on_stderr_and_exit_code_2() {
    for arguments in [&["run", "--kernel", "/nowhere/vmlinuz"][..], &["run", "--cpus", "0"], &["--nonsense"], &[]] {
        let output = minivmm(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(text.starts_with("minivmm: ") && text.lines().count() == 1, "{arguments:?}: {text}");
    }
}

#[test]
fn help_and_version_are_no_mistakes() {
    for arguments in [["--help"], ["--version"]] {
        let output = minivmm(&arguments);
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty() && !output.stdout.is_empty());
    }
}
