//! The real transports: transfers, timeouts, closed peers.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::ends::{self, LONG, receive_all, send_all};
use vmstate::channel::{Channel, FileChannel, Listener, SocketChannel};

/// Enough attempts to hit the moment between two system calls.
const SOURCES: u32 = 5000;

fn exchange(mut here: SocketChannel, there: SocketChannel) {
    let mut part = [0; 16];
    let asked = Instant::now();
    assert_eq!(here.receive(&mut part, Duration::ZERO).unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(asked.elapsed() < Duration::from_secs(5), "a poll has waited");
    let short = Duration::from_millis(20);
    assert_eq!(here.receive(&mut part, short).unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(asked.elapsed() >= short);

    // A timeout below a microsecond is not infinite.
    let moment = Duration::from_nanos(1);
    assert_eq!(here.receive(&mut part, moment).unwrap_err().kind(), io::ErrorKind::TimedOut);

    let sent: Vec<u8> = (0..8_u32 << 20).map(|at| (at % 251) as u8).collect();
    ends::exchange(&mut here, there, &sent);
}

/// The file of a killed process does not block the next one; a file in use, or one that is not a socket, is left alone.
#[test]
fn only_a_socket_without_listener_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("incoming");
    let killed = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let refused = || Listener::unix(&path).unwrap_err();
    assert_eq!(refused().kind(), io::ErrorKind::AddrInUse);
    drop(killed);
    assert!(path.exists(), "std leaves the file, as a killed process does");
    let listener = Listener::unix(&path).unwrap();
    SocketChannel::connect_unix(&path, LONG, &|| true).unwrap();
    assert_eq!(refused().kind(), io::ErrorKind::AddrInUse);
    drop(listener);
    assert!(!path.exists());

    std::fs::write(&path, "precious").unwrap();
    assert_eq!(refused().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

/// The listener's own file is removed, early or at the end; a file that another process has put there since is not.
#[test]
fn a_listener_removes_no_file_but_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("incoming");
    let listener = Listener::unix(&path).unwrap();
    listener.remove_file();
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    listener.remove_file();
    drop(listener);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");

    std::fs::remove_file(&path).unwrap();
    let first = Listener::unix(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = Listener::unix(&path).unwrap();
    drop(first);
    SocketChannel::connect_unix(&path, LONG, &|| true).unwrap();
    drop(second);
    assert!(!path.exists());
}

#[test]
fn unix() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = Listener::unix(&path).unwrap();
    assert_eq!(listener.accept(Duration::from_millis(10)).unwrap_err().kind(), io::ErrorKind::TimedOut);
    let here = SocketChannel::connect_unix(&path, LONG, &|| true).unwrap();
    exchange(here, listener.accept(LONG).unwrap());
    assert!(path.exists());
    drop(listener);
    assert!(!path.exists());
    assert!(SocketChannel::connect_unix(&path, LONG, &|| true).is_err());
}

#[test]
fn tcp() {
    let listener = Listener::tcp("127.0.0.1:0").unwrap();
    let here = SocketChannel::connect_tcp(&listener.tcp_address().unwrap().to_string(), LONG, &|| true).unwrap();
    exchange(here, listener.accept(LONG).unwrap());
}

/// With the kernel's vsock loopback (`vsock_loopback`); without it, only the error is checked.
#[test]
fn vsock() {
    const LOCAL: u32 = 1;
    match Listener::vsock(LOCAL, 50_000 + std::process::id() % 10_000) {
        Ok(listener) => {
            let port = 50_000 + std::process::id() % 10_000;
            let here = SocketChannel::connect_vsock(LOCAL, port, LONG, &|| true).unwrap();
            exchange(here, listener.accept(LONG).unwrap());
        }
        Err(_) => {
            let begun = Instant::now();
            assert!(SocketChannel::connect_vsock(LOCAL, 50_000, LONG, &|| true).is_err());
            assert!(begun.elapsed() < LONG, "it waited for nobody");
        }
    }
}

#[test]
fn a_socket_that_is_connected_already() {
    let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    exchange(SocketChannel::connected(here).unwrap(), SocketChannel::connected(there).unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let here = std::net::TcpStream::connect(address).unwrap();
    let there = listener.accept().unwrap().0;
    exchange(SocketChannel::connected(here).unwrap(), SocketChannel::connected(there).unwrap());
    let refused = |socket: std::os::fd::OwnedFd| SocketChannel::connected(socket).unwrap_err().to_string();
    assert_eq!(refused(listener.into()), "it is a socket that listens");
    assert_eq!(refused(std::fs::File::open("/dev/null").unwrap().into()), "it is no socket");
}

/// A pipe without a reader: a send writes what fits, and then reports a timeout, as a receive does.
#[test]
fn a_pipe_that_does_not_block_is_waited_for() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (input, out) = std::io::pipe().unwrap();
    let channel = |pipe: std::os::fd::OwnedFd| {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        FileChannel::from(std::fs::File::from(pipe))
    };
    let (mut input, mut out) = (channel(input.into()), channel(out.into()));
    let short = Duration::from_millis(10);
    assert_eq!(input.receive(&mut [0; 8], short).unwrap_err().kind(), io::ErrorKind::TimedOut);
    let sent: usize = std::iter::from_fn(|| out.send(&[7; 1 << 16], short).ok()).sum();
    assert_eq!(out.send(&[7], short).unwrap_err().kind(), io::ErrorKind::TimedOut);
    out.sync().unwrap();
    let mut received = 0;
    while received < sent {
        received += input.receive(&mut [0; 1 << 16], short).unwrap();
    }
    assert_eq!(input.receive(&mut [0; 8], short).unwrap_err().kind(), io::ErrorKind::TimedOut);
}

/// A socket as systemd passes it: another process has created it, has it open as well, and keeps its file.
#[test]
fn a_socket_that_listens_already_takes_sources_and_keeps_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let made = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let listener = Listener::listening(made.try_clone().unwrap()).unwrap();
    let here = SocketChannel::connect_unix(&path, LONG, &|| true).unwrap();
    exchange(here, listener.accept(LONG).unwrap());
    listener.remove_file();
    drop(listener);
    SocketChannel::connect_unix(&path, LONG, &|| true).expect("who made it still listens");

    let made = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = made.local_addr().unwrap().to_string();
    let listener = Listener::listening(made).unwrap();
    assert_eq!(listener.accept(Duration::from_millis(10)).unwrap_err().kind(), io::ErrorKind::TimedOut);
    let here = SocketChannel::connect_tcp(&address, LONG, &|| true).unwrap();
    exchange(here, listener.accept(LONG).unwrap());
}

#[test]
fn what_does_not_listen_is_no_listener() {
    let refused = |socket: std::os::fd::OwnedFd| {
        let error = Listener::listening(socket).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        error.to_string()
    };
    let (pair, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert_eq!(refused(pair.into()), "it is a socket that does not listen");
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(refused(datagrams.into()), "it is no stream socket of unix, TCP or vsock");
    assert_eq!(refused(std::fs::File::open("/dev/null").unwrap().into()), "it is no socket");
}

#[test]
fn file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    let mut out = FileChannel::create(&path).unwrap();
    out.send(b"one", LONG).unwrap();
    out.send(b"two", LONG).unwrap();
    out.sync().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"onetwo");
    assert!(FileChannel::create(&path).is_err(), "an existing file is kept");
    let mut part = [0; 16];
    assert_eq!(FileChannel::open(&path).unwrap().receive(&mut part, LONG).unwrap(), 6);
}

