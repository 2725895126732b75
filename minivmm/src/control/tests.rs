//! The control socket against a driver that is only a thread: QEMU's own answers as the golden ones, and clients that
//! misbehave.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmstate::migrate::{Downtime, Phase, SourcePhase};

use crate::config::Address;
use crate::control::{Client, ClientError, CommandTooLong, Server, Session};
use crate::vm::{AnyRequest, Handle, Next, ParameterChange, Queue, Refusal, Request, RunState, Shared};

/// Answers requests as the real driver does, and reports them; ends at `Quit`.
fn driver(mut queue: Queue, shared: Arc<Shared>, seen: Sender<Request>) -> JoinHandle<()> {
    thread::spawn(move || {
        while let Next::Asked((AnyRequest::User(request), answer)) = queue.next(&|| None) {
            let result = match &request {
                Request::Stop => {
                    shared.set_run_state(RunState::Paused);
                    Ok(())
                }
                Request::Cont => {
                    shared.set_run_state(RunState::Running);
                    Ok(())
                }
                Request::Migrate(Address::Tcp(_)) => Err(Refusal("a migration is running already".into())),
                _ => Ok(()),
            };
            let _ = seen.send(request.clone());
            let _ = answer.send(result);
            if request == Request::Quit {
                return;
            }
        }
    })
}

fn running() -> (Handle, Arc<Shared>, Receiver<Request>) {
    let (handle, queue, shared) = Handle::new(RunState::Running);
    let (seen, requests_seen) = channel();
    driver(queue, Arc::clone(&shared), seen);
    (handle, shared, requests_seen)
}

