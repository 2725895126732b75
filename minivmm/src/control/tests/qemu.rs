//! A running QEMU as the oracle: both get the same lines, and the answers must be equal; so must the schemas of commands that
//! both have.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmstate_lab::{qemu, skip};

use super::{TestClient, running};

/// Bytes of the QEMU's disk `virtio0`.
pub(super) const DISK: u64 = (6 << 20) + 0x1200;

/// A QEMU without a machine, but with a disk; dropping it ends the process.
pub(super) struct Qemu {
    process: Child,
    stream: BufReader<UnixStream>,
    /// Events that came before the last answer.
    events: VecDeque<Value>,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Qemu {
    pub(super) fn start(dir: &Path) -> Option<Self> {
        let program = match qemu::at_least(qemu::NEEDED) {
            Ok(program) => program,
            Err(error) => {
                skip::skip(error);
                return None;
            }
        };
        let (socket, disk) = (dir.join("qmp"), dir.join("disk"));
        File::create(&disk).unwrap().set_len(DISK).unwrap();
        let mut command = Command::new(program);
        command.args(["-M", "none", "-display", "none", "-nodefaults", "-drive"]);
        command.arg(format!("if=none,id=virtio0,format=raw,file={}", disk.display())).arg("-qmp");
        command
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut qemu = Self { process, stream: BufReader::new(stream), events: VecDeque::new() };
        assert!(qemu.message().get("QMP").is_some());
        Some(qemu)
    }

    fn message(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Returns the answer to a line.
    pub(super) fn send(&mut self, line: &str) -> Value {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        loop {
            let message = self.message();
            if message.get("event").is_none() {
                return message;
            }
            self.events.push_back(message);
        }
    }

    /// Returns the next event for which `is_wanted` is true of its name, and drops the others.
    pub(super) fn event(&mut self, is_wanted: impl Fn(&str) -> bool) -> Value {
        loop {
            let event = self.events.pop_front().unwrap_or_else(|| self.message());
            if is_wanted(event["event"].as_str().unwrap_or_default()) {
                return event;
            }
        }
    }
}

/// Lines to which a machine without a migration gives the same answers as QEMU.
const LINES: &[&str] = &[
    r#"{"exec-oob":"migrate-pause","id":1}"#,
    r#"{"execute":"qmp_capabilities","arguments":{"enable":5}}"#,
    r#"{"execute":"qmp_capabilities","arguments":{"enable":[5]}}"#,
    r#"{"execute":"qmp_capabilities","arguments":{"enable":["nope"]}}"#,
    r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]},"id":"q"}"#,
    r#"{"execute":"query-name"}"#,
    r#"{"execute":"query-uuid"}"#,
    r#"{"execute":"query-status","id":[1,{"a":null}]}"#,
    r#"{"execute":"query-status","arguments":null}"#,
    r#"{"execute":"migrate-pause"}"#,
    r#"{"execute":"getfd","arguments":{"fdname":"x"}}"#,
    r#"{"execute":"closefd","arguments":{"fdname":"x"}}"#,
    r#"{"exec-oob":"migrate-pause","id":3}"#,
    r#"{"exec-oob":"query-status","id":3}"#,
    r#"{"execute":"stop","exec-oob":"query-status","id":4}"#,
    r#"{"exec-oob":5}"#,
    r#"{"exec-oob":"migrate-recover","arguments":{"uri":"unix:/x"}}"#,
    r#"{"exec-oob":"migrate-recover"}"#,
    r#"{"exec-oob":"nope"}"#,
    r#"{"execute":"migrate-continue"}"#,
    r#"{"execute":"migrate-continue","arguments":{"state":"pre-switchover"}}"#,
    r#"{"execute":"migrate-continue","arguments":{"state":"x"}}"#,
    r#"{"execute":"migrate"}"#,
    r#"{"execute":"migrate","arguments":{"uri":5}}"#,
    r#"{"execute":"migrate","arguments":{"uri":"unix:/x","detach":5}}"#,
    r#"{"execute":"migrate","arguments":{"uri":"unix:/x","resume":true}}"#,
    r#"{"execute":"migrate","arguments":{"uri":"unix:/x","nope":5}}"#,
    r#"{"execute":"migrate","arguments":{"uri":"unix:/x","blk":true}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":{}}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[1]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[{}]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"main"}]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":{}}]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":{"transport":"nope"}}]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":{"transport":"socket"}}]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":{"transport":"socket","type":"unix"}}]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":{"transport":"socket","type":"unix","path":5}}]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":{"transport":"socket","type":"unix","path":"x","nope":1}}]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":{"transport":"socket","type":"inet","host":"x"}}]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":{"transport":"socket","type":"inet","host":"x","port":5}}]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"side","addr":{"transport":"socket","type":"inet","host":"x","port":"5"}}]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":{"transport":"file","filename":"x"}}]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":{"transport":"exec","args":"x"}}]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":{"transport":"exec","args":[3]}}]}}"#,
    r#"{"execute":"migrate","arguments":{"uri":"unix:/x","channels":[{"channel-type":"main","addr":{"transport":"file","filename":"x","offset":0}}]}}"#,
    r#"{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":{"transport":"file","filename":"x","offset":0}},{"channel-type":"main","addr":{"transport":"file","filename":"x","offset":0}}]}}"#,
    r#"{"execute":"migrate-set-capabilities"}"#,
    r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":5}}"#,
    r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[5]}}"#,
    r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"rdma","state":true}]}}"#,
    r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":5,"state":true}]}}"#,
    r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"xbzrle"}]}}"#,
    r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"xbzrle","state":1}]}}"#,
    r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"xbzrle","state":true,"x":1}]}}"#,
    r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"postcopy-ram","state":false}]}}"#,
    r#"{"execute":"migrate-set-parameters","arguments":{"downtime-limit":"x"}}"#,
    r#"{"execute":"migrate-set-parameters","arguments":{"downtime-limit":1.5}}"#,
    r#"{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":true}}"#,
    r#"{"execute":"migrate-set-parameters","arguments":{"multifd-compression":"x"}}"#,
    r#"{"execute":"migrate-set-parameters","arguments":{"multifd-compression":5}}"#,
    r#"{"execute":"migrate-set-parameters","arguments":{"tls-creds":5}}"#,
    r#"{"execute":"migrate-set-parameters","arguments":{"tls-creds":null}}"#,
    r#"{"execute":"migrate-set-parameters","arguments":{"nope":5}}"#,
    r#"{"execute":"migrate_continue"}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":"migrate_set_parameter block-bitmap-mapping 5"}}"#,
    r#"{"execute":"announce-self"}"#,
    r#"{"execute":"announce-self","arguments":{"initial":true}}"#,
    r#"{"execute":"announce-self","arguments":{"initial":50,"max":550,"rounds":5,"step":50}}"#,
    r#"{"execute":"query-dirty-rate"}"#,
    r#"{"execute":"query-dirty-rate","arguments":{"calc-time-unit":"millisecond"}}"#,
    r#"{"execute":"calc-dirty-rate"}"#,
    r#"{"execute":"calc-dirty-rate","arguments":{"calc-time":"x"}}"#,
    r#"{"execute":"calc-dirty-rate","arguments":{"calc-time":0}}"#,
    r#"{"execute":"calc-dirty-rate","arguments":{"calc-time":61}}"#,
    r#"{"execute":"calc-dirty-rate","arguments":{"calc-time":49,"calc-time-unit":"millisecond"}}"#,
    r#"{"execute":"calc-dirty-rate","arguments":{"calc-time":1,"sample-pages":1}}"#,
    r#"{"execute":"calc-dirty-rate","arguments":{"calc-time":1,"mode":"nope"}}"#,
    r#"{"execute":"calc-dirty-rate","arguments":{"calc-time":1,"mode":"dirty-ring"}}"#,
    r#"{"execute":"set-vcpu-dirty-limit"}"#,
    r#"{"execute":"cancel-vcpu-dirty-limit"}"#,
    r#"{"execute":"query-vcpu-dirty-limit"}"#,
    r#"{"execute":"human-monitor-command"}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":""}}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":"nope"}}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":"info nope"}}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":"info status"}}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":"info name"}}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":"info uuid"}}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":"migrate"}}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":"migrate_set_parameter downtime-limit"}}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":"migrate_set_parameter nope 5"}}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":"migrate_set_parameter downtime-limit 20"}}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":"migrate_set_capability nope on"}}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":"migrate_set_capability xbzrle maybe"}}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":"stop now"}}"#,
    r#"{"execute":"stop"}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":"info status"}}"#,
    r#"{"execute":"cont"}"#,
    r#"{"execute":"migrate_cancel"}"#,
    r#"{"execute":"query-migrate"}"#,
];

