//! The control socket with a thread instead of the driver, against answers that QEMU gave.

mod bitmaps;
mod clients;
mod human;
mod jobs;
mod manual;
mod qemu;
mod schema;

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::time::ClockId;
use serde_json::{Value, json};
use vmstate::migrate::{Downtime, Phase, Slowdown, SourcePhase, Takeover};
use vmstate::ram::XbzrleCount;

use crate::config::Address;
use crate::control::Session;
use vmstate::migrate::ParameterValue;

use crate::vm::{
    AnyRequest, DiskCopies, Handle, Next, ParameterChange, Published, Queue, Refusal, Request, RunState, Terms,
};

/// Answers requests as the real driver does, and reports them; ends at `Quit`.
fn driver(mut queue: Queue, shared: Arc<Published>, seen: Sender<Request>) -> JoinHandle<()> {
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
                Request::MigrateResume(_) => Err(Refusal("Cannot resume if there is no paused migration".into())),
                Request::Migrate(Address::Tcp(_), _) => Err(Refusal("a migration is running already".into())),
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

fn running() -> (Handle, Arc<Published>, Receiver<Request>) {
    let (handle, queue, shared) = Handle::new(RunState::Running);
    let (seen, requests_seen) = channel();
    driver(queue, Arc::clone(&shared), seen);
    (handle, shared, requests_seen)
}

/// A client's input, returned in pieces of a given size; a read at its end waits for more.
#[derive(Clone, Default)]
struct Typed(Arc<Mutex<VecDeque<u8>>>, Option<usize>);

impl Read for Typed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.1.unwrap_or(bytes.len());
        self.0.lock().unwrap().read(&mut bytes[..count])
    }
}

struct TestClient {
    session: Session<Typed>,
    typed: Typed,
}

impl TestClient {
    fn new(handle: &Handle) -> Self {
        Self::in_pieces(handle, None)
    }

    fn in_pieces(handle: &Handle, of: Option<usize>) -> Self {
        let typed = Typed(Arc::default(), of);
        Self { session: Session::new(handle.clone(), typed.clone()), typed }
    }

