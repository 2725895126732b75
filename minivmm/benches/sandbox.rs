//! Cost of the sandbox: the same work with `--sandbox on` and `off`, alternating.
//!
//! `cargo bench -p minivmm --bench sandbox [-- REPEATS]`. Needs a `/dev/kvm`. The measure is processor time, the least of the
//! repeats: hosts are noisy, and only figures of one run can be compared.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use minivmm::control::Client;
use minivmm::devices::virtio::blk::{Blk, Image};
use minivmm::devices::virtio::net::{Backend, Net, Offloads};
use minivmm::sandbox::{self, OnViolation};
use nix::sys::resource::{UsageWho, getrusage};
use nix::time::ClockId;
use nix::unistd::Pid;
use serde_json::json;
use vm_memory::{Bytes, GuestAddress};
use vmstate_lab::tiny;

#[allow(dead_code, unreachable_pub)] // it is the tests'
#[path = "../tests/virtio/driver.rs"]
mod driver;

use driver::{BUFFERS, Driver, memory};

const LONGEST: Duration = Duration::from_secs(120);
/// Guest accesses that exit to minivmm.
const EXITS: u32 = 20_000;
const REQUESTS: u32 = 2_000;
/// Memory of the migrated guest.
const MIB: u64 = 256;
/// Environment variable that names the work of a child process.
const WORK: &str = "MINIVMM_BENCH_WORK";

/// A work: its name, a function that returns microseconds of processor time with or without the sandbox, and the number of
/// units.
type Work = (&'static str, fn(bool) -> f64, f64);

/// The first work is also a part of the next two.
const WORKS: [Work; 6] = [
    ("start and end, a machine", |on| machine(&exits(&[0xec], 1), on), 1.0),
    ("port read, an exit", |on| machine(&exits(&[0xec], EXITS), on), EXITS as f64),
    ("register read, an exit", |on| machine(&exits(&[0x8a, 0x03], EXITS), on), EXITS as f64),
    ("disk, a request", |on| in_a_process("disk", on), REQUESTS as f64),
    ("card, two frames", |on| in_a_process("card", on), REQUESTS as f64),
    ("migration, a MiB", migration, MIB as f64),
];

fn main() {
    match std::env::var(WORK).as_deref() {
        Ok("disk") => return println!("{}", disk()),
        Ok("card") => return println!("{}", card()),
        _ => {}
    }
    // Cargo adds `--bench`.
    let repeats = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(20);
    println!("{:26} {:>10} {:>10} {:>10}", "processor time, us", "off", "on", "on : off");
    let mut start = [0.0; 2];
    for (number, (what, work, units)) in WORKS.into_iter().enumerate() {
        let mut least = [f64::MAX; 2];
        for _ in 0..repeats {
            for on in [false, true] {
                let place = &mut least[usize::from(on)];
                *place = place.min(work(on));
            }
        }
        match number {
            0 => start = least,
            1 | 2 => (0..2).for_each(|on| least[on] -= start[on]),
            _ => {}
        }
        let [off, on] = least.map(|least| least / units);
        println!("{what:26} {off:10.2} {on:10.2} {:10.3}", on / off);
    }
}

/// Makes a guest that does `access` `count` times and powers off. `%dx` holds the line status register of the serial port,
/// `%ebx` the first register of a virtio window.
fn exits(access: &[u8], count: u32) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xfd, 0x03, 0xbb]; // mov $0x3fd, %dx; mov $0xfeb00e00, %ebx
    code.extend(0xfeb0_0e00_u32.to_le_bytes());
    code.push(0xb9); // mov $count, %ecx
    code.extend(count.to_le_bytes());
    code.extend(access);
    code.extend([0xff, 0xc9, 0x75, (0xfc - access.len()) as u8]); // dec %ecx; jnz to the access
    code.push(0xbb); // mov $0xfea00200, %ebx
    code.extend(0xfea0_0200_u32.to_le_bytes());
    code.extend([0xc6, 0x03, 0x34, 0xeb, 0xfb]); // again: movb $0x34, (%ebx); jmp again
    code
}

fn sandbox(on: bool) -> [&'static str; 2] {
    ["--sandbox", if on { "on" } else { "off" }]
}

/// Measures the processor time of a machine from its start to its end.
fn machine(code: &[u8], on: bool) -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    let [kernel, disk] = ["kernel", "disk"].map(|name| folder.path().join(name));
    let mut image = tiny::bzimage();
    // The 64-bit entry point is 512 bytes after the setup code.
    image[1024 + 512..][..code.len()].copy_from_slice(code);
    std::fs::write(&kernel, image).expect("a kernel");
    std::fs::write(&disk, [0; 4096]).expect("a disk");
    let before = of_children();
    let status = Command::new(env!("CARGO_BIN_EXE_minivmm"))
        .args(["run", "--memory", "16M", "--serial", "none", "--kernel"])
        .arg(&kernel)
        .arg("--disk")
        .arg(&disk)
        .args(sandbox(on))
        .stdin(Stdio::null())
        .status()
        .expect("minivmm");
    assert!(status.success(), "{status}");
    microseconds(of_children() - before)
}

fn of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the times of children");
    let all = usage.user_time() + usage.system_time();
    Duration::from_micros(all.tv_sec() as u64 * 1_000_000 + all.tv_usec() as u64)
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Runs a work in a child process of this program, and returns its result.
fn in_a_process(work: &str, on: bool) -> f64 {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    // Confined threads open no files, as further arenas would.
    command.env(WORK, work).env("MALLOC_ARENA_MAX", "1").args(on.then_some("on"));
    let output = command.stderr(Stdio::inherit()).output().expect("this program");
    assert!(output.status.success(), "{}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a time")
}