/// Capabilities that minivmm cannot switch off.
const ALWAYS_ON: [&str; 3] = ["events", "return-path", "mapped-ram"];

/// Arguments, and members of answers, that QEMU lacks.
const EXTENSIONS: &[&str] = &[
    "cont(force)",
    "migrate(copy-disk)",
    "migrate(keep-running)",
    "migrate(parameters)",
    "migrate(target-schema)",
    "migrate(to-qemu)",
    "migrate-set-parameters(aim)",
    "migrate-set-parameters(deadline)",
    "migrate-set-parameters(deadline-action)",
    "migrate-set-parameters(max-rounds)",
    "migrate-set-parameters(pause-budget)",
    "migrate-set-parameters(tls-pin)",
    "query-migrate-parameters → aim",
    "query-migrate-parameters → deadline",
    "query-migrate-parameters → deadline-action",
    "query-migrate-parameters → max-rounds",
    "query-migrate-parameters → pause-budget",
    "query-migrate-parameters → tls-pin",
    "query-migrate → disk",
    "query-migrate → downtime-parts",
    "query-migrate → expected-total-time",
    "query-migrate → guest-slowdown",
    "query-migrate → page-waits",
    "query-migrate → status = unacknowledged",
    "query-migrate → status = undecided",
    "query-migrate → takeover-parts",
    "migrate-continue(state = unacknowledged)",
    "migrate-continue(state = undecided)",
    "MIGRATION(status = unacknowledged)",
    "MIGRATION(status = undecided)",
];

