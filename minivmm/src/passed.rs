//! Descriptors that the process was started with: `fd:N` by number, `fd:NAME` by the name that systemd gave the descriptor
//! (sd_listen_fds(3)). With them minivmm needs no permission of its own for a file, a device or a socket.

use std::collections::BTreeMap;
use std::env;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::sync::lock;

/// First descriptor that systemd passes (`SD_LISTEN_FDS_START`); below are standard input, output and error.
const LISTEN_FDS_START: RawFd = 3;

/// Descriptors that were [taken](take), by reference.
static TAKEN: Mutex<BTreeMap<String, OwnedFd>> = Mutex::new(BTreeMap::new());

/// Returns the reference after `fd:` of a path. A file with such a name is `./fd:…`.
pub fn reference(path: &Path) -> Option<&str> {
    path.to_str()?.strip_prefix("fd:")
}

/// Takes the descriptors that flags refer to, each as `(flag, reference)`, and closes and returns all others that systemd
/// passed, with number and name. Must be called once, before the process opens anything, since later descriptors cannot be
/// distinguished from passed ones.
///
/// # Errors
/// The reason, as a sentence for the user, with flag and reference.
pub fn take(uses: &[(&str, &str)]) -> Result<Vec<(RawFd, String)>, String> {
    let listed = listed(|variable| env::var(variable).ok(), std::process::id());
    let mut users: BTreeMap<RawFd, &str> = BTreeMap::new();
    let mut numbers = Vec::new();
    for (flag, reference) in uses {
        let refused = |what| format!("{flag} fd:{reference}: {what}");
        let number = number(reference, &listed).map_err(refused)?;
        if let Some(other) = users.insert(number, flag) {
            return Err(refused(format!("{other} has descriptor {number}; pass one for each")));
        }
        numbers.push(number);
    }
    // Before anything is opened: the list of systemd may be longer than the list of open descriptors.
    let closed = |number: RawFd| nix::unistd::close(number).is_ok();
    let unused = listed.into_iter().filter(|&(number, _)| !users.contains_key(&number) && closed(number)).collect();
    let taken = duplicate(&numbers).map_err(|(index, error)| {
        let (flag, reference) = uses.get(index).copied().unwrap_or_default();
        format!("{flag} fd:{reference}: {error}")
    })?;
    let references = uses.iter().map(|(_, reference)| (*reference).to_owned());
    lock(&TAKEN).extend(references.zip(taken));
    for number in numbers {
        let _ = nix::unistd::close(number);
    }
    Ok(unused)
}

/// Duplicates the descriptor that was taken as `reference`.
///
/// # Errors
/// The reference was not taken, or the process has no descriptor left.
pub fn descriptor(reference: &str) -> io::Result<OwnedFd> {
    let taken = lock(&TAKEN);
    let descriptor = taken.get(reference).ok_or_else(|| io::Error::other("no descriptor was passed for it"))?;
    descriptor.try_clone()
}

/// Registers `descriptor`, which came over a socket, as `reference`.
pub fn adopt(reference: &str, descriptor: OwnedFd) {
    lock(&TAKEN).insert(reference.to_owned(), descriptor);
}

/// Closes all taken descriptors once each user has a duplicate: otherwise a socket would still listen here after its user has
/// closed it.
pub fn close() {
    lock(&TAKEN).clear();
}

/// Numbers and names of the descriptors that systemd passes to the process with the id `process`.
fn listed(variable: impl Fn(&str) -> Option<String>, process: u32) -> Vec<(RawFd, String)> {
    let number = |name| variable(name)?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(process) {
        return Vec::new();
    }
    // Bounds the count: no process has more descriptors open.
    let count = number("LISTEN_FDS").unwrap_or(0).min(1 << 16) as usize;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned).chain(std::iter::repeat(String::new()));
    (LISTEN_FDS_START..).zip(names).take(count).collect()
}

/// Resolves `reference`, a number or a name, to a number.
fn number(reference: &str, listed: &[(RawFd, String)]) -> Result<RawFd, String> {
    if reference.is_empty() {
        return Err("write fd:N or fd:NAME".into());
    }
    if !reference.bytes().all(|byte| byte.is_ascii_digit()) {
        let mut named = listed.iter().filter(|(_, name)| name == reference);
        return match (named.next(), named.next()) {
            (Some(&(number, _)), None) => Ok(number),
            (Some(_), Some(_)) => Err("more than one descriptor has this name; give the number".into()),
            (None, _) => Err("no descriptor with this name was passed; systemd names them by FileDescriptorName= \
                 and OpenFile="
                .into()),
        };
    }
    match reference.parse() {
        Ok(0..LISTEN_FDS_START) => Err("0, 1 and 2 are standard input, output and error; pass another one".into()),
        Ok(number) => Ok(number),
        Err(_) => Err("no descriptor has such a number".into()),
    }
}

