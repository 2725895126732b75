//! The built command itself: exit codes, and what goes to which stream.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use minivmm::config::Address;
use minivmm::control::Server;
use minivmm::vm::{Handle, MigrationStatus, Request, RunState, Shared};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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

/// A machine that is only a control socket; `script` is what its migration does after `migrate`.
fn machine(script: fn(&Shared)) -> (tempfile::TempDir, Server, Receiver<Request>) {
    let directory = tempfile::tempdir().unwrap();
    let (handle, requests, shared) = Handle::new(RunState::Running);
    let (seen, requests_seen) = channel();
    thread::spawn(move || {
        while let Ok((request, answer)) = requests.recv() {
            let _ = seen.send(request.clone());
            match request {
                Request::Migrate(_) => script(&shared),
                Request::MigrateCancel => shared.update_migration(|info| info.status = MigrationStatus::Cancelled),
                _ => {}
            }
            let _ = answer.send(Ok(()));
        }
    });
    let server = Server::bind(&directory.path().join("qmp"), handle).unwrap();
    (directory, server, requests_seen)
}

fn migrate(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command.args(["migrate", "--control", &format!("unix:{}/qmp", directory.display()), "unix:/run/there"]);
    command
}

#[test]
fn migrate_waits_for_the_end_and_tells_it() {
    let (directory, _server, requests) = machine(|shared| {
        shared.update_migration(|info| {
            info.status = MigrationStatus::Completed;
            info.total_time = Duration::from_millis(1500);
            info.downtime = Some(Duration::from_millis(12));
            info.transferred = 300 << 20;
        });
    });
    let output = migrate(directory.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "migrated to unix:/run/there: 300 MiB in 1500 ms, downtime 12 ms\n"
    );
    assert_eq!(requests.recv().unwrap(), Request::Migrate(Address::Unix("/run/there".into())));

    let (directory, _server, _requests) = machine(|shared| {
        shared.update_migration(|info| {
            info.status = MigrationStatus::Failed;
            info.error = Some("connection refused".into());
        });
    });
    let output = migrate(directory.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "minivmm: the migration failed: connection refused; the guest runs on where it was\n"
    );
}

#[test]
fn an_interrupt_cancels_the_migration() {
    let (directory, _server, requests) =
        machine(|shared| shared.update_migration(|info| info.status = MigrationStatus::Active));
    let child = migrate(directory.path()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(matches!(requests.recv().unwrap(), Request::Migrate(_)));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(requests.recv().unwrap(), Request::MigrateCancel);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "minivmm: the migration was cancelled; the guest runs on where it was\n"
    );
}

#[test]
fn migrate_without_a_machine_is_a_mistake() {
    let directory = tempfile::tempdir().unwrap();
    let output = migrate(directory.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("minivmm: --control unix:"));
}