/// Commands that QEMU lacks.
const OWN: &[&str] = &[
    "block-dirty-bitmap-ranges",
    "dump-schema",
    "query-migrate-heat",
    "query-migrate-rounds",
    "query-migrate-sections",
];

#[test]
fn answers_and_schema_are_those_of_a_running_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut qemu) = Qemu::start(dir.path()) else { return };
    let (handle, _shared, _seen) = running();
    let mut test_client = TestClient::new(&handle);
    for line in LINES {
        assert_eq!(test_client.send(format!("{line}\n").as_bytes()), [qemu.send(line)], "to {line}");
    }
    let mut both = |command: &str| {
        let line = json!({"execute": command}).to_string();
        (test_client.send(line.as_bytes()).remove(0)["return"].take(), qemu.send(&line)["return"].take())
    };

    let (ours, theirs) = both("query-migrate-capabilities");
    let names = |list: &Value| list.as_array().unwrap().iter().map(|one| one["capability"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    let on: Vec<_> = ours.as_array().unwrap().iter().filter(|one| one["state"] == true).collect();
    assert!(
        on.iter().all(|one| ALWAYS_ON.contains(&one["capability"].as_str().unwrap())) && on.len() == ALWAYS_ON.len(),
        "{on:?}"
    );

    let (ours, theirs) = both("query-qmp-schema");
    let (ours, theirs) = (Schema::new(&ours), Schema::new(&theirs));
    let mut beyond = BTreeSet::new();
    for (name, entity) in
        ours.0.iter().filter(|(_, entity)| entity["meta-type"] == "command" || entity["meta-type"] == "event")
    {
        let Some(real) = theirs.0.get(name) else {
            assert!(OWN.contains(&name.as_str()), "QEMU has no '{name}'");
            continue;
        };
        assert_eq!(entity["meta-type"], real["meta-type"], "{name}");
        assert_eq!(entity.get("allow-oob"), real.get("allow-oob"), "{name}");
        let (given, taken) = (ours.flat(&entity["arg-type"]), theirs.flat(&real["arg-type"]));
        beyond.extend(missing(&given, &taken).into_iter().map(|what| format!("{name}({what})")));
        if entity["meta-type"] == "command" {
            let (given, taken) = (ours.flat(&entity["ret-type"]), theirs.flat(&real["ret-type"]));
            beyond.extend(missing(&given, &taken).into_iter().map(|what| format!("{name} → {what}")));
        }
    }
    let named: BTreeSet<_> = EXTENSIONS.iter().map(|&what| what.to_owned()).collect();
    assert_eq!(beyond, named, "members that QEMU lacks, and EXTENSIONS");

    // Each parameter of QEMU can be set, or is refused with a reason.
    let (_, theirs) = both("query-migrate-parameters");
    for (name, value) in theirs.as_object().unwrap() {
        let line = json!({"execute": "migrate-set-parameters", "arguments": {name: value}}).to_string();
        let answer = test_client.send(line.as_bytes()).remove(0);
        let desc = answer["error"]["desc"].as_str().unwrap_or_default();
        let reason = format!("Parameter '{name}' is not supported: ");
        assert!(answer.get("return").is_some() || desc.starts_with(&reason), "{name}: {answer}");
    }
}

/// Lists what `ours` has and `theirs` lacks; of a missing member, nothing within it.
fn missing(ours: &BTreeSet<String>, theirs: &BTreeSet<String>) -> Vec<String> {
    let all: Vec<_> = ours.difference(theirs).collect();
    let within =
        |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with(['.', ':', ' ', '[']));
    let outermost = all.iter().filter(|one| !all.iter().any(|other| within(one, other)));
    outermost.map(|one| one.trim_start_matches('.').to_owned()).collect()
}

