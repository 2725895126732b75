//! Descriptors that do not fit are refused in one sentence with flag and descriptor.

use std::fs::{self, File};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use tempfile::TempDir;
use vmstate_lab::skip::skip;

use crate::service;

/// Returns the standard error of a command that had to be refused. `files` are redirections of a shell, from descriptor 3 on,
/// or after `passed`.
#[track_caller]
fn refused(folder: &Path, variables: &str, passed: Vec<OwnedFd>, files: &[&str], arguments: &[&str]) -> String {
    let files: Vec<String> = files.iter().map(|&file| file.to_owned()).collect();
    let output = service::started(folder, variables, passed, &files, arguments).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    said
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), [0; 4096]).unwrap();
    folder
}

const NOTHING: &str = "LISTEN_FDS=";

#[test]
fn numbers_and_names_under_which_nothing_was_passed() {
    let folder = folder();
    let listed = "LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=twice:twice:once";
    let others = "LISTEN_PID=1 LISTEN_FDS=3 LISTEN_FDNAMES=twice:twice:once";
    let no_name = "no descriptor with this name was passed; systemd names them by FileDescriptorName= and OpenFile=";
    let no_number = "no descriptor with this number is open";
    for (variables, reference, why) in [
        (NOTHING, "900", no_number),
        // The number of the first descriptor that minivmm itself opens.
        (NOTHING, "6", no_number),
        (NOTHING, "7", no_number),
        (NOTHING, "99999999999", "no descriptor has such a number"),
        (NOTHING, "", "write fd:N or fd:NAME"),
        (NOTHING, "once", no_name),
        (others, "once", no_name),
        (listed, "Once", no_name),
        (listed, "twice", "more than one descriptor has this name; give the number"),
        (listed, "0", "0, 1 and 2 are standard input, output and error; pass another one"),
        (listed, "2", "0, 1 and 2 are standard input, output and error; pass another one"),
    ] {
        // The test's own process may have more open.
        let files = ["<../file", "<../file", "<../file", "<&-", "<&-"];
        let said = refused(folder.path(), variables, Vec::new(), &files, &["--kernel", &format!("fd:{reference}")]);
        assert_eq!(said, format!("minivmm: --kernel fd:{reference}: {why}\n"));
    }
    for arguments in [["--kernel", "fd:3", "--initrd", "fd:3"], ["--kernel", "fd:3", "--initrd", "fd:once"]] {
        let variables = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=once";
        let said = refused(folder.path(), variables, Vec::new(), &["<../file"], &arguments);
        assert_eq!(said, format!("minivmm: --initrd {}: --kernel has descriptor 3; pass one for each\n", arguments[3]));
    }
}

#[test]
fn files_of_another_kind_or_opened_in_another_way() {
    let folder = folder();
    let awaits = ["--incoming", "unix:../no"];
    let kernel = "give a Linux bzImage or an ELF image with a PVH entry";
    let disk = "give a raw disk image that may be written, or add ,readonly";
    let lease = "give a file that may be written, or a path that is free";
    for (redirection, flag, why) in [
        ("<..", "--kernel", format!("it is a directory; {kernel}")),
        ("</dev/null", "--kernel", format!("it is a character device; {kernel}")),
        (">>../file", "--kernel", format!("it is open for writing only; {kernel}")),
        ("<../file", "--disk", format!("it is open for reading only; {disk}")),
        (">>../file", "--disk", format!("it is open for appending; {disk}")),
        ("<..", "--disk", format!("it is a directory; {disk}")),
        ("<../file", "--lease", format!("it is open for reading only; {lease}")),
        ("<../file", "--serial", "it is open for reading only; pass one that may be written".into()),
        ("<..", "--serial", "it is a directory; pass one that may be written".into()),
    ] {
        let arguments = [flag, "fd:3"];
        let arguments = if flag == "--kernel" { arguments.to_vec() } else { [awaits, arguments].concat() };
        let said = refused(folder.path(), NOTHING, Vec::new(), &[redirection], &arguments);
        assert_eq!(said, format!("minivmm: {flag} fd:3: {why}\n"), "{redirection}");
    }
    let (pair, _other) = UnixStream::pair().unwrap();
    let said = refused(folder.path(), NOTHING, vec![pair.into()], &[], &["--kernel", "fd:3"]);
    assert_eq!(said, format!("minivmm: --kernel fd:3: it is a socket; {kernel}\n"));
}

