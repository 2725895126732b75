//! The built program: the roles that it refuses, and the name by which it is minivmm.
//!
//! A first process mounts file systems and powers the machine off. So these tests run it where it can do neither: in a
//! user namespace of its own, whose root has no right to the machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use vmstate_lab::skip;

const LAB: &str = env!("CARGO_BIN_EXE_lab");

/// Time limit of a refusal; a first process never ends.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs the program in new namespaces; `None`, with a skip, where the user may make none.
fn contained(namespaces: &[&str], arguments: &[&str]) -> Option<Output> {
    let unshare = |program: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount"]).args(namespaces).arg(program);
        command
    };
    if !unshare("true").output().is_ok_and(|output| output.status.success()) {
        skip::skip("`unshare --user --mount` of util-linux is missing, or not permitted");
        return None;
    }
    let streams = |command: &mut Command| {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut child = streams(unshare(LAB).args(arguments));
    let deadline = Instant::now() + TIMEOUT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{arguments:?} in {namespaces:?} does not end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(child.wait_with_output().unwrap())
}

fn refused(namespaces: &[&str], arguments: &[&str], reason: &str) {
    let Some(output) = contained(namespaces, arguments) else { return };
    let (said, role) = (String::from_utf8(output.stderr).unwrap(), arguments[0]);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{arguments:?}");
    assert!(said.starts_with(&format!("lab: `{role}` mounts file systems and powers the machine off: it ")), "{said}");
    assert!(said.contains(reason) && said.lines().count() == 1, "{said}");
}

const ROLES: [&[&str]; 3] = [&["lab-init"], &["guest", "shell"], &["guest", "memory=16", "rate=0"]];

#[test]
fn the_role_of_a_first_process_is_refused_elsewhere() {
    for role in ROLES {
        refused(&[], role, "the first process of a machine that the lab starts, and this is process ");
    }
}

#[test]
fn the_role_of_a_first_process_is_refused_in_a_container() {
    for role in ROLES {
        refused(&["--pid", "--fork", "--kill-child", "--mount-proc"], role, "and here /proc is mounted");
    }
}

/// Oracle: the program's own help names it.
#[test]
fn called_as_minivmm_the_program_is_minivmm() {
    let directory = tempfile::tempdir().unwrap();
    let minivmm = directory.path().join("minivmm");
    symlink(fs::canonicalize(LAB).unwrap(), &minivmm).unwrap();
    let help = |program: &Path| {
        let output = Command::new(program).arg("--help").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (own, product) = (help(Path::new(LAB)), help(&minivmm));
    assert!(own.contains("lab <COMMAND>") && own.contains("\n  prepare "), "{own}");
    assert!(product.contains("minivmm <COMMAND>") && product.contains("\n  migrate "), "{product}");
    assert!(!product.contains("prepare"), "{product}");
}