/// Duplicates the descriptors with these numbers; or returns the index in the list of the one that failed, and why.
///
/// Safe Rust cannot own a raw number. So the descriptors are sent through a socket (SCM_RIGHTS, unix(7)), which duplicates
/// them. All are sent before the first is received, since a received one could get a number of the list.
fn duplicate(numbers: &[RawFd]) -> Result<Vec<OwnedFd>, (usize, String)> {
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    let (out, input) = UnixStream::pair().map_err(|error| (0, error.to_string()))?;
    let own = [out.as_raw_fd(), input.as_raw_fd()];
    for (index, number) in numbers.iter().enumerate() {
        let rights = [*number];
        let message = [ControlMessage::ScmRights(&rights)];
        let sent = sendmsg::<()>(out.as_raw_fd(), &[IoSlice::new(&[0])], &message, MsgFlags::empty(), None);
        match sent {
            Ok(_) if !own.contains(number) => {}
            Ok(_) | Err(nix::errno::Errno::EBADF) => {
                return Err((index, "no descriptor with this number is open".into()));
            }
            Err(errno) => return Err((index, io::Error::from(errno).to_string())),
        }
    }
    let received = |index| receive(&input).map_err(|error| (index, error.to_string()));
    (0..numbers.len()).map(received).collect()
}

/// Receives one descriptor, which is closed on exec.
fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let rights = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    // The kernel drops a descriptor for which the process has no room (MSG_CTRUNC).
    rights.ok_or_else(|| io::Error::other("the process has no descriptor left"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    fn said(pid: &str, count: &str, names: &str) -> Vec<(RawFd, String)> {
        let variable = |name: &str| {
            let value = match name {
                "LISTEN_PID" => pid,
                "LISTEN_FDS" => count,
                "LISTEN_FDNAMES" => names,
                _ => return None,
            };
            Some(value.to_owned())
        };
        listed(variable, 77)
    }

    /// sd_listen_fds(3): from 3 on, for the process of LISTEN_PID, names between colons.
    #[test]
    fn what_systemd_passes_has_numbers_and_names() {
        let all = [(3, "qmp".to_owned()), (4, "incoming".to_owned())];
        assert_eq!(said("77", "2", "qmp:incoming"), all);
        assert_eq!(said("77", "1", "qmp:incoming"), all[..1]);
        assert_eq!(said("77", "2", ":incoming"), [(3, String::new()), all[1].clone()]);
        assert_eq!(said("77", "2", "qmp"), [all[0].clone(), (4, String::new())]);
        for (pid, count) in [("78", "2"), ("", "2"), ("77", "x"), ("77", "-1"), ("77", "0")] {
            assert_eq!(said(pid, count, "qmp:incoming"), [], "{pid} {count}");
        }
        assert_eq!(listed(|_| None, 77), []);
    }

    #[test]
    fn a_reference_is_a_number_or_a_name_that_one_has() {
        let listed = [(3, "disk".to_owned()), (4, "disk".to_owned()), (5, "7".to_owned()), (6, String::new())];
        let number = |reference| number(reference, &listed);
        assert_eq!((number("3"), number("007")), (Ok(3), Ok(7)));
        for (reference, why) in [
            ("", "write fd:N or fd:NAME"),
            ("2", "0, 1 and 2 are standard input, output and error; pass another one"),
            ("99999999999", "no descriptor has such a number"),
            ("disk", "more than one descriptor has this name; give the number"),
            ("-4", "no descriptor with this name was passed"),
            ("qmp", "no descriptor with this name was passed"),
        ] {
            let error = number(reference).unwrap_err();
            assert!(error.starts_with(why), "{reference}: {error}");
        }
        assert_eq!(reference(Path::new("fd:7")), Some("7"));
        assert_eq!(reference(Path::new("./fd:7")), None);
    }

    /// A duplicate is the same file, compared by inode.
    #[test]
    fn duplicates_are_of_what_is_open_under_a_number() {
        let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let numbers = files.each_ref().map(|file| file.as_fd().as_raw_fd());
        let inode = |file: &File| std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
        let duplicates = duplicate(&numbers).unwrap();
        for (file, duplicate) in files.iter().zip(duplicates) {
            assert_eq!(inode(&File::from(duplicate)), inode(file));
        }
        let (index, error) = duplicate(&[numbers[0], 900_000, numbers[1]]).unwrap_err();
        assert_eq!((index, error.as_str()), (1, "no descriptor with this number is open"));
    }
}