#[test]
fn sockets_that_do_not_listen_and_devices_that_are_others() {
    if let Err(error) = minivmm::kvm::open() {
        return skip(error);
    }
    let folder = folder();
    let connected = || OwnedFd::from(UnixStream::pair().unwrap().0);
    let tcp = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
    let datagrams = || OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    let file = || OwnedFd::from(File::options().read(true).write(true).open(folder.path().join("file")).unwrap());
    let listening = || {
        let _ = fs::remove_file(folder.path().join("socket"));
        OwnedFd::from(UnixListener::bind(folder.path().join("socket")).unwrap())
    };
    let (incoming, control) =
        ("pass a stream socket, a pipe, or a regular file", "pass a unix stream socket that listens");
    let written = || OwnedFd::from(File::options().write(true).open(folder.path().join("file")).unwrap());
    let tap = "pass one that was attached with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR";
    let stream = "pass a unix stream socket that is connected";
    for (passed, flag, why) in [
        (datagrams(), "--incoming", format!("it is no stream socket of unix, TCP or vsock; {incoming}")),
        (written(), "--incoming", format!("it is open for writing only; {incoming}")),
        (connected(), "--control", format!("it is a socket that does not listen; {control}")),
        (tcp(), "--control", format!("it is no stream socket of unix; {control}")),
        (file(), "--control", format!("it is no socket; {control}")),
        (file(), "--kvm", "it is something else; pass /dev/kvm".into()),
        (file(), "--net", format!("it is no tap; {tap}")),
        (file(), "--net stream", format!("it is no stream socket; {stream}")),
        (datagrams(), "--net stream", format!("it is no stream socket; {stream}")),
        (tcp(), "--net stream", format!("it is no unix socket that is connected; {stream}")),
        (listening(), "--net stream", format!("it is no unix socket that is connected; {stream}")),
    ] {
        let (value, place) = match flag {
            "--net" => ("tap=fd:3", "--net: cannot use tap interface \"fd:3\""),
            "--net stream" => ("stream=fd:3", "--net: cannot use stream socket fd:3"),
            "--control" => ("fd:3", "--control fd:3"),
            "--kvm" => ("fd:3", "--kvm: fd:3"),
            _ => ("fd:3", "--incoming: fd:3"),
        };
        let flag = flag.split(' ').next().unwrap();
        let arguments = [&[flag, value], &["--memory", "64M", "--kvm", "fd:5", "--incoming", "fd:4"][..]].concat();
        let arguments = match flag {
            "--incoming" => &arguments[..6],
            "--kvm" => &["--kvm", "fd:3", "--incoming", "fd:4"],
            _ => &arguments[..],
        };
        let said = refused(folder.path(), NOTHING, vec![passed, listening()], &["<>/dev/kvm"], arguments);
        assert_eq!(said, format!("minivmm: {place}: {why}\n"));
    }
}

/// sd_listen_fds(3) leaves it to the program; the user should hear of a socket that is closed.
#[test]
fn passed_descriptors_that_no_flag_names_are_closed_and_reported() {
    let folder = folder();
    // The variables list one more than is open.
    let variables = "LISTEN_PID=$$ LISTEN_FDS=4 LISTEN_FDNAMES=kernel:other:";
    let files = ["<../file", "<../file", "<../file", "<&-"];
    let said = refused(folder.path(), variables, Vec::new(), &files, &["--kernel", "fd:kernel", "--initrd", "/no"]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert_eq!(lines[0], "minivmm: descriptor 4 (other) was passed, and no flag names it: it is closed");
    assert_eq!(lines[1], "minivmm: descriptor 5 () was passed, and no flag names it: it is closed");
    assert!(lines[2].starts_with("minivmm: --initrd /no: "), "{said}");
}

/// A descriptor that this process was not started with.
#[test]
fn a_migration_to_a_descriptor() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_minivmm"))
        .args(["migrate", "--control", "unix:/no", "fd:500"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let why = "fd:500: ADDRESS fd:500: no descriptor with this number is open";
    assert!(said.contains(why), "{said}");
    assert_eq!(output.status.code(), Some(2));
}
