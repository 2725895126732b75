//! First message of a hand-over: a length of four bytes, big-endian, sent with the descriptors (SCM_RIGHTS, unix(7)), and then
//! so many bytes of text: a line that identifies the sender, and a line with the name of each descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

const GREETING: &str = "minivmm hand-over 1";

/// Most descriptors: the RAM, a network for each virtio-mmio window, two of a console, and the socket for metrics.
const DESCRIPTORS_MAX: usize = 12;
/// Longest text.
const TEXT_MAX: usize = 1024;

/// Why a message hands nothing over. The sender still has its guest then.
#[derive(Debug, thiserror::Error)]
pub(super) enum MessageError {
    /// The connection was closed before the first byte.
    #[error("the peer passed no guest memory: the source has to run migrate local:PATH")]
    Nothing,
    /// The text is not a minivmm's.
    #[error("the message is not a hand-over of minivmm: use migrate local:PATH at the source")]
    Foreign,
    /// The bytes are not QEMU's `CprState`.
    #[error("the message is no CPR state: use mode cpr-transfer at the source")]
    NoState,
    /// The connection was closed inside the message.
    #[error("the message ends after {came} bytes, and {missing} are missing: its sender has ended, or is no minivmm")]
    Torn { came: usize, missing: usize },
    /// The rest of the message did not arrive in time.
    #[error("the message stops after {came} bytes, and {missing} more did not arrive within {waited:?}")]
    Stalled { came: usize, missing: usize, waited: Duration },
    /// Descriptors that the text names are missing.
    #[error("the descriptor of {} did not arrive: the message names {named}, and {came} arrived with it", what.join(", "))]
    Missing { what: Vec<String>, named: usize, came: usize },
    /// The kernel gave this process fewer descriptors than were sent (`MSG_CTRUNC`).
    #[error(
        "the descriptor of {} did not arrive: this process may not have so many files open, or more than {DESCRIPTORS_MAX} were sent; raise \
         its limit (ulimit -n)",
        what.join(", ")
    )]
    NoRoom { what: Vec<String> },
    /// More descriptors arrived than the text names.
    #[error("{came} descriptors arrived, and the message names {named}")]
    Unnamed { named: usize, came: usize },
    /// The system failed.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// Sends `descriptors` with their names.
