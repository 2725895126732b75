//! Monitoring of a machine: metrics, parsed by Prometheus's rules, and the log.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use minivmm::config::Address;
use minivmm::control::MetricsSocket;
use minivmm::migration::disk::DiskFigures;
use minivmm::vm::{Handle, Published, RunState};
use serde_json::{Value, json};
use vmstate::migrate::{Downtime, Phase, SourcePhase};

use super::{Running, TIMEOUT, minivmm};

/// Metric families: type, and samples by labels.
type Families = BTreeMap<String, (String, BTreeMap<String, f64>)>;

/// Parses the text format 0.0.4 strictly by its specification
/// (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-format-details>): HELP and TYPE once, before the first
/// sample; the samples of a family together; valid names, labels and numbers; a line feed at the end of each line.
fn parse(text: &str) -> Families {
    let name_is_right = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    assert!(text.ends_with('\n'), "{text:?}");
    let mut families = Families::new();
    let (mut helped, mut last) = (BTreeSet::new(), String::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').expect(line);
            assert!(name_is_right(name) && !words.is_empty() && helped.insert(name.to_owned()), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect(line);
            assert!(["counter", "gauge"].contains(&kind) && helped.contains(name), "{line}");
            assert!(kind == "counter" || !name.ends_with("_total"), "{line}");
            assert!(families.insert(name.into(), (kind.into(), BTreeMap::new())).is_none(), "{line}");
            last = name.into();
        } else {
            let (series, value) = line.rsplit_once(' ').expect(line);
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').expect(line)),
                None => (series, ""),
            };
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let (key, value) = label.split_once('=').expect(line);
                let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).expect(line);
                assert!(name_is_right(key) && !value.contains(['"', '\\']), "{line}");
            }
            assert_eq!(name, last, "{line} stands apart from its family");
            let value: f64 = value.parse().expect(line);
            let samples = &mut families.get_mut(name).expect(line).1;
            assert!(value.is_finite() && samples.insert(labels.into(), value).is_none(), "{line}");
        }
    }
    families
}

/// Returns head and body of the answer. The server disconnects a client that is slow on a busy host; then the request is
/// repeated.
fn ask<S: Read + Write>(connect: impl Fn() -> S, request: &[u8]) -> (String, String) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let mut stream = connect();
        let mut answer = String::new();
        if stream.write_all(request).and_then(|()| stream.read_to_string(&mut answer)).is_ok_and(|read| read > 0) {
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{head}");
            return (head.into(), body.into());
        }
        assert!(Instant::now() < deadline, "no answer");
    }
}

const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

fn migrates(shared: &Published) {
    shared.update_migration(|info| {
        info.phase = Phase::Source(SourcePhase::Rounds);
        info.disk = Some(DiskFigures { total: 20 << 30, transferred: 3 << 30, remaining: 2 << 30 });
        let figures = &mut info.figures;
        (figures.rounds, figures.bytes, figures.remaining_bytes, figures.ram_bytes) =
            (3, 450 << 20, 120 << 20, 1 << 30);
        (figures.bytes_per_second, figures.dirty_pages_per_second) = (400 << 20, 32 << 10);
        (figures.normal_pages, figures.zero_pages, figures.throttle_percent) = (1000, 500, 20);
        figures.elapsed = Duration::from_millis(1500);
        figures.expected_downtime = Some(Duration::from_millis(120));
        let mut downtime = Downtime::default();
        (downtime.pause, downtime.commit) = (Duration::from_millis(4), Duration::from_micros(500));
        figures.downtime = Some(downtime);
    });
}