    fn negotiated(handle: &Handle) -> Self {
        let mut test_client = Self::new(handle);
        assert_eq!(test_client.send(br#"{"execute":"qmp_capabilities"}"#), [json!({"return": {}})]);
        test_client
    }

    /// Returns everything that the session answers to `input`, which ends with a whole command, as JSON values.
    fn send(&mut self, input: &[u8]) -> Vec<Value> {
        self.typed.0.lock().unwrap().extend(input);
        let mut answers = Vec::new();
        while let Some(command) = self.session.next_command() {
            let text = String::from_utf8(self.session.answer(command)).unwrap();
            answers.push(serde_json::from_str(text.strip_suffix("\r\n").unwrap()).unwrap());
        }
        answers
    }
}

/// Each command was typed at `qemu-system-x86_64 -M none -qmp unix:…` 10.0.2, which gave this answer.
#[test]
fn answers_are_those_of_qemu() {
    let (handle, _shared, _seen) = running();
    let mut test_client = TestClient::new(&handle);
    let greeting: Value = serde_json::from_slice(&test_client.session.greeting()).unwrap();
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
        assert_eq!(test_client.send(format!("{command}\n").as_bytes()), [expected], "to {command}");
    }
}

#[test]
fn requests_reach_the_driver_and_its_refusals_the_client() {
    let (handle, _shared, seen) = running();
    let mut test_client = TestClient::negotiated(&handle);
    let fine = json!({"return": {}});
    let change = |change| Request::MigrateSetParameters(change);
    let commands: [(&str, Request); 16] = [
        (
            r#"{"execute":"migrate","arguments":{"uri":"unix:/run/x","target-schema":"/run/old.json","keep-running":true,"to-qemu":true,"copy-disk":true}}"#,
            Request::Migrate(
                Address::Unix("/run/x".into()),
                Terms {
                    release: Some("/run/old.json".into()),
                    keeps_running: true,
                    to_qemu: true,
                    copies: DiskCopies::All,
                    ..Terms::default()
                },
            ),
        ),
        (
            r#"{"execute":"migrate","arguments":{"uri":"unix:/run/x","copy-disk":["virtio1","virtio3"]}}"#,
            Request::Migrate(
                Address::Unix("/run/x".into()),
                Terms { copies: DiskCopies::Named(vec!["virtio1".into(), "virtio3".into()]), ..Terms::default() },
            ),
        ),
        (
            r#"{"execute":"dump-schema","arguments":{"file":"/run/new.json"}}"#,
            Request::DumpSchema("/run/new.json".into()),
        ),
        (
            r#"{"execute":"migrate","arguments":{"uri":"unix:/run/x"}}"#,
            Request::Migrate(Address::Unix("/run/x".into()), Terms::default()),
        ),
        (
            r#"{"execute":"migrate","arguments":{"uri":"unix:/run/x","parameters":{"downtime-limit":20,"xbzrle":true}}}"#,
            Request::Migrate(
                Address::Unix("/run/x".into()),
                Terms {
                    parameters: ParameterChange::default()
                        .with("downtime-limit", Duration::from_millis(20))
                        .with("xbzrle", true),
                    ..Terms::default()
                },
            ),
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"downtime-limit":20}}"#,
            change(ParameterChange::default().with("downtime-limit", Duration::from_millis(20))),
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":18446744073709551615}}"#,
            change(ParameterChange::default().with("max-bandwidth", u64::MAX)),
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"pause-budget":900}}"#,
            change(ParameterChange::default().with("pause-budget", Duration::from_millis(900))),
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"cpu-throttle-initial":99,"aim":"least-disturbance"}}"#,
            change(
                ParameterChange::default()
                    .with("cpu-throttle-initial", 99)
                    .with("aim", ParameterValue::Word("least-disturbance".into())),
            ),
        ),
        (
            r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"auto-converge","state":true}]}}"#,
            change(ParameterChange::default().with("auto-converge", true)),
        ),
        (r#"{"execute":"cont"}"#, Request::Cont),
        (r#"{"execute":"cont","arguments":{"force":false}}"#, Request::Cont),
        (r#"{"execute":"cont","arguments":{"force":true}}"#, Request::ContUnproved),
        (r#"{"execute":"system_reset"}"#, Request::Reset),
        (r#"{"execute":"system_powerdown"}"#, Request::PowerDown),
        (r#"{"execute":"migrate_cancel"}"#, Request::MigrateCancel),
    ];
    for (command, request) in commands {
        assert_eq!(test_client.send(command.as_bytes()), std::slice::from_ref(&fine), "to {command}");
        assert_eq!(seen.try_recv().unwrap(), request, "from {command}");
    }
    let refused = [
        (r#"{"execute":"migrate","arguments":{"uri":"tcp:far:1"}}"#, "a migration is running already"),
        (
            r#"{"execute":"migrate","arguments":{"uri":"rdma:x"}}"#,
            "'rdma:x' is no address; write unix:PATH, tcp:HOST:PORT, vsock:CID:PORT, local:PATH, exec:COMMAND, fd:NAME or file:PATH[,offset=N]",
        ),
        (r#"{"execute":"migrate","arguments":{"uri":"fd:5"}}"#, "File descriptor named '5' has not been found"),
        (r#"{"execute":"migrate"}"#, "need either 'uri' or 'channels' argument"),
        (
            r#"{"execute":"migrate","arguments":{"uri":"unix:/run/x","parameters":[]}}"#,
            "Invalid parameter type for 'parameters', expected: object",
        ),
        (
            r#"{"execute":"migrate","arguments":{"uri":"unix:/run/x","parameters":{"speed":1}}}"#,
            "Parameter 'parameters.speed' is unexpected",
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":-1}}"#,
            "Parameter 'max-bandwidth' expects an integer in the range of 0 to 18446744073709551615",
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"aim":true}}"#,
            "Invalid parameter type for 'aim', expected: string",
        ),
        (
            r#"{"execute":"migrate-set-parameters","arguments":{"auto-converge":true}}"#,
            "Parameter 'auto-converge' is unexpected",
        ),
        (
            r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"rdma","state":true}]}}"#,
            "Parameter 'capability' does not accept value 'rdma'",
        ),
        (r#"{"execute":"cont","arguments":{"force":1}}"#, "Invalid parameter type for 'force', expected: boolean"),
    ];
    for (command, sentence) in refused {
        let reply = test_client.send(command.as_bytes());
        assert_eq!(reply, [json!({"error": {"class": "GenericError", "desc": sentence}})], "to {command}");
    }
    assert!(seen.try_iter().all(|request| matches!(request, Request::Migrate(Address::Tcp(_), _))));
}

/// Member names and units as QEMU 10.0.2 answers after `migrate exec:cat`: its ram counts 28 normal pages as 114688 bytes.
#[test]
fn migration_figures_are_in_the_units_of_qemu() {
    let (handle, shared, _seen) = running();
    let mut test_client = TestClient::negotiated(&handle);
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
        test_client.send(query),
        [
            json!({"return": {"status": "active", "total-time": 11, "setup-time": 1, "expected-downtime": 300, "ram": ram}})
        ]
    );
    shared.update_migration(|info| {
        info.figures.throttle_percent = 30;
        info.figures.slowdown.throttled = Duration::from_micros(2_900);
        info.figures.slowdown.rehearsed = Duration::from_micros(75);
        info.figures.slowdown.highest_throttle_percent = 40;
    });
    let slowed = &test_client.send(query)[0]["return"];
    assert_eq!(slowed["cpu-throttle-percentage"], 30);
    // 2.975 ms are 25 % of 11.9 ms.
    assert_eq!(
        slowed["guest-slowdown"],
        json!({"throttled": 2900, "rehearsed": 75, "percent": 25.0, "highest-throttle": 40})
    );
    let mut count = XbzrleCount::default();
    (count.cache_bytes, count.pages, count.encoded, count.overflow) = (67_108_864, 12, 9, 3);
    (count.bytes, count.cache_miss, count.cache_miss_rate, count.encoding_rate) = (12_345, 19, 0.25, 40.5);
    shared.update_migration(|info| info.figures.xbzrle = Some(count));
    let changed = &test_client.send(query)[0]["return"];
    assert_eq!(
        changed["xbzrle-cache"],
        json!({
            "cache-size": 67_108_864, "bytes": 12_345, "pages": 12, "cache-miss": 19, "cache-miss-rate": 0.25,
            "encoding-rate": 40.5, "overflow": 3
        })
    );
    // Nine of the 28 pages were sent as changes.
    assert_eq!((&changed["ram"]["normal"], &changed["ram"]["normal-bytes"]), (&json!(19), &json!(19 * 4096)));
    shared.update_migration(|info| {
        info.figures.xbzrle = None;
        info.figures.throttle_percent = 0;
        info.figures.slowdown = Slowdown::default();
        info.phase = Phase::Source(SourcePhase::Completed);
        let us = Duration::from_micros;
        let mut downtime = Downtime::default();
        (downtime.pause, downtime.sync, downtime.pages) = (us(100), us(200), us(300));
        (downtime.devices, downtime.confirm, downtime.commit) = (us(400), us(500), us(3456));
        info.figures.downtime = Some(downtime);
        let mut takeover = Takeover::default();
        (takeover.machine, takeover.resume) = (us(450), us(70));
        info.figures.takeover = Some(takeover);
    });
    assert_eq!(
        test_client.send(query),
        [json!({"return": {
            "status": "completed", "total-time": 11, "setup-time": 1, "downtime": 4, "expected-downtime": 300,
            "downtime-parts": {
                "pause": 100, "sync": 200, "pages": 300, "devices": 400, "confirm": 500, "commit": 3456
            },
            "takeover-parts": {"machine": 450, "resume": 70},
            "ram": ram
        }})]
    );
    shared.update_migration(|info| {
        info.phase = Phase::Source(SourcePhase::Failed);
        info.error = Some("Failed to connect to '/nowhere': No such file or directory".into());
    });
    assert_eq!(
        test_client.send(query),
        [json!({"return": {
            "status": "failed", "error-desc": "Failed to connect to '/nowhere': No such file or directory"
        }})]
    );
    assert_eq!(
        test_client.send(br#"{"execute":"query-migrate-parameters"}"#),
        [json!({"return": {
            "downtime-limit": 300,
            "pause-budget": 1200,
            "max-bandwidth": 134217728,
            "max-postcopy-bandwidth": 0,
            "avail-switchover-bandwidth": 0,
            "aim": "soonest",
            "throttle-trigger-threshold": 50,
            "cpu-throttle-initial": 20,
            "cpu-throttle-increment": 10,
            "max-cpu-throttle": 99,
            "deadline": 0,
            "deadline-action": "cancel",
            "max-rounds": 0,
            "multifd-channels": 2,
            "multifd-compression": "none",
            "multifd-zstd-level": 1,
            "direct-io": false,
            "xbzrle-cache-size": 67108864,
            "tls-creds": "",
            "tls-hostname": "",
            "tls-authz": "",
            "tls-pin": "",
            "announce-initial": 50,
            "announce-max": 550,
            "announce-rounds": 5,
            "announce-step": 100,
            "mode": "normal",
        }})]
    );
}

#[test]
fn framing_takes_any_split_and_survives_garbage() {
    let (handle, _shared, _seen) = running();
    let status = json!({"return": {"status": "running", "running": true}});
    let command: &[u8] = b" \r\n{\"execute\":\n\"query-status\"}{\"execute\":\"query-status\"}\n";
    let fine = json!({"return": {}});
    let begin: &[u8] = br#"{"execute":"qmp_capabilities"}"#;
    for size in [None, Some(1), Some(2), Some(7)] {
        let answers = |text: &[u8]| TestClient::in_pieces(&handle, size).send(&[begin, text].concat());
        assert_eq!(answers(command), [fine.clone(), status.clone(), status.clone()]);
        let garbage =
            [&b"{bad json}\n"[..], b"\xff\n", b"{\"execute\":\"query-\xffstatus\"}\n", &[b'['; 200], b"{\n]\n"];
        for garbage in garbage {
            let answers = answers(&[garbage, b"\n{\"execute\":\"query-status\"}"].concat());
            let [_, wrong, right] = &answers[..] else { panic!("{answers:?} to {garbage:?}") };
            assert_eq!(wrong["error"]["class"], "GenericError");
            assert!(wrong["error"]["desc"].as_str().unwrap().starts_with("JSON parse error, "));
            assert_eq!(*right, status, "after {garbage:?}");
        }
        // A wrong line has one answer; a number or a word ends with its line, or where another value begins.
        let counts = [("{bad json} more\n", 1), ("1234\n", 1), ("12[]true{}\n", 4), ("{\"execute\":1} 56 truex\n", 3)];
        for (line, count) in counts {
            assert_eq!(answers(line.as_bytes()).len(), 1 + count, "{line:?}");
        }
    }
}

#[test]
fn a_command_has_64_kib_at_most_and_nothing_behind_a_longer_one_counts() {
    let (handle, _shared, _seen) = running();
    // A string of the longest command, with its quotes.
    let text = |len: usize| format!("\"{}\"", "a".repeat(len - 2));
    let mut test_client = TestClient::negotiated(&handle);
    assert_eq!(test_client.send(text(64 << 10).as_bytes())[0]["error"]["desc"], "QMP input must be a JSON object");
    // White space between commands belongs to none, and nothing is kept of a wrong line.
    assert!(test_client.send(&[b'\n'; 100 << 10]).is_empty());
    assert_eq!(test_client.send(&[&b"{bad"[..], &[b' '; 100 << 10], b"\n"].concat()).len(), 1);
    let longer = format!("{}{{\"execute\":\"query-status\"}}", text((64 << 10) + 1));
    let answers = test_client.send(longer.as_bytes());
    let [answer] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(answer["error"]["desc"], "the command is longer than 65536 bytes; the connection is closed");
    assert!(test_client.send(br#"{"execute":"query-status"}"#).is_empty());
}

/// A client may send a byte at a time.
#[test]
fn what_comes_byte_by_byte_is_read_once() {
    let (handle, _shared, _seen) = running();
    let command = format!("{{\"id\":[{}0]}}", "[],".repeat(20_000));
    let before = ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap();
    assert_eq!(TestClient::in_pieces(&handle, Some(1)).send(command.as_bytes()).len(), 1);
    let taken = Duration::from(ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap() - before);
    // The test would take minutes if the session parsed the whole command again for each byte.
    assert!(taken < Duration::from_secs(5), "{taken:?} for {} bytes", command.len());
}
