//! Migrations to and from a real QEMU over a unix socket, with the return path: QEMU is the oracle for the order of the stream,
//! the answers and the pages.
#![cfg(feature = "engine")]

#[cfg(feature = "tls")]
#[expect(dead_code, reason = "those of tests/channels/tls, which makes them in more ways")]
#[path = "../channels/tls/certificates.rs"]
mod certificates;
mod pages;
#[path = "../engine/pair/mod.rs"]
mod pair;
#[cfg(feature = "tools")]
mod postcopy;
#[cfg(feature = "tools")]
mod preempt;
#[cfg(feature = "tools")]
mod recovery;
mod snapshot;
mod xbzrle;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use pair::flash::Flash;
use serde_json::{Value, json};
use vmstate::channel::{Channel, Listener, MonotonicClock, SocketChannel};
use vmstate::codec::{Reader, Strictness, Writer};
use vmstate::error::{Error, ErrorKind, Result};
use vmstate::migrate::destination::{self, Arrival, DestinationOptions, Incoming};
use vmstate::migrate::source::{self, Departure, Outgoing, SourceOptions};
use vmstate::migrate::{ArrivalReport, Claim, Control, Machine, SourcePhase};
use vmstate::ram::{DirtyLog, GuestRam, RamBlock};
use vmstate::schema::{Description, MaybeStatic};
use vmstate::section::{Section, Sections};
use vmstate_lab::wait::{TIMEOUT, find};

const QEMU: &str = "qemu-system-x86_64";
/// RAM blocks of `-M microvm,acpi=on -m 16M`.
const BLOCKS: [(&str, u64); 5] = [
    ("microvm.ram", 16 << 20),
    ("/rom@etc/acpi/tables", 0x1000),
    ("pc.bios", 0x20000),
    ("/rom@etc/table-loader", 0x1000),
    ("/rom@etc/acpi/rsdp", 0x1000),
];

/// A QEMU that does not run its guest, with its QMP connection.
struct Qemu {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Qemu {
    /// The migration's final figures, once it has completed.
    fn await_completed(&mut self) -> Value {
        find("end of QEMU's migration", || {
            let status = self.execute("query-migrate", json!({}));
            assert_ne!(status["status"], "failed", "{status}");
            (status["status"] == "completed").then_some(status)
        })
    }

    fn start(more: &[&str]) -> Self {
        let machine = "microvm,acpi=on,pcie=off,ioapic2=off,accel=tcg";
        let mut child = Command::new(QEMU)
            .args(["-M", machine, "-m", "16M", "-S", "-display", "none", "-nodefaults", "-no-user-config"])
            .args(["-qmp", "stdio"])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut qemu = Self { child, input, output };
        qemu.execute("qmp_capabilities", json!({}));
        qemu
    }

    /// Checks that the guest memory below 640 KiB, where there is no firmware, equals that of `ram`. QEMU dumps it below
    /// `directory`.
    fn check_low_memory(&mut self, ram: &Ram, directory: &Path) {
        let dump = directory.join("dump");
        self.execute("pmemsave", json!({"val": 0, "size": 0xa0000, "filename": dump}));
        let dumped = std::fs::read(&dump).unwrap();
        assert!(dumped == ram.bytes.lock().unwrap()[0][..0xa0000]);
    }

