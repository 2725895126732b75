//! Section `minivmm/in-transit`, and a card on a stream socket that continues with the bytes of its first card: the guest
//! must receive the frames that a naive reader of the socket would receive, and the peer the unsent bytes.
//!
//! ```text
//! length of the section (3 bytes) | section | bytes that the peer sends
//! ```

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use minivmm::devices::virtio::net::{self, Backend, Stream};
use minivmm::migration::in_transit::InTransit;
use vmstate::Section;
use vmstate::codec::{Limits, Reader, Strictness};

use crate::rollback::Rollback;

/// Limit on what the section's fields may allocate.
const LIMITS: Limits = Limits::new(4 << 20);
/// Lengths of frames: an Ethernet header, and a packet of 64 KiB with a VLAN tag.
const FRAME: std::ops::RangeInclusive<usize> = 14..=18 + 65536;
/// Header of virtio-net in front of a frame.
const HEADER: usize = 12;
/// More unsent bytes than one frame of a guest can become.
const UNSENT: usize = 2 << 20;
/// Most bytes that the peer sends: each kernel's socket takes them at once.
const PEER_MAX: usize = 32 << 10;

pub(super) fn run(input: &[u8]) {
    let Some((len, rest)) = input.split_first_chunk::<3>() else { return };
    let len = len.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let (section, from_peer) = rest.split_at(len.min(rest.len()));
    let mut loaded = InTransit::default();
    let mut reader = Reader::new(section, 0, Strictness::Strict, LIMITS);
    if Rollback::new(&mut loaded).load(&mut reader, 1).is_ok()
        && let Some(card) = loaded.cards.into_iter().next()
    {
        assert!(card.unsent.len() < UNSENT, "{} unsent bytes were accepted", card.unsent.len());
        take_over(card, &from_peer[..from_peer.len().min(PEER_MAX)]);
    }
}

fn take_over(card: net::InTransit, from_peer: &[u8]) {
    let (ours, mut peer) = UnixStream::pair().expect("sockets");
    ours.set_nonblocking(true).and_then(|()| peer.set_nonblocking(true)).expect("sockets that do not block");
    let ours = OwnedFd::from(ours);
    let inode = std::fs::File::from(ours.try_clone().expect("a descriptor")).metadata().expect("a socket").ino();
    let continues = card.socket != 0;
    let stream = Stream::continuing(Path::new("/nonexistent"), ours).expect("a connection");
    let (received, unsent) = (card.received.clone(), card.unsent.clone());
    stream.take_over(net::InTransit { socket: if continues { inode } else { 0 }, ..card });
    assert_eq!(stream.is_up(), continues, "a connection that the source has lost was continued");
    if !continues {
        return;
    }
    let mut sent = Vec::new();
    while stream.wait().is_some() {
        assert!(sent.len() < unsent.len(), "more is sent than was unsent");
        // The peer takes what there is.
        let _ = peer.read_to_end(&mut sent);
    }
    let _ = peer.read_to_end(&mut sent);
    assert!(sent == unsent, "{} bytes were sent of {}", sent.len(), unsent.len());
    peer.write_all(from_peer).expect("room for what the peer sends");
    let mut frame = vec![0; HEADER + FRAME.end()];
    let mut rest: &[u8] = &[received, from_peer.to_vec()].concat();
    while let Some(expected) = next_frame(&mut rest) {
        let len = stream.receive(&mut frame).expect("a frame");
        assert!(&frame[HEADER..len] == expected, "a frame of {len} bytes differs");
    }
    stream.receive(&mut frame).expect_err("no frame is complete");
    let invalid = rest.first_chunk().is_some_and(|len| !FRAME.contains(&(u32::from_be_bytes(*len) as usize)));
    assert_eq!(stream.is_up(), !invalid, "the connection after the last frame");
}

/// The next frame with its length in four bytes, if it is complete and valid.
fn next_frame<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let len = Some(u32::from_be_bytes(*len) as usize).filter(|len| FRAME.contains(len))?;
    let (frame, rest) = rest.split_at_checked(len)?;
    *bytes = rest;
    Some(frame)
}
