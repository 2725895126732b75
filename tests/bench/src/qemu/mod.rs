//! Migrates the same memory from QEMU to QEMU, between two machines that do not run.

mod changed;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use minivmm::control::Client;
use serde_json::{Value, json};

use crate::case::{Data, Encoding, Transport, Variant};
use crate::measured::{TurnResult, processor_time};
use crate::memory::{MIB, Memory};

const LONGEST: Duration = Duration::from_secs(60);
/// Time between two queries of the migration.
const INTERVAL: Duration = Duration::from_millis(1);
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// The version of QEMU, if it is installed.
pub(crate) fn version() -> Option<String> {
    let output = Command::new(PROGRAM).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace().nth(3).map(str::to_owned)
}

/// A QEMU that is ended when dropped.
#[derive(Debug)]
struct Qemu {
    process: Child,
    qmp: Client,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Qemu {
    /// Starts a `microvm` that does not run.
    fn start(control: &Path, memory: &Memory, backend: &str, extra: &[&str]) -> Self {
        let _ = std::fs::remove_file(control);
        let mib = memory.len / MIB;
        let touched = if memory.data == Data::Untouched { "off" } else { "on" };
        let mut command = Command::new(PROGRAM);
        command.args(["-M", "microvm,memory-backend=ram", "-accel", "tcg", "-S", "-nodefaults", "-display", "none"]);
        command.args(["-m", &format!("{mib}M"), "-qmp", &format!("unix:{},server=on,wait=off", control.display())]);
        command.args(["-object", &format!("{backend},id=ram,size={mib}M,prealloc={touched}")]).args(extra);
        let mut process = command.stdin(Stdio::null()).spawn().expect("QEMU");
        let begun = Instant::now();
        loop {
            match Client::connect(control) {
                Ok(qmp) => return Self { process, qmp },
                Err(error) if begun.elapsed() > LONGEST => {
                    let _ = process.kill();
                    panic!("QEMU does not start: {error}");
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Value {
        self.qmp.execute(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Waits until the migration is in one of these states; returns the answer of `query-migrate`.
    fn wait(&mut self, states: &[&str]) -> Value {
        let begun = Instant::now();
        loop {
            let figures = self.execute("query-migrate", json!({}));
            match figures["status"].as_str() {
                Some(state) if states.contains(&state) => return figures,
                Some("failed") => panic!("QEMU's migration failed: {figures}"),
                _ if begun.elapsed() > LONGEST => panic!("QEMU's migration does not reach {states:?}: {figures}"),
                _ => thread::sleep(INTERVAL),
            }
        }
    }

    fn processor_time(&self) -> Duration {
        processor_time(self.process.id())
    }
}

/// Two machines, one of which waits for the other's guest.
#[derive(Debug)]
struct Pair {
    from: Qemu,
    to: Qemu,
    uri: String,
}

impl Pair {
    /// Starts both machines as `variant` says. With `changes`, the memory is shared with the file, so that the file's
    /// changes are the source's, and the source stops before the switch-over.
    fn start(memory: &Memory, transport: Transport, variant: Variant, changes: bool, extra: &[&str]) -> Self {
        let directory = &memory.directory;
        let uri = match transport {
            Transport::Unix => format!("unix:{}", directory.join("migration").display()),
            Transport::Tcp | Transport::Tls => {
                let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
                format!("tcp:{}", free.expect("a free port"))
            }
        };
        let filled = match memory.data {
            Data::Untouched => "memory-backend-ram".into(),
            _ => {
                let share = if changes { "on" } else { "off" };
                format!("memory-backend-file,share={share},mem-path={}", memory.file.display())
            }
        };
        let encrypted = transport == Transport::Tls;
        let credentials = |endpoint| {
            let directory = memory.certificates();
            format!("tls-creds-x509,id=tls,dir={},endpoint={endpoint},verify-peer=on", directory.display())
        };
        let [server, client] = ["server", "client"].map(|end| if encrypted { credentials(end) } else { String::new() });
        let secured = |credentials| if encrypted { vec!["-object", credentials] } else { Vec::new() };
        let waiting = [&["-incoming", "defer"], &secured(&*server)[..]].concat();
        let to = Qemu::start(&directory.join("to"), memory, "memory-backend-ram", &waiting);
        let from = Qemu::start(&directory.join("from"), memory, &filled, &[extra, &secured(&client)].concat());
        let mut pair = Self { from, to, uri };
        for qemu in [&mut pair.from, &mut pair.to] {
            let on = |capability: &str, state| json!({ "capability": capability, "state": state });
            let capabilities = [
                on("return-path", true),
                on("multifd", variant.page_channels().is_some()),
                on("xbzrle", variant.encoding == Encoding::Xbzrle),
                on("pause-before-switchover", changes),
            ];
            qemu.execute("migrate-set-capabilities", json!({ "capabilities": capabilities }));
            let compression = if variant.encoding == Encoding::Zstd { "zstd" } else { "none" };
            let parameters = json!({
                "max-bandwidth": 1_u64 << 40,
                "multifd-channels": variant.channels,
                "multifd-compression": compression,
                "multifd-zstd-level": 1,
                "tls-creds": if encrypted { "tls" } else { "" },
                "tls-hostname": if encrypted { "localhost" } else { "" },
                "xbzrle-cache-size": (2 * memory.len).next_power_of_two(),
            });
            qemu.execute("migrate-set-parameters", parameters);
        }
        let uri = json!({ "uri": pair.uri });
        pair.to.execute("migrate-incoming", uri);
        pair
    }

    fn migrate(&mut self) {
        let uri = json!({ "uri": self.uri });
        self.from.execute("migrate", uri);
    }

    fn processor_time(&self) -> Duration {
        self.from.processor_time() + self.to.processor_time()
    }
}

/// A path with no file: the socket of an earlier machine is removed.
fn fresh(memory: &Memory, name: &str) -> PathBuf {
    let path = memory.directory.join(name);
    let _ = std::fs::remove_file(&path);
    path
}

/// Migrates the content of the file; the time is QEMU's own. Changed pages are measured from their change on.
pub(crate) fn run(memory: &Memory, transport: Transport, variant: Variant) -> TurnResult {
    if memory.data == Data::Changed {
        return changed::run(memory, transport, variant);
    }
    let mut pair = Pair::start(memory, transport, variant, false, &[]);
    let before = pair.processor_time();
    pair.migrate();
    let figures = pair.from.wait(&["completed"]);
    let time = Duration::from_millis(figures["total-time"].as_u64().expect("a time"));
    TurnResult { time, cpu: pair.processor_time() - before, bytes: transferred(&figures) }
}

fn transferred(figures: &Value) -> u64 {
    figures["ram"]["transferred"].as_u64().expect("a count")
}