    /// Switches migration capabilities on.
    fn switch_on(&mut self, names: &[&str]) {
        let capabilities: Vec<_> = names.iter().map(|name| json!({"capability": name, "state": true})).collect();
        self.execute("migrate-set-capabilities", json!({"capabilities": capabilities}));
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Value {
        writeln!(self.input, "{}", json!({"execute": command, "arguments": arguments})).unwrap();
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "QEMU has closed its QMP");
            let mut message: Value = serde_json::from_str(&line).unwrap();
            if let Some(error) = message.get("error") {
                panic!("{command}: {error}");
            }
            if let Some(answer) = message.get_mut("return") {
                return answer.take();
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Ram {
    blocks: Vec<RamBlock>,
    bytes: Mutex<Vec<Vec<u8>>>,
}

impl Ram {
    /// Memory with a number in every third page of the first block, each at another offset.
    fn filled() -> Self {
        let ram = Self::new();
        for page in (0..4096_u64).step_by(3) {
            ram.write(0, page * 4096 + page % 4000, &page.to_be_bytes()).unwrap();
        }
        ram
    }

    fn new() -> Self {
        let blocks: Vec<_> = BLOCKS.iter().map(|&(name, len)| RamBlock { name: name.into(), len }).collect();
        let bytes = Mutex::new(blocks.iter().map(|block| vec![0; block.len as usize]).collect());
        Self { blocks, bytes }
    }
}

impl GuestRam for Ram {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(&self.bytes.lock().unwrap()[block][offset as usize..][..into.len()]);
        Ok(())
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        self.bytes.lock().unwrap()[block][offset as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        self.write(block, offset, &[0; 4096])
    }
}

/// A guest that writes nothing.
struct Still;

impl DirtyLog for Still {
    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    fn sync(&mut self, _block: usize, _words: &mut [u64]) -> Result<()> {
        Ok(())
    }

    fn clear(&mut self, _block: usize, _first: u64, _count: u64) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}
}

#[derive(Default)]
struct Vm {
    running: bool,
    /// The time for the pause that it announces.
    prepares: Duration,
}

impl Machine for Vm {
    fn prepare(&mut self, _go_on: &dyn Fn() -> bool) -> Result<Duration> {
        Ok(self.prepares)
    }

    fn pause(&mut self, _within: Duration) -> Result<()> {
        self.running = false;
        Ok(())
    }

    fn loaded(&mut self) -> Result<()> {
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        self.running = true;
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        Ok(())
    }

    fn claim(&mut self) -> Result<Claim> {
        Ok(Claim::Undecidable)
    }
}

/// A device of QEMU whose size only is counted: its body ends where a footer comes before the next section or the end.
#[derive(Default)]
struct Opaque {
    loads: usize,
    /// True for the first section, which has number 0.
    is_first: bool,
}

static OPAQUE: Description =
    Description::new(MaybeStatic::Static("opaque"), 99, 0, MaybeStatic::Static(&[]), MaybeStatic::Static(&[]));

impl Section for Opaque {
    fn description(&self) -> &'static Description {
        &OPAQUE
    }

    fn save(&mut self, _out: &mut Writer) -> Result<()> {
        Ok(())
    }

    fn load(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<()> {
        // A register of a running guest may end in 0x7e, followed by zeros.
        let footer =
            |bytes: &[u8]| matches!(bytes, [0x7e, 0, 0, 0, number, 0 | 4 | 8] if (*number == 0) == self.is_first);
        match input.rest().windows(6).position(footer) {
            Some(length) => input.take(length)?,
            None => return Err(Error::new(ErrorKind::Incomplete, "no footer yet")),
        };
        self.loads += 1;
        Ok(())
    }
}

/// The devices of QEMU's machine.
fn devices() -> Vec<(&'static str, u32, Opaque)> {
    [
        ("timer", 0),
        ("fw_cfg", 0),
        ("cpu_common", 0),
        ("cpu", 0),
        ("kvm-tpr-opt", 0),
        ("apic", 0),
        ("ioapic", 0),
        ("acpi-ged", 0),
        ("i8259", 0),
        ("i8259", 1),
        ("i8254", 0),
        ("mc146818rtc", 0),
        ("globalstate", 0),
    ]
    .map(|(name, instance)| (name, instance, Opaque { is_first: name == "timer", ..Opaque::default() }))
    .into()
}

/// Returns true, with a message, if there is no suitable QEMU here. 9.1 is the first whose `migrate-incoming` supports
/// `exit-on-error`; in 7.2, `pc.bios` has another size, too.
fn skipped() -> bool {
    use vmstate_lab::{qemu, skip};
    qemu::at_least(qemu::Version(9, 1)).map_err(skip::skip).is_err()
}

#[test]
fn qemu_receives_our_pages() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let mut qemu = Qemu::start(&["-incoming", &format!("unix:{}", socket.display())]);
    // The socket's file exists before QEMU listens.
    let mut channel = find("listener", || SocketChannel::connect_unix(&socket, TIMEOUT, &|| true).ok());
    let ram = Ram::filled();
    let (mut machine, control) = (Vm { running: true, ..Vm::default() }, Control::default());
    control.set_downtime_limit(TIMEOUT);
    let (flash, mut sections) = (Flash::new(3), Sections::new());
    sections.add_iterative(flash.clone()).unwrap().beyond_qemu();
    let departure = depart(&mut channel, &mut machine, &mut sections, &ram, &control);
    assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
    assert!(!machine.running);
    assert_eq!(flash.state(), (false, 0), "QEMU has no such section: it is not even set up");
    let status = qemu.execute("query-migrate", json!({}));
    assert_eq!(status["status"], "completed", "{status}");
    qemu.check_low_memory(&ram, directory.path());
}

/// A section in parts that its author did not withhold from a QEMU. QEMU refuses its first bytes, which come before the first
/// page.
#[test]
fn qemu_refuses_a_section_in_parts_that_it_lacks_before_the_first_page() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let mut qemu = Qemu::start(&["-incoming", "defer"]);
    let uri = format!("unix:{}", socket.display());
    qemu.execute("migrate-incoming", json!({"uri": uri, "exit-on-error": false}));
    let mut channel = find("listener", || SocketChannel::connect_unix(&socket, TIMEOUT, &|| true).ok());
    let mut machine = Vm { running: true, ..Vm::default() };
    let (flash, mut sections) = (Flash::new(3), Sections::new());
    sections.add_iterative(flash.clone()).unwrap();
    let departure = depart(&mut channel, &mut machine, &mut sections, &Ram::new(), &Control::default());
    assert_eq!(departure.phase, SourcePhase::Failed);
    assert!(machine.running && departure.report.rounds.is_empty());
    assert_eq!((departure.report.pages.normal, departure.report.pages.zero), (0, 0));
    assert_eq!(flash.state(), (false, 1));
    // Status 1 is the only reason that a QEMU sends.
    let error = departure.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Peer);
    assert_eq!(error.to_string(), "the destination refused the guest (status 1): its own log says why");
    find("failure of QEMU's migration", || {
        let status = qemu.execute("query-migrate", json!({}));
        assert_ne!(status["status"], "completed", "{status}");
        (status["status"] == "failed").then_some(())
    });
}

