//! Faulty certificates on either side: neither side receives a byte of the other's stream, and both report the reason.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::*;

/// The messages: the server's about the refused client, and the client's about its refusal.
struct Said {
    server: String,
    client: String,
}

/// A client that tries to send a stream to a waiting listener, followed by a valid client.
fn try_to_connect(
    dir: &Path,
    listener: Listener<Option<TlsServer>>,
    client: impl FnOnce(SocketChannel) -> io::Result<()> + Send,
) -> Said {
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&told);
    let listener = listener.on_refusal(move |error| log.lock().unwrap().push(error.to_string()));
    let path = dir.join("incoming");
    let over = &AtomicBool::new(false);
    let said = thread::scope(|scope| {
        let client = scope.spawn(move || {
            let socket = SocketChannel::connect_unix(path, LONG, &|| true).unwrap();
            let error = client(socket).unwrap_err().to_string();
            over.store(true, Ordering::SeqCst);
            error
        });
        // The listener continues to wait until both sides have reported the reason.
        let waits = || !over.load(Ordering::SeqCst) || told.lock().unwrap().is_empty();
        let ended = listener.accept_source(&waits).expect_err("a stream came in");
        assert_eq!(ended.kind(), io::ErrorKind::ConnectionAborted, "{ended}");
        client.join().unwrap()
    });
    let told = told.lock().unwrap().join("; ");
    Said { server: told, client: said }
}

/// Sends the beginning of a stream, and waits for an answer.
fn begin(mut channel: impl Channel) -> io::Result<()> {
    channel.send(b"QEVM", LONG)?;
    match channel.receive(&mut [0; 64], LONG)? {
        0 => Err(io::Error::other("closed")),
        _ => Ok(()),
    }
}

fn enter(dir: &Path, server: &TlsOptions, client: &TlsOptions) -> Said {
    let (server, client) = both(server, client);
    let listener = Listener::unix(dir.join("incoming")).unwrap().with_tls(server);
    try_to_connect(dir, listener, move |socket| begin(TlsChannel::client(socket, &client, HOST)?))
}

#[test]
fn each_flaw_of_a_clients_certificate_is_named_on_both_sides() {
    for (flaw, server, client) in [
        (Flaw::Missing, "the client has no certificate, and one is required", "has no certificate"),
        (Flaw::Expired, "the client's certificate has expired", "has expired"),
        (Flaw::Early, "the client's certificate is not valid yet", "not valid yet"),
        (Flaw::Unknown, "the client's certificate is not signed by", "authority that it names"),
        (Flaw::Purpose, "the client's certificate is not for a TLS client", "for this purpose"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let server_options = authority.write(&dir.path().join("server"), "server", Flaw::None);
        let comes = authority.write(&dir.path().join("client"), "client", flaw);
        let said = enter(dir.path(), &server_options, &comes);
        assert!(said.server.contains(server), "{flaw:?}: {}", said.server);
        assert!(said.client.contains(client), "{flaw:?}: {}", said.client);
    }
}

#[test]
fn each_flaw_of_a_servers_certificate_is_named_on_both_sides() {
    for (flaw, client, server) in [
        (Flaw::Expired, "the server's certificate has expired", "has expired"),
        (Flaw::Early, "the server's certificate is not valid yet", "not valid yet"),
        (Flaw::Unknown, "the server's certificate is not signed by", "authority that it names"),
        (Flaw::Purpose, "the server's certificate is not for a TLS server", "for this purpose"),
        (Flaw::Name, "is for elsewhere.example, not for there.example; give tls-hostname", "another host"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let server_options = authority.write(&dir.path().join("server"), "server", flaw);
        let comes = authority.write(&dir.path().join("client"), "client", Flaw::None);
        let said = enter(dir.path(), &server_options, &comes);
        assert!(said.client.contains(client), "{flaw:?}: {}", said.client);
        assert!(said.server.contains(server), "{flaw:?}: {}", said.server);
    }
}

#[test]
fn revoked_unauthorized_and_unpinned_certificates_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let server_options = authority.write(&dir.path().join("server"), "server", Flaw::None);
    let comes = authority.write(&dir.path().join("client"), "client", Flaw::None);

    let mut chosen = server_options.clone();
    chosen.authorized = vec!["CN=somebody".into(), "CN=client".into()];
    let said = enter(dir.path(), &chosen, &comes);
    assert!(
        said.server.contains(r"the client is 'O=Guests\, moved,CN=client', which is not one of tls-authz"),
        "{}",
        said.server
    );
    assert!(said.client.contains("not accepted"), "{}", said.client);

    let mut pinned = server_options.clone();
    pinned.pins = vec![fingerprint(&server_options.directory.join("server-cert.pem"))];
    let said = enter(dir.path(), &pinned, &comes);
    let other = fingerprint(&comes.directory.join("client-cert.pem"));
    assert!(said.server.contains(&format!("is not one of tls-pin; its SHA-256 is {other}")), "{}", said.server);

    authority.revoke(&server_options.directory);
    let said = enter(dir.path(), &server_options, &comes);
    assert!(said.server.contains("the client's certificate has been revoked"), "{}", said.server);
    assert!(said.client.contains("has been revoked"), "{}", said.client);
}

/// As RFC 4514 writes the name, and as GnuTLS does.
#[test]
fn an_authorized_client_is_accepted_by_its_name_in_either_order() {
    for name in [r"CN=client,O=Guests\, moved", r"O=Guests\, moved, CN=client"] {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let mut server_options = authority.write(&dir.path().join("server"), "server", Flaw::None);
        let comes = authority.write(&dir.path().join("client"), "client", Flaw::None);
        server_options.authorized = vec![name.into()];
        let (server, client) = both(&server_options, &comes);
        let (here, there) = pair();
        let mut client = TlsChannel::client(here, &client, HOST).unwrap();
        let mut server = TlsChannel::server(there, &server).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| send_all(&mut client, b"welcome"));
            assert_eq!(receive_all(&mut server, 7), b"welcome");
        });
    }
}