#[test]
fn prometheus_reads_each_metric_in_its_unit() {
    let folder = tempfile::tempdir().unwrap();
    let (handle, _queue, shared) = Handle::new(RunState::Running);
    let path = folder.path().join("metrics");
    let _metrics = MetricsSocket::open(&Address::Unix(path.clone()), None).unwrap().serve(handle).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let scrape = || parse(&ask(|| UnixStream::connect(&path).unwrap(), GET).1);
    let families = scrape();
    assert!(families["minivmm_migration_downtime_seconds"].1.is_empty(), "nothing was measured");
    migrates(&shared);
    let (head, body) = ask(|| UnixStream::connect(&path).unwrap(), GET);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{head}");
    let families = parse(&body);
    for (name, labels, value) in [
        ("minivmm_guest_running", "", 1.0),
        ("minivmm_run_state_info", "state=\"running\"", 1.0),
        ("minivmm_migration_info", "side=\"source\",status=\"active\"", 1.0),
        ("minivmm_migration_active", "", 1.0),
        ("minivmm_migration_rounds", "", 3.0),
        ("minivmm_migration_transferred_bytes", "", 471_859_200.0),
        ("minivmm_migration_remaining_bytes", "", 125_829_120.0),
        ("minivmm_migration_ram_bytes", "", 1_073_741_824.0),
        ("minivmm_migration_disk_transferred_bytes", "", 3_221_225_472.0),
        ("minivmm_migration_disk_remaining_bytes", "", 2_147_483_648.0),
        ("minivmm_migration_disk_bytes", "", 21_474_836_480.0),
        ("minivmm_migration_page_bytes", "kind=\"normal\"", 4_096_000.0),
        ("minivmm_migration_page_bytes", "kind=\"zero\"", 2_048_000.0),
        ("minivmm_migration_page_bytes", "kind=\"xbzrle\"", 0.0),
        ("minivmm_migration_dirty_bytes_per_second", "", 134_217_728.0),
        ("minivmm_migration_bandwidth_bytes_per_second", "", 419_430_400.0),
        ("minivmm_migration_throttle_ratio", "", 0.2),
        ("minivmm_migration_elapsed_seconds", "", 1.5),
        ("minivmm_migration_expected_downtime_seconds", "", 0.12),
        ("minivmm_migration_downtime_seconds", "", 0.0045),
        ("minivmm_migration_downtime_part_seconds", "part=\"pause\"", 0.004),
        ("minivmm_migration_downtime_limit_seconds", "", 0.3),
        ("minivmm_migration_max_bandwidth_bytes_per_second", "", 134_217_728.0),
    ] {
        assert_eq!(families[name].1.get(labels), Some(&value), "{name}{{{labels}}}");
    }
}

/// Each metric in the dashboard's queries is one that a machine serves.
#[test]
fn the_dashboard_asks_for_metrics_that_exist() {
    let folder = tempfile::tempdir().unwrap();
    let (handle, _queue, _shared) = Handle::new(RunState::Running);
    let path = folder.path().join("metrics");
    let _metrics = MetricsSocket::open(&Address::Unix(path.clone()), None).unwrap().serve(handle).unwrap();
    let served = parse(&ask(|| UnixStream::connect(&path).unwrap(), GET).1);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/grafana-dashboard.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut asked = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let names = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            asked.extend(names.filter(|name| name.starts_with("minivmm_")).map(str::to_owned));
        }
    }
    let missing: Vec<_> = asked.iter().filter(|name| !served.contains_key(*name)).collect();
    assert!(asked.len() > 8 && missing.is_empty(), "{missing:?} of {asked:?}");
    // Each metric is documented.
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/observability.md");
    let page = std::fs::read_to_string(page).unwrap();
    let silent: Vec<_> = served.keys().filter(|name| !page.contains(&format!("`{name}`"))).collect();
    assert!(silent.is_empty(), "docs/observability.md lacks {silent:?}");
}

