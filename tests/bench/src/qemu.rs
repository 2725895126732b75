//! The same memory from QEMU to QEMU, two machines that do not run.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use minivmm::control::Client;
use serde_json::{Value, json};

use crate::case::{Transport, Variant};
use crate::measured::{Taken, processor_time};
use crate::memory::Memory;

const LONGEST: Duration = Duration::from_secs(60);
const PROGRAM: &str = "qemu-system-x86_64";

/// True if there is a QEMU here.
pub(crate) fn is_there() -> bool {
    Command::new(PROGRAM).arg("--version").output().is_ok()
}

/// A QEMU that is ended with its owner.
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
    /// A `microvm` that does not run, with all of its memory touched.
    fn start(control: &Path, mib: u64, backend: &str, extra: &[&str]) -> Self {
        let _ = std::fs::remove_file(control);
        let mut command = Command::new(PROGRAM);
        command.args(["-M", "microvm,memory-backend=ram", "-accel", "tcg", "-S", "-nodefaults", "-display", "none"]);
        command.args(["-m", &format!("{mib}M"), "-qmp", &format!("unix:{},server=on,wait=off", control.display())]);
        command.args(["-object", &format!("{backend},id=ram,size={mib}M,prealloc=on")]).args(extra);
        let mut process = command.stdin(Stdio::null()).spawn().expect("QEMU");
        let begun = Instant::now();
        loop {
            match Client::connect(control) {
                Ok(qmp) => return Self { process, qmp },
                Err(error) if begun.elapsed() > LONGEST => {
                    let _ = process.kill();
                    panic!("QEMU does not come up: {error}");
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn say(&mut self, command: &str, arguments: Value) -> Value {
        self.qmp.execute(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    fn choose(&mut self, variant: Variant) {
        let on = |capability: &str, state| json!({ "capability": capability, "state": state });
        let capabilities = [on("return-path", true), on("multifd", variant.page_channels().is_some())];
        self.say("migrate-set-capabilities", json!({ "capabilities": capabilities }));
        self.say(
            "migrate-set-parameters",
            json!({ "max-bandwidth": 1_u64 << 40, "multifd-channels": variant.channels }),
        );
    }

    fn processor_time(&self) -> Duration {
        processor_time(self.process.id())
    }
}

/// Migrates the contents of the file, by QEMU's own clock.
pub(crate) fn run(memory: &Memory, transport: Transport, variant: Variant) -> Taken {
    let (mib, directory) = (memory.mib(), &memory.directory);
    let uri = match transport {
        Transport::Unix => format!("unix:{}", directory.join("migration").display()),
        Transport::Tcp => {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
            format!("tcp:{}", free.expect("a free port"))
        }
    };
    let mut to = Qemu::start(&directory.join("to"), mib, "memory-backend-ram", &["-incoming", "defer"]);
    let filled = format!("memory-backend-file,share=off,mem-path={}", memory.file.display());
    let mut from = Qemu::start(&directory.join("from"), mib, &filled, &[]);
    to.choose(variant);
    from.choose(variant);
    to.say("migrate-incoming", json!({ "uri": uri }));
    let before = from.processor_time() + to.processor_time();
    from.say("migrate", json!({ "uri": uri }));
    let begun = Instant::now();
    loop {
        let state = from.say("query-migrate", json!({}));
        match state["status"].as_str() {
            Some("completed") => {
                let time = Duration::from_millis(state["total-time"].as_u64().expect("a time"));
                return Taken { time, cpu: from.processor_time() + to.processor_time() - before };
            }
            Some("failed") => panic!("QEMU's migration failed: {state}"),
            _ if begun.elapsed() > LONGEST => panic!("QEMU's migration does not end: {state}"),
            _ => thread::sleep(Duration::from_millis(5)),
        }
    }
}
