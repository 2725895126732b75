//! Clients at the socket, well-behaved and misbehaving.

use std::io::{BufRead, BufReader, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use serde_json::{Value, json};
use vmstate::migrate::{Phase, SourcePhase};
use vmstate_lab::sleep_timer::SleepTimer;

use super::{TestClient, running};
use crate::config::Address;
use crate::control::{Client, ClientError, Server};
use crate::vm::{Event, Handle, Request, RunState};

/// Bound of a wait, enough for a busy host.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The machine gets the descriptor that the client passed: bytes written at the machine come out of the client's pipe.
#[test]
fn a_client_passes_descriptors_and_names_them() {
    let (handle, _shared, seen) = running();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let _server = Server::bind(&path, handle).unwrap();
    let (mut client, mut other) = (Client::connect(&path).unwrap(), Client::connect(&path).unwrap());
    let (mut input, out) = std::io::pipe().unwrap();
    client.pass("move", &out.into()).unwrap();
    let migrate = json!({"uri": "fd:move"});
    let said = |answer: Result<Value, ClientError>| answer.unwrap_err().to_string();
    let unknown = "File descriptor named 'move' has not been found";
    assert_eq!(said(other.execute("migrate", migrate.clone())), unknown, "a name belongs to its client");
    client.execute("migrate", migrate.clone()).unwrap();
    let Ok(Request::Migrate(Address::Descriptor { name, passed: Some(passed) }, _)) = seen.recv_timeout(TIMEOUT) else {
        panic!("no migration")
    };
    assert_eq!(name, "move");
    let mut theirs = std::fs::File::from(passed.duplicate().unwrap());
    theirs.write_all(b"guest").unwrap();
    drop((theirs, passed));
    let mut all = String::new();
    input.read_to_string(&mut all).unwrap();
    assert_eq!(all, "guest", "every copy of the descriptor is closed");

    assert_eq!(said(client.execute("migrate", migrate)), unknown, "a name is used once");
    let (input, out) = std::io::pipe().unwrap();
    client.pass("move", &out.into()).unwrap();
    client.execute("closefd", json!({"fdname": "move"})).unwrap();
    assert_eq!((&input).read(&mut [0]).unwrap(), 0, "closefd closes the descriptor");
    // Answer of a running QEMU 10.0.2.
    let digit = said(client.pass("7", &input.into()).map(|()| Value::Null));
    assert_eq!(digit, "Parameter 'fdname' expects a name not starting with a digit");
    assert_eq!(
        said(client.execute("getfd", json!({"fdname": "x"}))),
        "No file descriptor supplied via SCM_RIGHTS",
        "a descriptor is named once"
    );
}

/// Forty descriptors are sent and none is named; the pipe shows that the first one was closed.
#[test]
fn of_descriptors_without_a_name_the_oldest_go() {
    let (handle, _shared, _seen) = running();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let _server = Server::bind(&path, handle).unwrap();
    let peer = Peer::at_work(&path);
    let (mut first, out) = std::io::pipe().unwrap();
    let pass = |passed: &OwnedFd| {
        let rights = [passed.as_raw_fd()];
        let with = [ControlMessage::ScmRights(&rights)];
        let socket = peer.input.get_ref().as_raw_fd();
        sendmsg::<()>(socket, &[IoSlice::new(b" ")], &with, MsgFlags::empty(), None).unwrap();
    };
    pass(&out.into());
    let other = OwnedFd::from(std::io::pipe().unwrap().0);
    (0..40).for_each(|_| pass(&other));
    assert_eq!(first.read(&mut [0]).unwrap(), 0, "the oldest descriptor is closed");
}

struct Peer {
    input: BufReader<UnixStream>,
}

impl Peer {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut peer = Self { input: BufReader::new(stream) };
        assert!(peer.next().get("QMP").is_some());
        peer
    }

    /// Connects and negotiates.
    fn at_work(path: &Path) -> Self {
        let mut peer = Self::connect(path);
        peer.send("{\"execute\":\"qmp_capabilities\"}");
        assert_eq!(peer.next(), json!({"return": {}}));
        peer
    }

    /// Whether the server has closed the connection.
    fn is_closed(&mut self) -> bool {
        let mut line = String::new();
        self.input.read_line(&mut line).unwrap();
        line.is_empty()
    }

    fn send(&mut self, text: &str) {
        self.input.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.input.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line:?}"))
    }
}

