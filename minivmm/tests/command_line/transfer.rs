//! QEMU's mode `cpr-transfer` with a running QEMU: a guest goes from a minivmm to a QEMU and on to a minivmm, and its memory stays
//! where it is.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use minivmm::control::Client;
use serde_json::{Value, json};
use vmstate_lab::vmm::unix_channel;
use vmstate_lab::wait::until;
use vmstate_lab::{qemu, skip, tiny};

use super::{Running, TIMEOUT};

/// Counts at 0xe0000, where a QEMU has a block of its own, and in a register; prints `.` as long as both are equal, and else `E`.
pub(crate) const COUNTS: [u8; 37] = [
    0xbf, 0x00, 0x00, 0x0e, 0x00, // mov $0xe0000, %edi
    0x31, 0xdb, // xor %ebx, %ebx
    0x89, 0x1f, // mov %ebx, (%rdi)
    0xff, 0x07, // incl (%rdi)
    0xff, 0xc3, // inc %ebx
    0x39, 0x1f, // cmp %ebx, (%rdi)
    0xb0, 0x2e, // mov $'.', %al
    0x74, 0x02, // je the next but one
    0xb0, 0x45, // mov $'E', %al
    0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
    0xee, // out %al, %dx
    0xb9, 0x00, 0x00, 0x01, 0x00, // mov $0x10000, %ecx
    0xff, 0xc9, // dec %ecx
    0x75, 0xfc, // jnz the dec
    0xeb, 0xe4, // jmp the incl
];

/// Starts the process that takes the guest over in `dir`, with its own arguments and QEMU's two `-incoming`.
pub(crate) fn start(mut command: Command, incoming: &str, dir: &Path) -> Running {
    command.args([incoming, &format!("unix:{}", dir.join("main").display())]);
    command.args([incoming, &unix_channel("cpr", &dir.join("cpr")).to_string()]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let process = Running { child, directory: tempfile::tempdir().unwrap() };
    until("nobody waits for the descriptors", || vmstate_lab::vmm::listens(process.child.id(), &dir.join("cpr")));
    process
}

/// Hands the guest behind `control` over by QEMU's commands, and returns the figures of the migration.
fn hand_over(control: &mut Client, dir: &Path) -> Value {
    begin(control, &dir.join("main"), &dir.join("cpr"));
    let figures = end(control);
    assert_eq!(figures["status"], "completed", "{figures}");
    figures
}

/// Begins to hand the guest behind `control` over by QEMU's commands.
pub(crate) fn begin(control: &mut Client, main: &Path, cpr: &Path) {
    control.execute("migrate-set-parameters", json!({"mode": "cpr-transfer"})).unwrap();
    control.execute("migrate", json!({"channels": [unix_channel("main", main), unix_channel("cpr", cpr)]})).unwrap();
}

/// Waits for the end of the migration, and returns its figures.
pub(crate) fn end(control: &mut Client) -> Value {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let now = control.execute("query-migrate", json!({})).unwrap();
        match now["status"].as_str() {
            Some("completed" | "failed" | "cancelled" | "unacknowledged" | "undecided") => return now,
            _ => assert!(Instant::now() < deadline, "{now}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the guest prints more, which says that its memory is right.
pub(crate) fn watch(console: &Path) {
    let said = || std::fs::read_to_string(console).unwrap_or_default();
    let before = said().len();
    until("the guest prints nothing", || said().len() > before + 3);
    assert!(!said().contains('E'), "the guest found its memory wrong: {}", said());
}

#[test]
fn a_guest_goes_to_a_qemu_and_back_in_its_memory() {
    let program = match qemu::at_least(qemu::NEEDED) {
        Ok(program) => program,
        Err(error) => return skip::skip(error),
    };
    let place = tempfile::tempdir().unwrap();
    let dirs = ["first", "second"].map(|name| place.path().join(name));
    dirs.iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
    let consoles = ["a", "b", "c"].map(|name| place.path().join(name));
    let serial = |at: usize| format!("file:{}", consoles[at].display());
    let options = ["--share-memory", "on", "--serial", &serial(0)];
    let Some(first) = Running::start_kernel(&tiny::with_code(&COUNTS), &options, Stdio::null()) else { return };
    let mut control = first.control();
    watch(&consoles[0]);

    let monitor = place.path().join("monitor");
    let mut command = Command::new(program);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    for directory in qemu::FIRMWARE {
        command.args(["-L", directory]);
    }
    let machine = "microvm,acpi=on,pcie=off,ioapic2=off,rtc=off,auto-kernel-cmdline=off,accel=kvm,aux-ram-share=on";
    command.args(["-M", &format!("{machine},memory-backend=microvm.ram"), "-m", "64M", "-cpu", "host"]);
    command.args(["-object", "memory-backend-memfd,id=microvm.ram,size=64M,share=on"]);
    command.args(["-global", "virtio-mmio.force-legacy=false", "-serial", &serial(1)]);
    command.args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())]);
    command.arg("-kernel").arg(first.directory.path().join("tiny"));
    let _second = start(command, "-incoming", &dirs[0]);
    let figures = hand_over(&mut control, &dirs[0]);
    assert_eq!((&figures["ram"]["normal"], &figures["ram"]["duplicate"]), (&json!(0), &json!(0)));
    watch(&consoles[1]);

    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command.args(["run", "--memory", "64M", "--serial", &serial(2)]);
    let _third = start(command, "--incoming", &dirs[1]);
    let mut control = Client::connect(&monitor).unwrap();
    let capability = json!({"capability": "return-path", "state": true});
    control.execute("migrate-set-capabilities", json!({"capabilities": [capability]})).unwrap();
    let figures = hand_over(&mut control, &dirs[1]);
    assert_eq!((&figures["ram"]["normal"], &figures["ram"]["duplicate"]), (&json!(0), &json!(0)));
    watch(&consoles[2]);
}
