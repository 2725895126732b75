//! Files and sockets on the command line: which types are accepted, and what is left after the end.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use minivmm::control::Client;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

const TIMEOUT: Duration = Duration::from_secs(60);

fn minivmm(arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command.arg("run").args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits for the end; kills the process if it does not end in time.
fn end(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("it goes on after {TIMEOUT:?}");
}

/// Returns the message about a mistake of the user.
fn refused(arguments: &[&str]) -> String {
    let mut child = minivmm(arguments);
    assert_eq!(end(&mut child).code(), Some(2), "{arguments:?}");
    std::io::read_to_string(child.stderr.take().unwrap()).unwrap()
}

/// Opening a FIFO may wait for ever for its other end, so minivmm does not wait.
#[test]
fn a_fifo_is_refused_at_once_by_flag_and_path() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let kernel = directory.path().join("kernel");
    fs::write(&kernel, vmstate_lab::tiny::bzimage()).unwrap();
    let (fifo, kernel) = (fifo.to_str().unwrap(), kernel.to_str().unwrap());
    let read_only = format!("{fifo},readonly");
    for (flag, value) in [("--initrd", fifo), ("--disk", fifo), ("--disk", &read_only), ("--lease", fifo)] {
        let said = refused(&["--serial", "none", "--kernel", kernel, flag, value]);
        assert!(said.starts_with(&format!("minivmm: {flag} {fifo}: it is a FIFO; give ")), "{said}");
    }
    let said = refused(&["--serial", "none", "--kernel", fifo]);
    assert!(said.starts_with(&format!("minivmm: --kernel {fifo}: it is a FIFO; give ")), "{said}");
    // A FIFO with a reader would be accepted.
    let said = refused(&["--kernel", kernel, "--serial", &format!("file:{fifo}")]);
    assert!(
        said.starts_with(&format!("minivmm: --serial file:{fifo}: ")) && said.contains("; choose a path"),
        "{said}"
    );
}

#[test]
fn what_is_neither_file_nor_disk_is_refused_by_flag_and_path() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = directory.path().join("kernel");
    fs::write(&kernel, vmstate_lab::tiny::bzimage()).unwrap();
    let kernel = kernel.to_str().unwrap();
    let here = directory.path().to_str().unwrap();
    for (flag, value, is) in [
        ("--initrd", "/dev/zero", "a character device"),
        ("--disk", "/dev/null", "a character device"),
        ("--lease", "/dev/null", "a character device"),
        ("--initrd", here, "a directory"),
    ] {
        let said = refused(&["--serial", "none", "--kernel", kernel, flag, value]);
        assert!(said.starts_with(&format!("minivmm: {flag} {value}: it is {is}; give ")), "{said}");
    }
}

/// Waits until a process listens there.
fn await_listener(path: &Path) {
    let deadline = Instant::now() + TIMEOUT;
    while UnixStream::connect(path).is_err() {
        assert!(Instant::now() < deadline, "nobody listens at {}", path.display());
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_destination_that_was_killed_does_not_block_the_next_one() {
    if let Err(error) = minivmm::kvm::open() {
        return vmstate_lab::skip::skip(error);
    }
    let directory = tempfile::tempdir().unwrap();
    let incoming_socket = directory.path().join("incoming");
    let address = format!("unix:{}", incoming_socket.display());
    let control = directory.path().join("qmp");
    let named = format!("unix:{}", control.display());
    let arguments = ["--memory", "16M", "--serial", "none", "--control", &named, "--incoming", &address];
    let mut killed = minivmm(&arguments);
    await_listener(&incoming_socket);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(incoming_socket.exists(), "a process that is killed removes nothing");

    let mut next = minivmm(&arguments);
    // Before a client is served there is no machine yet that a signal could end in order.
    let deadline = Instant::now() + TIMEOUT;
    while Client::connect(&control).is_err() {
        assert!(Instant::now() < deadline, "nobody is served at {}", control.display());
        thread::sleep(Duration::from_millis(1));
    }
    let said = refused(&arguments);
    assert!(said.starts_with(&format!("minivmm: --incoming: {address}: ")), "{said}");
    kill(Pid::from_raw(next.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(end(&mut next).code(), Some(0));
    assert!(!incoming_socket.exists() && !control.exists(), "a socket is left");
}

/// Peers cannot fill the log: a message that was just printed is not repeated.
#[test]
fn sources_that_are_turned_away_fill_no_log() {
    if let Err(error) = minivmm::kvm::open() {
        return vmstate_lab::skip::skip(error);
    }
    const SOURCES: usize = 300;
    let directory = tempfile::tempdir().unwrap();
    let incoming_socket = directory.path().join("incoming");
    let address = format!("unix:{}", incoming_socket.display());
    let begun = Instant::now();
    let mut destination = minivmm(&["--memory", "16M", "--serial", "none", "--incoming", &address]);
    await_listener(&incoming_socket);
    for _ in 0..SOURCES {
        let mut source = UnixStream::connect(&incoming_socket).unwrap();
        // A version of the format that does not exist.
        source.write_all(b"QEVM\0\0\0\x02").unwrap();
        // The connection is closed when the source was turned away.
        source.set_read_timeout(Some(TIMEOUT)).unwrap();
        let _ = source.read(&mut [0; 4096]);
    }
    kill(Pid::from_raw(destination.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(end(&mut destination).code(), Some(0));
    let said = std::io::read_to_string(destination.stderr.take().unwrap()).unwrap();
    let lines = said.lines().count();
    assert!(said.contains("a migration's source was turned away: "), "{said}");
    // One message in ten seconds.
    assert!(lines <= 2 + begun.elapsed().as_secs() as usize / 10, "{lines} lines for {SOURCES} sources:\n{said}");
}
