//! TLS as a channel: transfers, timeouts, ends, and the message of each refusal.

mod certificates;
mod refusals;
mod stalls;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use vmstate::channel::tls::{Connection, Fingerprint, TlsChannel, TlsClient, TlsOptions, TlsServer};
use vmstate::channel::{Channel, Listener, SocketChannel};

use crate::ends::{LONG, exchange, receive_all, send_all};
use certificates::{Authority, Flaw, alone};

const HOST: &str = "there.example";

fn both(server: &TlsOptions, client: &TlsOptions) -> (TlsServer, TlsClient) {
    (TlsServer::new(server).unwrap(), TlsClient::new(client).unwrap())
}

/// A server and a client that trust each other, with their files in `dir`.
fn trusted(dir: &Path) -> (TlsServer, TlsClient) {
    let authority = Authority::new();
    let server = authority.write(&dir.join("server"), "server", Flaw::None);
    let client = authority.write(&dir.join("client"), "client", Flaw::None);
    both(&server, &client)
}

/// Two ends of a connection.
fn pair() -> (SocketChannel, SocketChannel) {
    let (here, there) = UnixStream::pair().unwrap();
    (here.try_into().unwrap(), there.try_into().unwrap())
}

type Tls = TlsChannel<SocketChannel>;

/// Both ends, after the handshake.
fn connected(dir: &Path) -> (Tls, Tls) {
    let (server, client) = trusted(dir);
    let (here, there) = pair();
    let mut client = TlsChannel::client(here, &client, HOST).unwrap();
    let mut server = TlsChannel::server(there, &server).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| client.handshake(LONG).unwrap());
        server.handshake(LONG).unwrap();
    });
    (client, server)
}

fn noise(len: u32) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(2_654_435_761) >> 16) as u8).collect()
}

#[test]
fn bytes_go_both_ways_and_the_end_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let (mut here, there) = connected(dir.path());
    let mut part = [0; 16];
    let asked = Instant::now();
    let short = Duration::from_millis(20);
    assert_eq!(here.receive(&mut part, Duration::ZERO).unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(here.receive(&mut part, short).unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(asked.elapsed() >= short);
    exchange(&mut here, there, &noise(4 << 20));
}

/// The bytes that one side accepts while its peer does not read are bounded, and none of them is lost or duplicated.
#[test]
fn a_send_that_times_out_is_continued() {
    let dir = tempfile::tempdir().unwrap();
    let (mut here, mut there) = connected(dir.path());
    let sent = noise(8 << 20);
    let mut done = 0;
    while done < sent.len() {
        match here.send(&sent[done..], Duration::ZERO) {
            Ok(count) => done += count,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                break;
            }
        }
    }
    assert!(done < sent.len(), "a socket that nobody reads has taken 8 MiB");
    let received = thread::scope(|scope| {
        let receiving = scope.spawn(|| receive_all(&mut there, sent.len()));
        send_all(&mut here, &sent[done..]);
        receiving.join().unwrap()
    });
    assert!(received == sent);
}

/// If an attacker cuts the connection, the stream is known to be incomplete.
#[test]
fn an_end_without_close_notify_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = trusted(dir.path());
    let (here, relay_here) = pair();
    let (there, relay_there) = pair();
    let mut relays = [relay_here, relay_there];
    let mut client = TlsChannel::client(here, &client, HOST).unwrap();
    let mut server = TlsChannel::server(there, &server).unwrap();
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            send_all(&mut client, b"whole");
            client
        });
        let server = scope.spawn(|| {
            assert_eq!(receive_all(&mut server, 5), b"whole");
            server
        });
        let mut part = [0; 4096];
        while !(client.is_finished() && server.is_finished()) {
            let [one, other] = &mut relays;
            if let Ok(count) = one.receive(&mut part, Duration::from_millis(1)) {
                send_all(other, &part[..count]);
            }
            if let Ok(count) = other.receive(&mut part, Duration::from_millis(1)) {
                send_all(one, &part[..count]);
            }
        }
        drop(relays);
        let error = server.join().unwrap().receive(&mut part, LONG).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
        drop(client.join().unwrap());
    });
}

/// Two hosts without an authority: each has the other's fingerprint.
#[test]
fn pinned_certificates_need_no_authority_and_no_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = alone(&dir.path().join("server"), "server");
    let mut client = alone(&dir.path().join("client"), "client");
    server.pins = vec![fingerprint(&client.directory.join("client-cert.pem"))];
    client.pins = vec![fingerprint(&server.directory.join("server-cert.pem"))];
    let (server, client) = both(&server, &client);
    let (here, there) = pair();
    let mut client = TlsChannel::client(here, &client, "").unwrap();
    let mut server = TlsChannel::server(there, &server).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| send_all(&mut client, b"pinned"));
        assert_eq!(receive_all(&mut server, 6), b"pinned");
    });
}

/// The fingerprint, as the tools on every host calculate it.
fn fingerprint(certificate: &Path) -> Fingerprint {
    let command = format!("grep -v -e ----- '{}' | base64 -d | sha256sum", certificate.display());
    let said = Command::new("sh").args(["-c", &command]).output().unwrap();
    String::from_utf8(said.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

/// Streams and page channels are recognised by their first decrypted bytes.
#[test]
fn a_listener_sorts_connections_by_their_first_decrypted_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = trusted(dir.path());
    let path = dir.path().join("incoming");
    let listener = Listener::unix(&path).unwrap().with_tls(server);
    let connect = |bytes: &'static [u8]| {
        let (path, client) = (path.clone(), client.clone());
        thread::spawn(move || {
            let socket = SocketChannel::connect_unix(path, LONG, &|| true).unwrap();
            let mut channel = TlsChannel::client(socket, &client, HOST).unwrap();
            for byte in bytes {
                send_all(&mut channel, &[*byte]);
            }
            channel
        })
    };
    let pages = connect(b"\x11\x22\x33\x44pages");
    let stream = connect(b"QEVMstream");
    let mut accepted: Connection = listener.accept_source(&|| true).unwrap();
    assert_eq!(receive_all(&mut accepted, 10), b"QEVMstream");
    let mut accepted = listener.accept_pages(&|| true).unwrap();
    assert_eq!(receive_all(&mut accepted, 9), b"\x11\x22\x33\x44pages");
    drop((pages.join().unwrap(), stream.join().unwrap()));
}