#[test]
fn we_take_qemus_guest_and_qemu_completes() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let listener = Listener::unix(&socket).unwrap();
    let mut qemu = Qemu::start(&[]);
    qemu.switch_on(&["return-path"]);
    qemu.execute("migrate", json!({"uri": format!("unix:{}", socket.display())}));
    let (ram, mut machine) = (Ram::new(), Vm::default());
    let mut devices = devices();
    let mut sections = Sections::new();
    for (name, instance, device) in &mut devices {
        sections.register(name, *instance, device as &mut dyn Section).unwrap();
    }
    let arrival = arrive(&listener, &mut machine, &mut sections, &ram).unwrap();
    drop(sections);
    assert!(machine.running);
    let pages = BLOCKS.iter().map(|(_, len)| len / 4096).sum::<u64>();
    assert!(arrival.pages.normal + arrival.pages.zero >= pages, "{arrival:?}");
    // The firmware is there: its last 16 bytes contain the reset vector's far jump.
    assert_eq!(ram.bytes.lock().unwrap()[2][0x1fff0], 0xea);
    for (name, instance, device) in devices {
        assert_eq!(device.loads, 1, "{name}/{instance}");
    }
    qemu.await_completed();
}

/// Neither accepts a ping that could not be answered.
#[test]
fn a_ping_needs_a_way_for_its_answer() {
    if skipped() {
        return;
    }
    let stream = b"QEVM\0\0\0\x03\x07\0\0\0\x07microvm\x08\0\x02\0\x04\0\0\0\x01\0";
    let directory = tempfile::tempdir().unwrap();
    let (file, socket) = (directory.path().join("stream"), directory.path().join("socket"));
    std::fs::write(&file, stream).unwrap();
    let mut qemu = Qemu::start(&["-incoming", "defer"]);
    qemu.execute("migrate-incoming", json!({"uri": format!("file:{}", file.display()), "exit-on-error": false}));
    find("failure of QEMU's migration", || {
        let status = qemu.execute("query-migrate", json!({}));
        assert_ne!(status["status"], "completed", "{status}");
        (status["status"] == "failed").then_some(())
    });

    let listener = Listener::unix(&socket).unwrap();
    let mut source = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    source.write_all(stream).unwrap();
    let error = arrive(&listener, &mut Vm::default(), &mut Sections::new(), &Ram::new()).unwrap_err();
    assert_eq!(error.to_string(), "at 0x14: ping 1 came before the return path was opened");
}

fn depart(
    channel: &mut dyn Channel,
    machine: &mut Vm,
    sections: &mut Sections<'_>,
    ram: &Ram,
    control: &Control,
) -> Departure {
    let clock = &MonotonicClock::new();
    source::run(Outgoing { channel, clock, machine, sections, ram, log: &mut Still }, &long_timeouts(), control)
}

/// Receives the guest of the first source that connects.
fn arrive(
    listener: &Listener,
    machine: &mut Vm,
    sections: &mut Sections<'_>,
    ram: &dyn GuestRam,
) -> Result<ArrivalReport> {
    taken_in(&mut listener.accept(TIMEOUT)?, machine, sections, ram).into_result()
}

fn taken_in(channel: &mut dyn Channel, machine: &mut Vm, sections: &mut Sections<'_>, ram: &dyn GuestRam) -> Arrival {
    let clock = &MonotonicClock::new();
    let incoming = Incoming { channel, clock, machine, sections, ram };
    destination::run(incoming, &lenient(), &Control::default())
}

fn long_timeouts() -> SourceOptions {
    let mut options = SourceOptions::new("microvm");
    options.answer = TIMEOUT;
    options
}

fn lenient() -> DestinationOptions {
    let mut options = DestinationOptions::new("microvm");
    options.strictness = Strictness::QemuCompatible;
    options
}