/// A schema, indexed by its names.
struct Schema(BTreeMap<String, Value>);

impl Schema {
    fn new(schema: &Value) -> Self {
        let named = schema.as_array().unwrap().iter();
        Self(named.map(|entity| (entity["name"].as_str().unwrap().to_owned(), entity.clone())).collect())
    }

    /// Lists everything that a value of the type may be: each member with its path, and with its type or its possible words.
    fn flat(&self, name: &Value) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        self.add(name, "", &mut all);
        all
    }

    fn add(&self, name: &Value, path: &str, all: &mut BTreeSet<String>) {
        let entity = &self.0[name.as_str().unwrap()];
        let each = |part: &str| entity[part].as_array().cloned().unwrap_or_default();
        match entity["meta-type"].as_str().unwrap() {
            "builtin" => drop(all.insert(format!("{path}: {}", entity["json-type"].as_str().unwrap()))),
            "enum" => {
                all.extend(each("members").iter().map(|word| format!("{path} = {}", word["name"].as_str().unwrap())))
            }
            "array" => self.add(&entity["element-type"], &format!("{path}[]"), all),
            "alternate" => each("members").iter().for_each(|one| self.add(&one["type"], path, all)),
            _ => {
                // QEMU's own types nest in themselves.
                if path.len() > 200 {
                    return;
                }
                for member in each("members") {
                    let within = format!("{path}.{}", member["name"].as_str().unwrap());
                    all.insert(within.clone());
                    self.add(&member["type"], &within, all);
                }
                each("variants").iter().for_each(|case| self.add(&case["type"], path, all));
            }
        }
    }
}
