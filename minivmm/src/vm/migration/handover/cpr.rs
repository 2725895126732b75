//! Channel `cpr` of QEMU's mode `cpr-transfer`, over which the source passes descriptors before the migration connects: magic and
//! version, then the fields of QEMU's `CprState`, a list of names, ids and descriptors (migration/cpr.c). As in QEMU, each
//! descriptor comes with a byte of its own (`qemu_file_put_fd`, migration/qemu-file.c), and an element of the list follows a 1, the
//! end a 0 (`put_qlist`, migration/vmstate-types.c). The receiver closes the connection once it waits for the migration.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use rustix::io::{read, write};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, sendmsg, shutdown};

use super::message::{MessageError, Receiver};

/// `QEMU_CPR_FILE_MAGIC` and `QEMU_CPR_FILE_VERSION` (include/migration/cpr.h).
const HEADER: [u8; 8] = [0x51, 0x43, 0x50, 0x52, 0, 0, 0, 1];

/// Byte with which a descriptor comes.
const WITH_DESCRIPTOR: &[u8] = b" ";

/// Most descriptors that are received; a QEMU may pass more than a minivmm has.
const DESCRIPTORS_MAX: usize = 256;
/// Longest name, with the byte 0 behind it.
const NAME_MAX: usize = 1024;

/// Milliseconds between two checks.
const CHECK_INTERVAL: u8 = 20;

/// Sends `descriptors` with their names; the id of each is 0.
///
/// # Errors
/// The system's.
pub(super) fn send<'a>(
    socket: impl AsFd,
    descriptors: impl IntoIterator<Item = (&'a str, BorrowedFd<'a>)>,
) -> io::Result<()> {
    // Short enough to be sent at once.
    let put = |bytes: &[u8]| match write(&socket, bytes)? {
        written if written == bytes.len() => Ok(()),
        _ => Err(io::Error::from(io::ErrorKind::WriteZero)),
    };
    put(&HEADER)?;
    for (name, descriptor) in descriptors {
        let length = (name.len() as u32 + 1).to_be_bytes();
        put(&[&[1][..], &length, name.as_bytes(), &[0], &0_u32.to_be_bytes()].concat())?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptor = [descriptor];
        // There is room for one.
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptor));
        sendmsg(&socket, &[IoSlice::new(WITH_DESCRIPTOR)], &mut ancillary, SendFlags::empty())?;
    }
    put(&[0])?;
    Ok(shutdown(&socket, Shutdown::Write)?)
}

/// Waits until the receiver closes the connection.
///
/// # Errors
/// It does not within `limit`, or `go_on` returns false.
pub(super) fn await_close(socket: impl AsFd, limit: Duration, go_on: &dyn Fn() -> bool) -> io::Result<()> {
    let until = Instant::now() + limit;
    loop {
        let mut waited = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut waited, CHECK_INTERVAL).map_err(io::Error::from)? > 0;
        match if ready {
            read(&socket, &mut [0]).map_err(io::Error::from)
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        } {
            Ok(0) => return Ok(()),
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the receiver of the descriptors is no minivmm or QEMU",
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
        if !go_on() || Instant::now() >= until {
            let why = format!("the receiver of the descriptors does not wait for the migration within {limit:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
    }
}

/// Receives descriptors and their names; the socket does not block. Gives up when no bytes arrive for `timeout`.
///
/// # Errors
/// What is wrong with the state, or missing in it.
pub(super) fn receive(socket: impl AsFd, timeout: Duration) -> Result<Vec<(String, OwnedFd)>, MessageError> {
    let mut receiver = Receiver::new(socket, timeout);
    match receiver.bytes() {
        Ok(HEADER) => {}
        Ok(_) | Err(MessageError::Nothing) => return Err(MessageError::NoState),
        Err(error) => return Err(error),
    }
    let mut names = Vec::new();
    while receiver.bytes::<1>()? != [0] {
        let length = u32::from_be_bytes(receiver.bytes()?) as usize;
        if !(1..=NAME_MAX).contains(&length) || names.len() == DESCRIPTORS_MAX {
            return Err(MessageError::NoState);
        }
        let mut name = vec![0; length];
        receiver.fill(&mut name)?;
        name.pop();
        // The id, and the byte with which the descriptor comes.
        receiver.bytes::<5>()?;
        names.push(String::from_utf8(name).map_err(|_| MessageError::NoState)?);
    }
    receiver.named(names)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(50);

    /// The bytes by hand, from QEMU's sources.
    const TWO: &[u8] = b"QCPR\0\0\0\x01\x01\0\0\0\x04ram\0\0\0\0\0 \x01\0\0\0\x06tap 0\0\0\0\0\0 \0";

    #[test]
    fn the_channel_has_qemus_bytes_and_each_descriptor_its_name() {
        let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let named = [("ram", files[0].as_fd()), ("tap 0", files[1].as_fd())];
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        send(&ours, named).unwrap();
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, TWO);

        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        send(&ours, named).unwrap();
        let inode = |file: File| file.metadata().unwrap().ino();
        let came: Vec<_> =
            receive(&theirs, TIMEOUT).unwrap().into_iter().map(|(name, came)| (name, inode(came.into()))).collect();
        let [ram, tap] = files;
        assert_eq!(came, [("ram".to_owned(), inode(ram)), ("tap 0".to_owned(), inode(tap))]);
        assert!(await_close(&ours, TIMEOUT, &|| true).unwrap_err().to_string().contains("within 50ms"));
        drop(theirs);
        await_close(&ours, TIMEOUT, &|| true).unwrap();
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let refused = |bytes: &[u8]| {
            let (mut peer, ours) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            peer.write_all(bytes).unwrap();
            drop(peer);
            receive(&ours, TIMEOUT).unwrap_err().to_string()
        };
        let no_state = "the message is no CPR state: use mode cpr-transfer at the source";
        assert_eq!(refused(b""), no_state);
        assert_eq!(refused(b"QEVM\0\0\0\x03"), no_state);
        assert_eq!(refused(b"QCPR\0\0\0\x02"), no_state);
        assert_eq!(refused(b"QCPR\0\0\0\x01\x01\0\0\x10\0"), no_state);
        assert_eq!(refused(b"QCPR\0\0\0\x01\x01\0\0\0\0"), no_state);
        assert_eq!(
            refused(TWO),
            "the descriptor of ram, tap 0 did not arrive: the message names 2, and 0 arrived with it"
        );
        assert!(refused(&TWO[..20]).starts_with("the message ends after 20 bytes"));
    }
}