#[test]
fn only_its_user_may_connect_to_a_unix_listener() {
    use std::os::unix::fs::MetadataExt;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("incoming");
    let listener = Listener::unix(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert!(Listener::unix(&path).is_err(), "somebody listens there");
    drop(listener);
    assert!(!path.exists());
}

/// A peer that reads nothing: the socket buffer fills up, then the timeout applies.
#[test]
fn a_peer_that_reads_nothing_does_not_block_a_send() {
    let listener = Listener::tcp("127.0.0.1:0").unwrap();
    let mut here = SocketChannel::connect_tcp(&listener.tcp_address().unwrap().to_string(), LONG, &|| true).unwrap();
    let _there = listener.accept(LONG).unwrap();
    let (bytes, short) = (vec![1; 1 << 20], Duration::from_millis(20));
    let error = (0..1000).find_map(|_| here.send(&bytes, short).err()).expect("a gigabyte fits no buffer");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

/// Connections up to the backlog succeed without an accept; the next one has to wait.
#[test]
fn a_full_backlog_delays_no_client_beyond_its_timeout() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut waiting = Vec::new();
    let begun = Instant::now();
    let error = loop {
        match SocketChannel::connect_unix(&path, Duration::from_millis(100), &|| true) {
            Ok(channel) => waiting.push(channel),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let asked = std::cell::Cell::new(0);
    let go_on = || asked.replace(asked.get() + 1) < 3;
    let error = SocketChannel::connect_unix(&path, LONG, &go_on).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    assert!(begun.elapsed() < LONG, "called off, and still waited");
    // Space again: the waiting client is connected.
    thread::scope(|scope| {
        let connecting = scope.spawn(|| SocketChannel::connect_unix(&path, LONG, &|| true));
        let _accepted = listener.accept().unwrap();
        connecting.join().unwrap().unwrap();
    });
}

#[test]
fn strays_do_not_end_the_wait_for_a_source() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("incoming");
    let listener = Listener::unix(&path).unwrap();
    let connect = || SocketChannel::connect_unix(&path, LONG, &|| true).unwrap();
    let _silent = connect();
    drop(connect());
    let mut rude = connect();
    send_all(&mut rude, b"GET / HTTP/1.1");
    let mut slow = connect();
    send_all(&mut slow, b"QE");
    let mut found = thread::scope(|scope| {
        let waiting = scope.spawn(|| listener.accept_source(&|| true));
        send_all(&mut slow, b"VM\0\0\0\x03");
        waiting.join().unwrap().unwrap()
    });
    assert_eq!(receive_all(&mut found, 8), b"QEVM\0\0\0\x03");
    let mut part = [0; 4];
    let end = rude.receive(&mut part, LONG).map_err(|error| error.kind());
    assert!(matches!(end, Ok(0) | Err(io::ErrorKind::ConnectionReset)), "the stray is kept: {end:?}");

    let asked = std::cell::Cell::new(0);
    let error = listener.accept_source(&|| asked.replace(asked.get() + 1) < 3).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
}

/// A source that resumes post-copy begins with a request for received pages, or at once with POSTCOPY_RESUME.
#[test]
fn a_source_that_resumes_is_recognised() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("incoming");
    let listener = Listener::unix(&path).unwrap();
    let connect = |bytes: &[u8]| {
        let mut source = SocketChannel::connect_unix(&path, LONG, &|| true).unwrap();
        send_all(&mut source, bytes);
        source
    };
    let asks = b"\x08\0\x0a\0\x04\x03low";
    let _others = [b"QEVM\0\0\0\x03".as_slice(), b"\x08\0", b"\x08\0\x03\0\0", b"GET / HTTP/1.1"].map(connect);
    let error = listener.accept_resuming(Duration::from_millis(10)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let _begins = [connect(asks), connect(b"\x08\0\x09\0\0")];
    for bytes in [asks.as_slice(), b"\x08\0\x09\0\0"] {
        let mut found = listener.accept_resuming(LONG).unwrap();
        assert_eq!(receive_all(&mut found, bytes.len()), bytes);
    }
    // A caller that waits for a new source does not get it.
    let mut new = listener.accept_source(&|| true).unwrap();
    assert_eq!(receive_all(&mut new, 8), b"QEVM\0\0\0\x03");
}

/// A source may send its first bytes at any moment, also between two polls of the listener.
#[test]
fn a_source_that_sends_while_it_is_peeked_at_is_not_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("incoming");
    let listener = Listener::unix(&path).unwrap();
    for attempt in 0..SOURCES {
        let deadline = Instant::now() + LONG;
        thread::scope(|scope| {
            let waiting = scope.spawn(|| listener.accept_source(&|| Instant::now() < deadline));
            let mut source = SocketChannel::connect_unix(&path, LONG, &|| true).unwrap();
            let begins = Instant::now() + Duration::from_nanos(200) * (attempt % 500);
            while Instant::now() < begins {}
            send_all(&mut source, b"QEVM\0\0\0\x03");
            waiting.join().unwrap().unwrap();
        });
    }
}