///
/// # Errors
/// The system's; or there are more descriptors than fit one message.
pub(super) fn send(socket: impl AsFd, descriptors: &[(&str, BorrowedFd<'_>)]) -> io::Result<()> {
    let names = descriptors.iter().map(|(name, _)| format!("{name}\n"));
    let text = format!("{GREETING}\n{}", names.collect::<String>());
    let message = [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptors.iter().map(|(_, descriptor)| *descriptor).collect();
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("more descriptors than one message has"));
    }
    // Short enough to be sent at once.
    sendmsg(socket, &[IoSlice::new(&message)], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// Receives descriptors and their names; the socket does not block. Gives up when no bytes arrive for `timeout`.
///
/// # Errors
/// What is wrong with the message, or missing in it.
pub(super) fn receive(socket: impl AsFd, timeout: Duration) -> Result<Vec<(String, OwnedFd)>, MessageError> {
    let mut receiver = Receiver::new(socket, timeout);
    let length = u32::from_be_bytes(receiver.bytes()?) as usize;
    if length > TEXT_MAX {
        return Err(MessageError::Foreign);
    }
    let mut text = vec![0; length];
    receiver.fill(&mut text)?;
    let text = String::from_utf8(text).map_err(|_| MessageError::Foreign)?;
    let mut lines = text.lines();
    if lines.next() != Some(GREETING) {
        return Err(MessageError::Foreign);
    }
    receiver.named(lines.map(str::to_owned).collect())
}

/// Receives bytes and descriptors.
pub(super) struct Receiver<S> {
    socket: S,
    timeout: Duration,
    /// Bytes received.
    came: usize,
    descriptors: Vec<OwnedFd>,
    /// Whether the kernel dropped descriptors.
    lost: bool,
}

impl<S: AsFd> Receiver<S> {
    pub(super) fn new(socket: S, timeout: Duration) -> Self {
        Self { socket, timeout, came: 0, descriptors: Vec::new(), lost: false }
    }

    /// Receives `N` bytes.
    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Gives the descriptors that arrived their names.
    pub(super) fn named(self, names: Vec<String>) -> Result<Vec<(String, OwnedFd)>, MessageError> {
        let (named, came) = (names.len(), self.descriptors.len());
        match names.get(came..) {
            None => Err(MessageError::Unnamed { named, came }),
            Some([]) => Ok(names.into_iter().zip(self.descriptors).collect()),
            Some(what) if self.lost => Err(MessageError::NoRoom { what: what.to_vec() }),
            Some(what) => Err(MessageError::Missing { what: what.to_vec(), named, came }),
        }
    }

    /// Fills `into`, and keeps the descriptors that come with it.
    pub(super) fn fill(&mut self, into: &mut [u8]) -> Result<(), MessageError> {
        let until = Instant::now() + self.timeout;
        let mut filled = 0;
        while let missing @ 1.. = into.len() - filled {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let rest = &mut [IoSliceMut::new(&mut into[filled..])];
            match recvmsg(&self.socket, rest, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) if received.bytes == 0 => {
                    let came = self.came;
                    return Err(if came == 0 { MessageError::Nothing } else { MessageError::Torn { came, missing } });
                }
                Ok(received) => {
                    filled += received.bytes;
                    self.came += received.bytes;
                    self.lost |= received.flags.contains(ReturnFlags::CTRUNC);
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        let (came, waited) = (self.came, self.timeout);
                        return Err(MessageError::Stalled { came, missing, waited });
                    }
                    let mut waited = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
                    let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
                    poll(&mut waited, left).map_err(io::Error::from)?;
                }
                // The peer ended with unread bytes of this process.
                Err(rustix::io::Errno::CONNRESET) if self.came > 0 => {
                    return Err(MessageError::Torn { came: self.came, missing });
                }
                Err(errno) => return Err(MessageError::System(errno.into())),
            }
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(came) = message {
                    self.descriptors.extend(came);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(20);

    /// Sends bytes, with descriptors at the first one, as a peer.
    fn sent(bytes: &[u8], descriptors: &[&File]) -> (UnixStream, UnixStream) {
        let (peer, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptors.iter().map(|file| file.as_fd()).collect();
        assert!(descriptors.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        if !bytes.is_empty() {
            sendmsg(&peer, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).unwrap();
        }
        (peer, ours)
    }

    /// Returns why a peer that sends this and then closes the connection is refused.
    fn refused(bytes: &[u8], descriptors: &[&File]) -> String {
        let (peer, ours) = sent(bytes, descriptors);
        drop(peer);
        receive(&ours, TIMEOUT).unwrap_err().to_string()
    }

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }

    const RAM: &[u8] = b"\0\0\0\x18minivmm hand-over 1\nram\n";
    const RAM_AND_TAPS: &[u8] = b"\0\0\0\x24minivmm hand-over 1\nram\ntap 0\ntap 1\n";

    /// In one piece and byte by byte; each descriptor is the file with its name, compared by inode.
    #[test]
    fn descriptors_come_with_their_names() {
        let files = [file(), file(), file()];
        let named = [("ram", &files[0]), ("tap 0", &files[1]), ("tap 1", &files[2])];
        let check = |came: Vec<(String, OwnedFd)>| {
            let came: Vec<_> = came
                .into_iter()
                .map(|(name, descriptor)| (name, File::from(descriptor).metadata().unwrap().ino()))
                .collect();
            assert_eq!(came, named.map(|(name, file)| (name.to_owned(), file.metadata().unwrap().ino())));
        };
        let (mut peer, ours) = sent(&RAM_AND_TAPS[..1], &files.each_ref());
        for byte in &RAM_AND_TAPS[1..] {
            peer.write_all(&[*byte]).unwrap();
        }
        check(receive(&ours, TIMEOUT).unwrap());

        let (peer, ours) = sent(&[], &[]);
        ours.set_nonblocking(true).unwrap();
        send(&peer, &named.map(|(name, file)| (name, file.as_fd()))).unwrap();
        check(receive(&ours, TIMEOUT).unwrap());
    }

    #[test]
    fn what_is_missing_is_named() {
        let (a, b) = (file(), file());
        assert_eq!(
            refused(RAM, &[]),
            "the descriptor of ram did not arrive: the message names 1, and 0 arrived with it"
        );
        assert_eq!(
            refused(RAM_AND_TAPS, &[&a]),
            "the descriptor of tap 0, tap 1 did not arrive: the message names 3, and 1 arrived with it"
        );
        assert_eq!(refused(RAM, &[&a, &b]), "2 descriptors arrived, and the message names 1");
        assert_eq!(refused(&[], &[]), "the peer passed no guest memory: the source has to run migrate local:PATH");
        assert_eq!(
            refused(&RAM[..9], &[&a]),
            "the message ends after 9 bytes, and 19 are missing: its sender has ended, or is no minivmm"
        );
        assert_eq!(
            refused(&RAM[..2], &[&a]),
            "the message ends after 2 bytes, and 2 are missing: its sender has ended, or is no minivmm"
        );
    }

    /// More descriptors than a minivmm sends: the kernel drops those without room.
    #[test]
    fn dropped_descriptors_are_distinguished_from_descriptors_that_were_not_sent() {
        let file = file();
        let text: String = (0..39).map(|index| format!("tap {index}\n")).collect();
        let text = format!("minivmm hand-over 1\nram\n{text}");
        let message = [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        let why = refused(&message, &[&file; 40]);
        assert!(why.contains(", tap 37, tap 38 did not arrive: this process may not"), "{why}");
    }

    #[test]
    fn what_is_no_hand_over_is_refused() {
        let file = file();
        let huge = [&0x401_u32.to_be_bytes()[..], &[b'a'; 0x401]].concat();
        let others: [&[u8]; 5] =
            [b"QEVM\0\0\0\x03", b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\0", b"\0\0\0\x02\xff\xfe", &huge];
        for bytes in others {
            assert_eq!(
                refused(bytes, &[&file]),
                "the message is not a hand-over of minivmm: use migrate local:PATH at the source"
            );
        }
        let newer = b"\0\0\0\x14minivmm hand-over 2\n";
        assert_eq!(
            refused(newer, &[]),
            "the message is not a hand-over of minivmm: use migrate local:PATH at the source"
        );
    }

    #[test]
    fn a_peer_that_stops_is_not_waited_for() {
        let (_peer, ours) = sent(&RAM[..20], &[]);
        let why = receive(&ours, TIMEOUT).unwrap_err().to_string();
        assert_eq!(why, "the message stops after 20 bytes, and 8 more did not arrive within 20ms");
    }
}
