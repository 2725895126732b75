//! The real transports: bytes through, timeouts, closed peers.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use vmstate::channel::{Channel, FileChannel, Listener, SocketChannel};

const LONG: Option<Duration> = Some(Duration::from_secs(20));

fn receive_all(channel: &mut SocketChannel, length: usize) -> Vec<u8> {
    let (mut all, mut part) = (Vec::new(), vec![0; 1 << 16]);
    while all.len() < length {
        let count = channel.receive(&mut part, LONG).unwrap();
        assert!(count > 0, "closed after {} bytes", all.len());
        all.extend_from_slice(&part[..count]);
    }
    all
}

fn exchange(mut here: SocketChannel, mut there: SocketChannel) {
    let mut part = [0; 16];
    let asked = Instant::now();
    assert_eq!(here.receive(&mut part, Some(Duration::ZERO)).unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(asked.elapsed() < Duration::from_secs(5), "a poll has waited");
    let short = Duration::from_millis(20);
    assert_eq!(here.receive(&mut part, Some(short)).unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(asked.elapsed() >= short);

    // More than any socket buffer holds, so that both sides must wait for each other.
    let sent: Vec<u8> = (0..8_u32 << 20).map(|at| (at % 251) as u8).collect();
    let received = thread::scope(|scope| {
        let receiving = scope.spawn(|| receive_all(&mut there, sent.len()));
        here.send(&sent).unwrap();
        receiving.join().unwrap()
    });
    assert!(received == sent);
    there.send(b"pong").unwrap();
    assert_eq!(receive_all(&mut here, 4), b"pong");
    there.send(b"last").unwrap();
    drop(there);
    assert_eq!(receive_all(&mut here, 4), b"last");
    assert_eq!(here.receive(&mut part, LONG).unwrap(), 0);
}

#[test]
fn unix() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = Listener::unix(&path).unwrap();
    assert_eq!(listener.accept(Some(Duration::from_millis(10))).unwrap_err().kind(), io::ErrorKind::TimedOut);
    let here = SocketChannel::connect_unix(&path).unwrap();
    exchange(here, listener.accept(LONG).unwrap());
    assert!(path.exists());
    drop(listener);
    assert!(!path.exists());
    assert!(SocketChannel::connect_unix(&path).is_err());
}

#[test]
fn tcp() {
    let listener = Listener::tcp("127.0.0.1:0").unwrap();
    let here = SocketChannel::connect_tcp(listener.tcp_address().unwrap(), Duration::from_secs(20)).unwrap();
    exchange(here, listener.accept(LONG).unwrap());
}

#[test]
fn file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    let mut out = FileChannel::create(&path).unwrap();
    out.send(b"one").unwrap();
    out.send(b"two").unwrap();
    out.sync().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"onetwo");
    assert!(FileChannel::create(&path).is_err(), "an existing file is kept");
    let mut part = [0; 16];
    assert_eq!(FileChannel::open(&path).unwrap().receive(&mut part, None).unwrap(), 6);
}

#[test]
fn only_its_user_may_connect_to_a_unix_listener() {
    use std::os::unix::fs::MetadataExt;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("door");
    let listener = Listener::unix(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert!(Listener::unix(&path).is_err(), "somebody listens there");
    drop(listener);
    assert!(!path.exists());
}
