//! Exchange between both ends of a connection: all bytes arrive, in pieces of any size.

use std::thread;
use std::time::Duration;

use vmstate::channel::Channel;

/// For events that follow soon, on a busy host, too.
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) fn receive_all(channel: &mut dyn Channel, length: usize) -> Vec<u8> {
    let (mut all, mut part) = (Vec::new(), vec![0; 1 << 16]);
    while all.len() < length {
        let count = channel.receive(&mut part, LONG).unwrap();
        assert!(count > 0, "closed after {} bytes", all.len());
        all.extend_from_slice(&part[..count]);
    }
    all
}

pub(crate) fn send_all(channel: &mut dyn Channel, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        bytes = &bytes[channel.send(bytes, LONG).unwrap()..];
    }
}

/// Sends `sent`, which is more than a socket's buffer holds, so that both sides must wait for each other; then an answer; and a
/// last message, after which the end is received.
pub(crate) fn exchange(here: &mut impl Channel, mut there: impl Channel + Send, sent: &[u8]) {
    let received = thread::scope(|scope| {
        let receiving = scope.spawn(|| receive_all(&mut there, sent.len()));
        send_all(here, sent);
        receiving.join().unwrap()
    });
    assert!(received == sent);
    send_all(&mut there, b"pong");
    assert_eq!(receive_all(here, 4), b"pong");
    send_all(&mut there, b"last");
    drop(there);
    assert_eq!(receive_all(here, 4), b"last");
    assert_eq!(here.receive(&mut [0; 16], LONG).unwrap(), 0);
}
