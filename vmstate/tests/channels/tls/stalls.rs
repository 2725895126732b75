//! Peers that stop within the handshake, or send what no handshake contains: no other peer is delayed, and no buffer grows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// The server stays silent, then closes.
#[test]
fn a_client_gives_up_a_silent_server() {
    let dir = tempfile::tempdir().unwrap();
    let (_, client) = trusted(dir.path());
    let (here, there) = pair();
    let mut channel = TlsChannel::client(here, &client, HOST).unwrap();
    let begun = Instant::now();
    let short = Duration::from_millis(50);
    assert_eq!(channel.handshake(short).unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(begun.elapsed() >= short);
    assert_eq!(channel.send(b"QEVM", Duration::ZERO).unwrap_err().kind(), io::ErrorKind::TimedOut);
    drop(there);
    let error = channel.handshake(LONG).unwrap_err();
    assert!(error.to_string().contains("closed the connection within the handshake"), "{error}");
}

/// A client that stops after each byte of its first message is polled again and again, and the next client is accepted meanwhile.
#[test]
fn clients_that_stall_do_not_exclude_others() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = trusted(dir.path());
    let path = dir.path().join("incoming");
    let listener = Listener::unix(&path).unwrap().with_tls(server);
    let connect = || SocketChannel::connect_unix(&path, LONG, &|| true).unwrap();
    // The beginning of a ClientHello: a handshake record, a version, and a length that is never complete.
    let hello = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let stalled: Vec<_> = (0..hello.len())
        .map(|count| {
            let mut socket = connect();
            send_all(&mut socket, &hello[..count]);
            socket
        })
        .collect();
    let comes = thread::spawn({
        let socket = connect();
        move || {
            let mut channel = TlsChannel::client(socket, &client, HOST).unwrap();
            send_all(&mut channel, b"QEVM");
            channel
        }
    });
    let mut accepted = listener.accept_source(&|| true).unwrap();
    assert_eq!(receive_all(&mut accepted, 4), b"QEVM");
    drop((comes.join().unwrap(), stalled));
}

/// A record may have 2^14 + 256 bytes (RFC 8446, section 5.2).
#[test]
fn a_record_that_is_too_long_ends_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = trusted(dir.path());
    let (mut here, there) = pair();
    let mut channel = TlsChannel::server(there, &server).unwrap();
    send_all(&mut here, &[22, 3, 1, 0xff, 0xff]);
    let error = channel.handshake(LONG).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
}

/// A channel that, once armed, changes a bit of the received data.
struct Damaging(SocketChannel, Arc<AtomicBool>);

impl Channel for Damaging {
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        self.0.send(bytes, timeout)
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        let count = self.0.receive(into, timeout)?;
        if self.1.load(Ordering::SeqCst) {
            into[count - 1] ^= 1;
        }
        Ok(count)
    }
}

#[test]
fn a_bit_that_is_changed_on_the_way_ends_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = trusted(dir.path());
    let (here, there) = pair();
    let damage = Arc::new(AtomicBool::new(false));
    let mut client = TlsChannel::client(here, &client, HOST).unwrap();
    let mut server = TlsChannel::server(Damaging(there, Arc::clone(&damage)), &server).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| send_all(&mut client, b"whole"));
        assert_eq!(receive_all(&mut server, 5), b"whole");
    });
    damage.store(true, Ordering::SeqCst);
    send_all(&mut client, b"changed");
    let error = server.receive(&mut [0; 8], LONG).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    let error = client.receive(&mut [0; 8], LONG).unwrap_err();
    assert!(error.to_string().contains("BadRecordMac"), "{error}");
}