#[test]
fn events_go_to_clients_that_negotiated_before_the_reply_that_caused_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let (handle, shared, _seen) = running();
    let server = Server::bind(&path, handle).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let (mut first, mut second, mut silent) = (Peer::connect(&path), Peer::connect(&path), Peer::connect(&path));
    for peer in [&mut first, &mut second] {
        peer.send("{\"execute\":\"qmp_capabilities\"}");
        assert_eq!(peer.next(), json!({"return": {}}));
    }
    first.send(r#"{"execute":"stop"}{"execute":"stop"}{"execute":"cont"}"#);
    let kinds: Vec<Value> = (0..5).map(|_| first.next()).collect();
    assert_eq!(kinds[0]["event"], "STOP");
    assert!(kinds[0]["timestamp"]["seconds"].as_u64().unwrap() > 1_700_000_000);
    assert!(kinds[0]["timestamp"]["microseconds"].as_u64().unwrap() < 1_000_000);
    assert_eq!(kinds[1..3], [json!({"return": {}}), json!({"return": {}})]);
    assert_eq!(kinds[3]["event"], "RESUME");
    assert_eq!((second.next()["event"].clone(), second.next()["event"].clone()), (json!("STOP"), json!("RESUME")));
    shared.update_migration(|info| info.phase = Phase::Source(SourcePhase::Setup));
    shared.update_migration(|info| info.figures.bytes = 1);
    for event in [Event::MigrationPass(2), Event::Reset { by_guest: true }, Event::PowerDown] {
        shared.notify(event);
    }
    shared.set_run_state(RunState::Shutdown);
    for peer in [&mut first, &mut second] {
        let event = peer.next();
        assert_eq!((&event["event"], &event["data"]), (&json!("MIGRATION"), &json!({"status": "setup"})));
        let event = peer.next();
        assert_eq!((&event["event"], &event["data"]), (&json!("MIGRATION_PASS"), &json!({"pass": 2})));
        let event = peer.next();
        assert_eq!(
            (&event["event"], &event["data"]),
            (&json!("RESET"), &json!({"guest": true, "reason": "guest-reset"}))
        );
        let event = peer.next();
        assert_eq!((&event["event"], event.get("data")), (&json!("POWERDOWN"), None));
        let event = peer.next();
        assert_eq!(event["event"], "SHUTDOWN");
        assert_eq!(event["data"], json!({"guest": true, "reason": "guest-shutdown"}));
    }
    second.send(r#"{"execute":"quit"}"#);
    assert_eq!(second.next()["data"], json!({"guest": false, "reason": "host-qmp-quit"}));
    assert_eq!(second.next(), json!({"return": {}}));
    drop(server);
    assert!(!path.exists());
    silent.send("");
    let mut rest = Vec::new();
    silent.input.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "a client that did not negotiate was told {rest:?}");
}

