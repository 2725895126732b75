//! Runs a user's command, as `ssh` or `socat`, whose standard input and output are the connection of a migration.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};

/// Runs `line` in a shell, as QEMU does with `exec:`, and returns the other end of the socket that is its standard input and
/// output. Must be called before a system-call filter is installed.
///
/// # Errors
/// The system's.
pub fn run(line: &str) -> io::Result<(Child, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    let theirs = OwnedFd::from(theirs);
    let child = Command::new("/bin/sh").args(["-c", line]).stdin(theirs.try_clone()?).stdout(theirs).spawn()?;
    Ok((child, ours.into()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;

    use super::*;

    #[test]
    fn what_is_sent_is_its_input_and_what_it_prints_is_received() {
        let (mut child, socket) = run("echo first; exec tr a-z A-Z").unwrap();
        let mut socket = UnixStream::from(socket);
        socket.write_all(b"second").unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut all = String::new();
        socket.read_to_string(&mut all).unwrap();
        assert_eq!(all, "first\nSECOND");
        assert!(child.wait().unwrap().success());
    }
}