#[test]
fn peers_with_and_without_tls_are_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = trusted(dir.path());
    let listener = || Listener::unix(dir.path().join("incoming")).unwrap();
    for (first, what) in [
        (b"QEVM", "a stream that is not encrypted"),
        (b"\x11\x22\x33\x44", "a page channel"),
        (b"GET ", "does not speak TLS"),
    ] {
        let said = try_to_connect(dir.path(), listener().with_tls(server.clone()), move |mut socket| {
            socket.send(first, LONG)?;
            // The alert, and the end of the connection.
            while socket.receive(&mut [0; 64], LONG)? > 0 {}
            Err(io::Error::other("closed"))
        });
        assert!(said.server.contains(what), "{}", said.server);
    }
    let said = try_to_connect(dir.path(), listener().with_tls(None::<TlsServer>), move |socket| {
        begin(TlsChannel::client(socket, &client, HOST)?)
    });
    assert!(said.server.contains("it speaks TLS, but this side was given no tls-creds"), "{}", said.server);
    assert!(said.client.contains("may not have been told to speak TLS (tls-creds)"), "{}", said.client);
}

#[test]
fn files_that_are_missing_or_wrong_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let options = authority.write(dir.path(), "server", Flaw::None);
    let refusal = |options: &TlsOptions| TlsServer::new(options).unwrap_err().to_string();
    std::fs::rename(dir.path().join("server-key.pem"), dir.path().join("key")).unwrap();
    assert!(refusal(&options).contains("server-key.pem: No such file"), "{}", refusal(&options));
    let other = alone(&dir.path().join("other"), "server");
    std::fs::copy(other.directory.join("server-key.pem"), dir.path().join("server-key.pem")).unwrap();
    assert!(refusal(&options).contains("server-cert.pem: "), "{}", refusal(&options));
    std::fs::write(dir.path().join("ca-cert.pem"), "nothing").unwrap();
    assert!(refusal(&options).contains("ca-cert.pem: it has no certificate"), "{}", refusal(&options));
    nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::rename(dir.path().join("fifo"), dir.path().join("ca-cert.pem")).unwrap();
    assert!(refusal(&options).contains("ca-cert.pem: it is no regular file"), "{}", refusal(&options));
    let error = TlsClient::new(&options).unwrap_err().to_string();
    assert!(error.contains("ca-cert.pem"), "{error}");
}