/// QEMU's `docs/interop/qmp-spec.rst`, "Out-of-band execution". No driver takes the requests, so `stop` is not answered.
#[test]
fn what_is_asked_out_of_band_overtakes_what_waits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let (handle, queue, _shared) = Handle::new(RunState::Running);
    let server = Server::bind(&path, handle).unwrap();
    let mut peer = Peer::connect(&path);
    peer.send(r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#);
    assert_eq!(peer.next(), json!({"return": {}}));
    peer.send(r#"{"execute":"stop","id":1}{"execute":"query-status","id":2}{"exec-oob":"migrate-pause","id":3}"#);
    assert_eq!(peer.next()["id"], 3, "the others wait for the driver, or for the one before");
    // The driver ends: the waiting commands are answered in order.
    drop(queue);
    assert_eq!((peer.next()["id"].clone(), peer.next()["id"].clone()), (json!(1), json!(2)));
    drop(server);
}

#[test]
fn queries_are_answered_while_the_driver_is_busy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    // No driver takes the requests.
    let (handle, queue, _shared) = Handle::new(RunState::Running);
    let server = Server::bind(&path, handle).unwrap();
    let (mut waiting, mut asking) = (Peer::connect(&path), Peer::connect(&path));
    for peer in [&mut waiting, &mut asking] {
        peer.send("{\"execute\":\"qmp_capabilities\"}");
        assert_eq!(peer.next(), json!({"return": {}}));
    }
    waiting.send(r#"{"execute":"stop"}"#);
    for command in ["query-status", "query-migrate", "query-commands", "query-version", "query-migrate-parameters"] {
        asking.send(&json!({"execute": command}).to_string());
        assert!(asking.next().get("return").is_some(), "{command}");
    }
    // The driver ends: waiting clients get an error, and the server can close.
    drop(queue);
    assert_eq!(waiting.next()["error"]["desc"], "the machine has ended");
    drop(server);
}

/// A new client replaces the one that was silent for longest, and first those that never negotiated.
#[test]
fn idle_clients_do_not_exclude_others() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let (handle, _shared, _seen) = running();
    let _server = Server::bind(&path, handle).unwrap();
    let mut monitor = Peer::at_work(&path);
    let mut silent: Vec<Peer> = (0..15).map(|_| Peer::connect(&path)).collect();
    let mut user = Peer::at_work(&path);
    assert!(silent[0].is_closed());
    for peer in [&mut monitor, &mut user] {
        peer.send(r#"{"execute":"query-status"}"#);
        assert_eq!(peer.next()["return"]["status"], "running");
    }
    // Clients that have negotiated take all places; one of them was silent for longest.
    let mut working: Vec<Peer> = (0..14).map(|_| Peer::at_work(&path)).collect();
    assert!(silent[1..].iter_mut().all(Peer::is_closed));
    monitor.send(r#"{"execute":"query-status"}"#);
    monitor.next();
    Peer::connect(&path);
    assert!(user.is_closed());
    for peer in working.iter_mut().chain([&mut monitor]) {
        peer.send(r#"{"execute":"query-status"}"#);
        assert_eq!(peer.next()["return"]["status"], "running");
    }
}

#[test]
fn a_client_that_waits_for_an_answer_is_never_closed_for_another_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    // No driver takes the requests.
    let (handle, queue, _shared) = Handle::new(RunState::Running);
    let _server = Server::bind(&path, handle.clone()).unwrap();
    let mut waiting: Vec<Peer> = (0..16).map(|_| Peer::at_work(&path)).collect();
    for peer in &mut waiting {
        peer.send(r#"{"execute":"stop"}"#);
    }
    let deadline = Instant::now() + TIMEOUT;
    while queue.len() < 16 {
        assert!(Instant::now() < deadline, "{} of 16 wait", queue.len());
        thread::sleep(Duration::from_millis(1));
    }
    let mut late = BufReader::new(UnixStream::connect(&path).unwrap());
    let mut greeting = String::new();
    assert_eq!(late.read_line(&mut greeting).unwrap(), 0, "{greeting}");
    drop(queue);
    for peer in &mut waiting {
        assert_eq!(peer.next()["error"]["desc"], "the machine has ended");
    }
}

/// The process ends even if its driver is stuck.
#[test]
fn the_server_closes_while_a_client_waits_for_a_driver_that_is_stuck() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    // No driver takes the requests, and none ends.
    let (handle, _queue, _shared) = Handle::new(RunState::Running);
    let server = Server::bind(&path, handle).unwrap();
    let mut waiting = Peer::connect(&path);
    waiting.send(r#"{"execute":"qmp_capabilities"}{"execute":"stop"}"#);
    assert_eq!(waiting.next(), json!({"return": {}}));
    let (closed, closes) = channel();
    thread::spawn(move || {
        drop(server);
        closed.send(()).unwrap();
    });
    closes.recv_timeout(TIMEOUT).unwrap();
    assert!(!path.exists());
}

/// The answer to `quit` does not wait for the driver.
#[test]
fn quit_is_answered_while_the_driver_is_stuck() {
    let (handle, _queue, _shared) = Handle::new(RunState::Running);
    let mut test_client = TestClient::negotiated(&handle);
    assert_eq!(test_client.send(br#"{"execute":"quit"}"#), [json!({"return": {}})]);
}

#[test]
fn a_client_that_does_not_read_is_cut_off_and_never_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let (handle, shared, _seen) = running();
    let server = Server::bind(&path, handle).unwrap();
    let mut deaf = Peer::connect(&path);
    deaf.send("{\"execute\":\"qmp_capabilities\"}");
    assert_eq!(deaf.next(), json!({"return": {}}));
    let timer = SleepTimer::start();
    for round in 0..20_000 {
        shared.set_run_state(if round % 2 == 0 { RunState::Paused } else { RunState::Running });
    }
    let waited = timer.elapsed();
    assert!(waited < Duration::from_secs(1), "publishing waited {waited:?}");
    // The client reads what the kernel had buffered, then the end of the connection.
    let mut rest = Vec::new();
    let events = match deaf.input.read_to_end(&mut rest) {
        Ok(_) | Err(_) => rest.iter().filter(|&&byte| byte == b'\n').count(),
    };
    assert!(events < 20_000, "the client was not disconnected");
    drop(server);
}

/// The connection is closed when an answer cannot be written within the write timeout, and the client's threads end.
#[test]
fn a_client_that_reads_no_answer_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let (handle, _shared, _seen) = running();
    let _server = Server::bind(&path, handle).unwrap();
    let mut deaf = Peer::at_work(&path);
    let stream = deaf.input.get_mut();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    let cut = (0..1 << 20).find_map(|_| stream.write_all(br#"{"execute":"query-commands"}"#).err());
    assert_eq!(cut.map(|error| error.kind()), Some(ErrorKind::BrokenPipe));
}

/// Connects, or fails if that would have to wait.
fn connect_at_once(path: &Path) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let client = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(client.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(client)
}

#[test]
fn only_a_dead_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let bind = || Server::bind(&path, Handle::new(RunState::Running).0);
    let sentence = |end: &str| format!("--control {}: {end}", path.display());

    std::fs::write(&path, "precious").unwrap();
    assert_eq!(
        bind().unwrap_err().to_string(),
        sentence("the file exists and is no socket; remove it or choose another path")
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();

    let living = UnixListener::bind(&path).unwrap();
    assert_eq!(
        bind().unwrap_err().to_string(),
        sentence("another process listens there; end it or choose another path")
    );
    // The check does not wait for a listener that accepts no connection.
    let mut queue = Vec::new();
    while let Ok(client) = connect_at_once(&path) {
        queue.push(client);
    }
    assert!(bind().unwrap_err().to_string().contains("another process listens there"));
    drop((living, queue));
    assert!(path.exists(), "std leaves the file, as a killed process does");
    let server = bind().unwrap();
    Peer::connect(&path);

    // The server removes no file but its own.
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists());
    drop(other);
}

#[test]
fn the_client_works_with_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let gone = Client::connect(&path).unwrap_err();
    assert_eq!(
        gone.to_string(),
        format!(
            "--control unix:{}: No such file or directory (os error 2); give the path that the machine was started with",
            path.display()
        )
    );
    let (handle, shared, _seen) = running();
    let server = Server::bind(&path, handle).unwrap();
    let mut client = Client::connect(&path).unwrap();
    shared.update_migration(|info| info.phase = Phase::Source(SourcePhase::Completed));
    assert_eq!(client.execute("query-status", json!({})).unwrap(), json!({"status": "running", "running": true}));
    assert_eq!(client.migration_status(), Some("completed"));
    match client.execute("migrate", json!({"uri": "tcp:far:1"})) {
        Err(ClientError::Refused(reason)) => assert_eq!(reason, "a migration is running already"),
        other => panic!("{other:?}"),
    }
    drop(server);
    assert!(matches!(client.execute("stop", json!({})), Err(ClientError::Closed | ClientError::Io(_))));
}

/// Only the client makes progress: the driver never ends a request, another client waits for the driver, and the receiver of an
/// event does not take it. The client's queries about the migration are answered all the same.
#[test]
fn queries_do_not_wait_for_the_driver() {
    let (handle, queue, shared) = Handle::new(RunState::Running);
    shared.update_migration(|info| info.phase = Phase::Source(SourcePhase::Rounds));
    let waiting = handle.clone();
    thread::spawn(move || waiting.ask(Request::Stop));
    let (told, tells) = channel();
    let (_go_on, never) = channel::<()>();
    handle.subscribe(move |_| {
        told.send(()).unwrap();
        never.recv().is_ok()
    });
    let (asked, answered) = channel();
    thread::spawn(move || shared.notify(Event::PowerDown));
    tells.recv_timeout(TIMEOUT).unwrap();
    thread::spawn(move || {
        let mut test_client = TestClient::negotiated(&handle);
        for query in ["", "-rounds", "-sections", "-heat", "-parameters", "-capabilities"] {
            let answer = test_client.send(format!(r#"{{"execute":"query-migrate{query}"}}"#).as_bytes());
            asked.send(answer[0]["return"].is_null()).unwrap();
        }
    });
    for _ in 0..6 {
        assert!(!answered.recv_timeout(TIMEOUT).expect("an answer while all others wait"));
    }
    drop(queue);
}