/// After any client, correct or not, the next one is served.
#[test]
fn hostile_clients_are_answered_or_dropped() {
    let (handle, _queue, _shared) = Handle::new(RunState::Paused);
    let socket = MetricsSocket::open(&Address::Tcp("localhost:0".into()), None).unwrap();
    let port = socket.port().unwrap().unwrap();
    let _metrics = socket.serve(handle).unwrap();
    let connect = || TcpStream::connect(("127.0.0.1", port)).unwrap();
    let long = [b"GET /metrics?".as_slice(), &[b'x'; 9000]].concat();
    for (request, status) in [
        (&b"POST /metrics HTTP/1.1\r\n\r\n"[..], "405"),
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (b"GET /metrics\r\n\r\n", "400"),
        (b"\r\n\r\n", "400"),
        (b"\0\xff\x1b[2J GET x\r\n\r\n", "400"),
        (b"GET /metrics?name=value HTTP/1.0\r\n\r\n", "200"),
    ] {
        let (head, _) = ask(connect, request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    }
    let mut silent = connect();
    let mut endless = connect();
    endless.write_all(&long).unwrap();
    drop(connect());
    let (head, body) = ask(connect, GET);
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert_eq!(parse(&body)["minivmm_guest_running"].1[""], 0.0);
    // The server has disconnected both.
    silent.set_read_timeout(Some(TIMEOUT)).unwrap();
    endless.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0);
    let mut rest = Vec::new();
    let _ = endless.read_to_end(&mut rest);
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&rest));

    for address in ["tcp:0.0.0.0:0", "tcp:example.org:1", "tcp:[::]:1"] {
        let output = minivmm(&["run", "--incoming", "unix:/nowhere/in", "--metrics", address]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    let refused = MetricsSocket::open(&Address::Tcp("10.0.0.1:1".into()), None).unwrap_err().to_string();
    assert_eq!(refused, "--metrics tcp:10.0.0.1:1: metrics are served at loopback only; write tcp:127.0.0.1:PORT");
}

/// A machine in the sandbox, also while it is migrated to a second one.
#[test]
fn a_migration_is_seen_in_metrics_and_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (metrics, socket) = (format!("unix:{}", path("metrics")), format!("unix:{}", path("incoming")));
    let source = ["--serial", "none", "--metrics", &metrics, "--log", "json:debug"];
    let Some(source) = Running::start(&source, Stdio::null()) else { return };
    let there = ["--serial", "none", "--incoming", &socket, "--log", "debug"];
    let there = Running::start(&there, Stdio::null()).unwrap();
    there.control();
    let mut control = source.control();
    control.execute("migrate-set-parameters", json!({"downtime-limit": TIMEOUT.as_millis() as u64})).unwrap();
    control.execute("migrate", json!({"uri": socket})).unwrap();
    let deadline = Instant::now() + TIMEOUT;
    let families = loop {
        let families = parse(&ask(|| UnixStream::connect(path("metrics")).unwrap(), GET).1);
        if families["minivmm_migration_info"].1.contains_key("side=\"source\",status=\"completed\"") {
            break families;
        }
        assert!(Instant::now() < deadline, "{families:?}");
    };
    let figures = control.execute("query-migrate", json!({})).unwrap();
    let value = |name: &str| families[name].1[""];
    assert_eq!(Some(value("minivmm_migration_transferred_bytes") as u64), figures["ram"]["transferred"].as_u64());
    assert_eq!(Some(value("minivmm_migration_rounds") as u64), figures["ram"]["dirty-sync-count"].as_u64());
    assert_eq!(
        Some((value("minivmm_migration_downtime_seconds") * 1e9).round() as u64 / 1_000_000),
        figures["downtime"].as_u64()
    );
    let exits = &families["minivmm_vcpu_exits_total"];
    assert!(exits.0 == "counter" && exits.1["vcpu=\"0\",reason=\"interrupted\""] >= 1.0, "{exits:?}");
    control.execute("quit", json!({})).unwrap();
    there.control().execute("quit", json!({})).unwrap();
    let (_, log) = source.end();
    let events: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let has = |wanted: Value| {
        let wanted = wanted.as_object().unwrap();
        events.iter().any(|event| wanted.iter().all(|(name, value)| event[name] == *value))
    };
    for event in &events {
        assert!(event["time"].as_f64().unwrap() > 1e9 && event["level"].is_string(), "{event}");
    }
    for phase in ["Rounds", "SwitchOver", "Commit", "Completed"] {
        assert!(has(json!({"level": "info", "message": "phase", "side": "source", "phase": phase})), "{phase}: {log}");
    }
    assert!(has(json!({"message": "round over", "round": 1, "phase": "Rounds"})), "{log}");
    assert!(has(json!({"message": "saved", "section": "cpu", "instance": 0, "phase": "SwitchOver"})), "{log}");
    let (_, text) = there.end();
    let line =
        text.lines().find(|line| line.contains(": loaded side=") && line.contains(" section=cpu ")).expect(&text);
    assert!(line.starts_with("minivmm: debug: loaded side=destination phase=Loading"), "{line}");
}