/// Arms the sandbox in a child process, if it is wanted.
fn arm() {
    if std::env::args().any(|argument| argument == "on") {
        sandbox::arm(OnViolation::Kill).expect("a sandbox");
    }
}

/// Measures the device thread's time for requests of 4 KiB, half of them reads.
fn disk() -> f64 {
    arm();
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(1 << 20).expect("a disk");
    let image = Image::open(file.path(), false).expect("an image");
    let mut driver = Driver::named("disk", Blk::new(Arc::new(image)), memory());
    driver.start(0);
    let before = of_thread("disk");
    for number in 0..REQUESTS {
        let reads = number % 2 == 0;
        driver.memory.write_obj(u64::from(!reads), GuestAddress(BUFFERS)).expect("a header");
        driver.request(0, &[(BUFFERS, 16, false), (BUFFERS + 4096, 4096, reads), (BUFFERS + 512, 1, true)]);
    }
    microseconds(of_thread("disk") - before)
}

/// One end of a socket pair, with the operations of a tap.
struct Network(UnixDatagram);

impl Backend for Network {
    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
    fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(&self.0, frame)?)
    }
    fn send(&self, frame: &[u8]) -> io::Result<()> {
        Ok(nix::unistd::write(&self.0, frame).map(drop)?)
    }
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }
    fn set_offloads(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }
}

/// Measures the device thread's time for frames of 1500 bytes each way.
fn card() -> f64 {
    const LEN: u32 = 12 + 1500;
    arm();
    let (ours, theirs) = UnixDatagram::pair().expect("a network");
    ours.set_nonblocking(true).expect("a network that is not waited for");
    let mut driver = Driver::named("card", Net::new(Network(ours), [2, 0, 0, 0, 0, 1]), memory());
    driver.start(0);
    let mut frame = vec![0; LEN as usize];
    let before = of_thread("card");
    for _ in 0..REQUESTS {
        driver.request(1, &[(BUFFERS, LEN, false)]);
        theirs.recv(&mut frame).expect("a frame");
        driver.queues[0].offer(&[(BUFFERS + 4096, LEN, true)]);
        theirs.send(&frame).expect("room for a frame");
        driver.wait(0);
    }
    microseconds(of_thread("card") - before)
}

/// Returns the processor time of the thread with this name.
fn of_thread(name: &str) -> Duration {
    let mut tasks = std::fs::read_dir("/proc/self/task").expect("threads").map(|task| task.expect("a thread").path());
    let task = tasks.find(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name));
    // Documentation/scheduler/sched-stats.rst: nanoseconds on the processor come first.
    let stat = std::fs::read_to_string(task.expect("the device's thread").join("schedstat")).expect("its times");
    Duration::from_nanos(stat.split(' ').next().and_then(|time| time.parse().ok()).expect("a time"))
}

/// A machine and its client; dropping it ends the process.
struct Machine(Child, Client);

impl Machine {
    fn start(folder: &Path, name: &str, arguments: &[&str]) -> Self {
        let control = folder.join(name);
        let child = Command::new(env!("CARGO_BIN_EXE_minivmm"))
            .args(["run", "--memory", &format!("{}M", MIB + 16), "--serial", "stdio"])
            .args(["--control", &format!("unix:{}", control.display())])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("minivmm");
        let begun = Instant::now();
        loop {
            match Client::connect(&control) {
                Ok(client) => return Self(child, client),
                Err(error) if begun.elapsed() > LONGEST => panic!("minivmm does not come up: {error}"),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn await_pass(&mut self) {
        let output = self.0.stdout.as_mut().expect("a console");
        let mut said = String::new();
        while tiny::passes(&said).is_empty() {
            let mut bytes = [0; 64];
            let count = output.read(&mut bytes).expect("a console");
            assert!(count > 0, "the guest ended: {said}");
            said.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }

    fn processor_time(&self) -> Duration {
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(self.0.id() as i32)).expect("its clock");
        clock.now().expect("its time").into()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures the processor time of both sides for sending the memory of a stopped guest.
fn migration(on: bool) -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    let [kernel, incoming_socket] = ["kernel", "incoming"].map(|name| folder.path().join(name));
    std::fs::write(&kernel, tiny::bzimage()).expect("a kernel");
    let (kernel, incoming_socket) = (kernel.display().to_string(), format!("unix:{}", incoming_socket.display()));
    let append = tiny::command_line(MIB << 8, 0);
    let [flag, value] = sandbox(on);
    let mut from = Machine::start(folder.path(), "from", &["--kernel", &kernel, "--append", &append, flag, value]);
    from.await_pass();
    let to = Machine::start(folder.path(), "to", &["--incoming", &incoming_socket, flag, value]);
    from.1.execute("stop", json!({})).expect("a stop");
    from.1.execute("migrate-set-parameters", json!({"max-bandwidth": 0, "pause-budget": 60_000})).expect("no limits");
    let before = from.processor_time() + to.processor_time();
    from.1.execute("migrate", json!({"uri": incoming_socket})).expect("a migration");
    let begun = Instant::now();
    loop {
        let state = from.1.execute("query-migrate", json!({})).expect("figures");
        match state["status"].as_str() {
            Some("completed") => break,
            Some("failed") => panic!("the migration failed: {state}"),
            _ if begun.elapsed() > LONGEST => panic!("the migration does not end: {state}"),
            _ => thread::sleep(Duration::from_millis(5)),
        }
    }
    microseconds(from.processor_time() + to.processor_time() - before)
}