/// Everything the session says to `input`, as JSON values.
fn say(session: &mut Session, input: &[u8]) -> Vec<Value> {
    let mut output = Vec::new();
    session.receive(input, |_, reply| output.extend_from_slice(&reply)).unwrap();
    let text = String::from_utf8(output).unwrap();
    assert!(text.is_empty() || text.ends_with("\r\n"), "{text:?}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn negotiated(handle: &Handle) -> Session {
    let mut session = Session::new(handle.clone());
    assert_eq!(say(&mut session, br#"{"execute":"qmp_capabilities"}"#), [json!({"return": {}})]);
    session
}

/// Each pair was typed at `qemu-system-x86_64 -M none -qmp unix:…` 10.0.2 and answered so.
#[test]
fn answers_are_those_of_qemu() {
    let (handle, _shared, _seen) = running();
    let mut session = Session::new(handle);
    let greeting: Value = serde_json::from_slice(&session.greeting()).unwrap();
    assert_eq!(greeting["QMP"]["version"]["qemu"]["major"], 10);
    assert!(greeting["QMP"]["capabilities"].is_array() && greeting["QMP"]["version"]["package"].is_string());
    let exchange = [
        (
            r#"{"execute":"query-status"}"#,
            r#"{"error": {"class": "CommandNotFound", "desc": "Expecting capabilities negotiation with 'qmp_capabilities'"}}"#,
        ),
        (r#"{"execute":"qmp_capabilities","id":7}"#, r#"{"return": {}, "id": 7}"#),
        (
            r#"{"execute":"qmp_capabilities"}"#,
            r#"{"error": {"class": "CommandNotFound", "desc": "Capabilities negotiation is already complete, command ignored"}}"#,
        ),
        (
            r#"{"execute":"nope","id":{"a":[1]}}"#,
            r#"{"id": {"a": [1]}, "error": {"class": "CommandNotFound", "desc": "The command nope has not been found"}}"#,
        ),
        (
            r#"{"execute":"query-status","id":null}"#,
            r#"{"return": {"status": "running", "running": true}, "id": null}"#,
        ),
        ("[1]", r#"{"error": {"class": "GenericError", "desc": "QMP input must be a JSON object"}}"#),
        (r#""x""#, r#"{"error": {"class": "GenericError", "desc": "QMP input must be a JSON object"}}"#),
        (
            r#"{"execute":3}"#,
            r#"{"error": {"class": "GenericError", "desc": "QMP input member 'execute' must be a string"}}"#,
        ),
        (r#"{"foo":1}"#, r#"{"error": {"class": "GenericError", "desc": "QMP input member 'foo' is unexpected"}}"#),
        (
            r#"{"execute":"query-status","arguments":[1],"id":1}"#,
            r#"{"id": 1, "error": {"class": "GenericError", "desc": "QMP input member 'arguments' must be an object"}}"#,
        ),
        (
            r#"{"execute":"query-status","arguments":{"x":1},"id":1}"#,
            r#"{"id": 1, "error": {"class": "GenericError", "desc": "Parameter 'x' is unexpected"}}"#,
        ),
        (
            r#"{"execute":"query-status","extra":1,"id":1}"#,
            r#"{"id": 1, "error": {"class": "GenericError", "desc": "QMP input member 'extra' is unexpected"}}"#,
        ),
        (
            r#"{"execute":"migrate","arguments":{"uri":3}}"#,
            r#"{"error": {"class": "GenericError", "desc": "Invalid parameter type for 'uri', expected: string"}}"#,
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"nonsense":1}}"#,
            r#"{"error": {"class": "GenericError", "desc": "Parameter 'nonsense' is unexpected"}}"#,
        ),
        (r#"{"execute":"query-migrate"}"#, r#"{"return": {}}"#),
        (r#"{"execute":"migrate_cancel"}"#, r#"{"return": {}}"#),
        (r#"{"execute":"stop"}"#, r#"{"return": {}}"#),
        (r#"{"execute":"query-status"}"#, r#"{"return": {"status": "paused", "running": false}}"#),
        (r#"{"execute":"cont"}"#, r#"{"return": {}}"#),
    ];
    for (command, answer) in exchange {
        let expected: Value = serde_json::from_str(answer).unwrap();
        assert_eq!(say(&mut session, format!("{command}\n").as_bytes()), [expected], "to {command}");
    }
}

#[test]
fn requests_reach_the_driver_and_its_refusals_the_client() {
    let (handle, _shared, seen) = running();
    let mut session = negotiated(&handle);
    let fine = json!({"return": {}});
    let change = |change| Request::MigrateSetParameters(change);
    let commands: [(&str, Request); 12] = [
        (
            r#"{"execute":"migrate","arguments":{"uri":"unix:/run/x","target-schema":"/run/old.json"}}"#,
            Request::MigrateToRelease(Address::Unix("/run/x".into()), "/run/old.json".into()),
        ),
        (
            r#"{"execute":"dump-schema","arguments":{"file":"/run/new.json"}}"#,
            Request::DumpSchema("/run/new.json".into()),
        ),
        (
            r#"{"execute":"migrate","arguments":{"uri":"unix:/run/x"}}"#,
            Request::Migrate(Address::Unix("/run/x".into())),
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"downtime-limit":20}}"#,
            change(ParameterChange { downtime_limit: Some(Duration::from_millis(20)), ..Default::default() }),
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":18446744073709551615}}"#,
            change(ParameterChange { max_bandwidth: Some(u64::MAX), ..Default::default() }),
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"pause-budget":900}}"#,
            change(ParameterChange { pause_budget: Some(Duration::from_millis(900)), ..Default::default() }),
        ),
        (r#"{"execute":"cont"}"#, Request::Cont),
        (r#"{"execute":"cont","arguments":{"force":false}}"#, Request::Cont),
        (r#"{"execute":"cont","arguments":{"force":true}}"#, Request::ContUnproved),
        (r#"{"execute":"system_reset"}"#, Request::Reset),
        (r#"{"execute":"system_powerdown"}"#, Request::PowerDown),
        (r#"{"execute":"migrate_cancel"}"#, Request::MigrateCancel),
    ];
    for (command, request) in commands {
        assert_eq!(say(&mut session, command.as_bytes()), std::slice::from_ref(&fine), "to {command}");
        assert_eq!(seen.try_recv().unwrap(), request, "from {command}");
    }
    let refused = [
        (r#"{"execute":"migrate","arguments":{"uri":"tcp:far:1"}}"#, "a migration is running already"),
        (
            r#"{"execute":"migrate","arguments":{"uri":"exec:x"}}"#,
            "'exec:x' is no address; write unix:PATH or tcp:HOST:PORT",
        ),
        (r#"{"execute":"migrate"}"#, "Parameter 'uri' is missing"),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"downtime-limit":2000001}}"#,
            "Parameter 'downtime-limit' expects an integer in the range of 0 to 2000000",
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":-1}}"#,
            "Parameter 'max-bandwidth' expects an integer in the range of 0 to 18446744073709551615",
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":59}}"#,
            "Parameter 'max-bandwidth' of 59 bytes a second would never send a page; give 4360 or more, or 0 for no limit",
        ),
        (r#"{"execute":"cont","arguments":{"force":1}}"#, "Invalid parameter type for 'force', expected: boolean"),
    ];
    for (command, sentence) in refused {
        let reply = say(&mut session, command.as_bytes());
        assert_eq!(reply, [json!({"error": {"class": "GenericError", "desc": sentence}})], "to {command}");
    }
    assert!(seen.try_iter().all(|request| matches!(request, Request::Migrate(Address::Tcp(_)))));
}

/// Member names and units as QEMU 10.0.2 answers after `migrate exec:cat`: its ram counts 28 normal pages as 114688 bytes.
#[test]
fn migration_figures_are_in_the_units_of_qemu() {
    let (handle, shared, _seen) = running();
    let mut session = negotiated(&handle);
    shared.update_migration(|info| {
        info.phase = Phase::Source(SourcePhase::Rounds);
        let figures = &mut info.figures;
        figures.elapsed = Duration::from_micros(11_900);
        figures.setup = Duration::from_millis(1);
        figures.expected_downtime = Some(Duration::from_millis(300));
        figures.bytes = 281_630;
        figures.ram_bytes = 67_252_224;
        figures.remaining_bytes = 4096;
        figures.normal_pages = 28;
        figures.zero_pages = 16_391;
        figures.rounds = 2;
        figures.dirty_pages_per_second = 5;
        figures.bytes_per_second = 28_163_000;
    });
    let ram = json!({
        "transferred": 281630, "remaining": 4096, "total": 67252224, "duplicate": 16391, "normal": 28,
        "normal-bytes": 114688, "dirty-pages-rate": 5, "mbps": 225.304, "dirty-sync-count": 2,
        "pages-per-second": 6875, "page-size": 4096
    });
    let query = br#"{"execute":"query-migrate"}"#;
    assert_eq!(
        say(&mut session, query),
        [
            json!({"return": {"status": "active", "total-time": 11, "setup-time": 1, "expected-downtime": 300, "ram": ram}})
        ]
    );
    shared.update_migration(|info| {
        info.phase = Phase::Source(SourcePhase::Completed);
        let us = Duration::from_micros;
        let mut downtime = Downtime::default();
        (downtime.pause, downtime.sync, downtime.pages) = (us(100), us(200), us(300));
        (downtime.devices, downtime.confirm, downtime.commit) = (us(400), us(500), us(3456));
        info.figures.downtime = Some(downtime);
    });
    assert_eq!(
        say(&mut session, query),
        [json!({"return": {
            "status": "completed", "total-time": 11, "setup-time": 1, "downtime": 4, "expected-downtime": 300,
            "downtime-parts": {
                "pause": 100, "sync": 200, "pages": 300, "devices": 400, "confirm": 500, "commit": 3456
            },
            "ram": ram
        }})]
    );
    shared.update_migration(|info| {
        info.phase = Phase::Source(SourcePhase::Failed);
        info.error = Some("Failed to connect to '/nowhere': No such file or directory".into());
    });
    assert_eq!(
        say(&mut session, query),
        [json!({"return": {
            "status": "failed", "error-desc": "Failed to connect to '/nowhere': No such file or directory"
        }})]
    );
    assert_eq!(
        say(&mut session, br#"{"execute":"query-migrate-parameters"}"#),
        [json!({"return": {"downtime-limit": 300, "max-bandwidth": 134217728, "pause-budget": 1200}})]
    );
}

#[test]
fn framing_takes_any_split_and_survives_garbage() {
    let (handle, _shared, _seen) = running();
    let mut session = negotiated(&handle);
    let status = json!({"return": {"status": "running", "running": true}});
    let mut replies = Vec::new();
    for byte in b" \r\n{\"execute\":\n\"query-status\"}{\"execute\":\"query-status\"}\n" {
        replies.extend(say(&mut session, &[*byte]));
    }
    assert_eq!(replies, [status.clone(), status.clone()]);
    for garbage in [&b"{bad json}\n"[..], b"\xff\n", b"{\"execute\":\"query-\xffstatus\"}\n", &[b'['; 200]] {
        let replies = say(&mut session, garbage);
        assert_eq!(replies.len(), 1, "{garbage:?}");
        assert_eq!(replies[0]["error"]["class"], "GenericError");
        assert!(replies[0]["error"]["desc"].as_str().unwrap().starts_with("JSON parse error, "));
        assert_eq!(
            say(&mut session, b"\n{\"execute\":\"query-status\"}"),
            std::slice::from_ref(&status),
            "after {garbage:?}"
        );
    }
    let mut endless = vec![b'"'];
    endless.resize(64 * 1024 + 1, b'a');
    let mut said = Vec::new();
    assert_eq!(session.receive(&endless, |_, reply| said.push(reply)), Err(CommandTooLong));
    assert_eq!(said.len(), 1);
}

struct Peer {
    input: BufReader<UnixStream>,
}

impl Peer {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut peer = Self { input: BufReader::new(stream) };
        assert!(peer.next().get("QMP").is_some());
        peer
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
    shared.set_run_state(RunState::Shutdown);
    for peer in [&mut first, &mut second] {
        let event = peer.next();
        assert_eq!((&event["event"], &event["data"]), (&json!("MIGRATION"), &json!({"status": "setup"})));
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

#[test]
fn queries_are_answered_while_the_driver_is_busy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    // Nobody takes the requests.
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
    // The driver ends: who waits for it is told so, and the server can close.
    drop(queue);
    assert_eq!(waiting.next()["error"]["desc"], "the machine has ended");
    drop(server);
}

/// The process ends whatever its driver does.
#[test]
fn the_server_closes_while_a_client_waits_for_a_driver_that_is_stuck() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    // Nobody takes the requests, and nobody says that there is no driver.
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
    closes.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(!path.exists());
}

/// Its answer does not wait for the driver.
#[test]
fn quit_is_answered_while_the_driver_is_stuck() {
    let (handle, _queue, _shared) = Handle::new(RunState::Running);
    let mut session = negotiated(&handle);
    assert_eq!(say(&mut session, br#"{"execute":"quit"}"#), [json!({"return": {}})]);
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
    let begin = Instant::now();
    let longest = (0..20_000).map(|round| {
        let state = if round % 2 == 0 { RunState::Paused } else { RunState::Running };
        let begin = Instant::now();
        shared.set_run_state(state);
        begin.elapsed()
    });
    let longest = longest.max().unwrap();
    assert!(longest < Duration::from_secs(1), "publishing took {longest:?}");
    drop(server);
    assert!(begin.elapsed() < Duration::from_secs(30));
    let mut rest = Vec::new();
    let events = match deaf.input.read_to_end(&mut rest) {
        Ok(_) | Err(_) => rest.iter().filter(|&&byte| byte == b'\n').count(),
    };
    assert!(events < 20_000, "it was not cut off");
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
    drop(living);
    assert!(path.exists(), "std leaves the file, as a killed process does");
    let server = bind().unwrap();
    Peer::connect(&path);

    // Its own file only is removed.
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists());
    drop(other);
}

#[test]
fn the_client_speaks_with_the_server() {
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
