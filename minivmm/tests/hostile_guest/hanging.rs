//! A host that does not answer: a disk like a network file system whose server is gone, or a busy processor.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;
use vmstate_lab::held::Held;

use crate::process::{Process, until};

/// Limit below the 10 s that a stop waits for a disk.
const AT_ONCE: Duration = Duration::from_secs(9);

/// The tiny guest, which rewrites a sector of its disk in each pass.
struct Guest {
    process: Process,
    _disk: tempfile::NamedTempFile,
}

impl Guest {
    fn start() -> Option<Self> {
        let disk = tempfile::NamedTempFile::new().unwrap();
        fs::write(disk.path(), [0; 4096]).unwrap();
        let append = vmstate_lab::tiny::command_line_with_disk(16, 0);
        let path = disk.path().to_str().unwrap();
        let process = Process::start(&[], &["--serial", "none", "--append", &append, "--disk", path])?;
        Some(Self { process, _disk: disk })
    }

    /// Holds the disk's thread in a system call that does not return.
    fn hang(&self) -> Option<Held> {
        let thread = until("a thread of the disk", || self.process.threads("virtio-blk").first().copied());
        Held::at(Pid::from_raw(thread as i32), &[libc::SYS_pread64, libc::SYS_pwrite64])
    }
}

#[test]
fn quit_and_sigterm_end_the_process_while_its_disk_does_not_answer() {
    for stops in [false, true] {
        for how in ["quit", "SIGTERM"] {
            let Some(mut guest) = Guest::start() else { return };
            let mut user = guest.process.user();
            let Some(hanging) = guest.hang() else { return };
            if stops {
                guest.process.user().send("stop");
            }
            match how {
                "quit" => {
                    let (answer, took) = user.ask("quit");
                    assert!(answer.get("return").is_some() && took < AT_ONCE, "{answer} after {took:?}");
                }
                _ => guest.process.signal(Signal::SIGTERM),
            }
            let asked = Instant::now();
            hanging.await_end();
            assert_eq!(guest.process.end_within(AT_ONCE), Some(0), "{how}, stops: {stops}");
            assert!(asked.elapsed() < AT_ONCE, "{how}, stops: {stops}: ended after {:?}", asked.elapsed());
        }
    }
}

/// As soon as the disk answers again, a stop works as usual.
#[test]
fn a_stop_is_refused_while_a_disk_does_not_answer_and_the_guest_goes_on() {
    let Some(guest) = Guest::start() else { return };
    let mut user = guest.process.user();
    let Some(hanging) = guest.hang() else { return };
    let (answer, took) = user.ask("stop");
    assert!(took < 6 * AT_ONCE, "{answer} after {took:?}");
    let why = answer["error"]["desc"].as_str().unwrap_or_default();
    assert!(why.contains("did not finish a piece of a request within"), "{answer}");
    assert_eq!(user.ask("query-status").0["return"]["status"], "running");
    drop(hanging);
    assert!(user.ask("stop").0.get("return").is_some());
    assert_eq!(user.ask("query-status").0["return"]["status"], "paused");
}

/// A machine with a failed vCPU publishes that it is stopped only once all its vCPUs are.
#[test]
fn a_machine_with_a_failed_vcpu_stops_once_its_other_vcpus_have() {
    const FAILS_ONCE_THE_POWER_BUTTON_IS_PRESSED: [u8; 18] = [
        0xbb, 0, 0, 0xa0, 0xfe, // mov $0xfea00000, %ebx: events that are pending
        0x8b, 0x03, 0x85, 0xc0, // again: mov (%rbx), %eax; test %eax, %eax
        0x74, 0xfa, // jz again
        0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0, // mov $0xd0000000, %eax; jmp *%rax: no KVM can go on there
    ];
    if let Err(error) = minivmm::kvm::open() {
        return vmstate_lab::skip::skip(error);
    }
    let errors = tempfile::NamedTempFile::new().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"exec "$0" run "$@" 2>"$ERRORS""#, env!("CARGO_BIN_EXE_minivmm")]).env("ERRORS", errors.path());
    let flags = ["--serial", "none", "--cpus", "2"];
    let process = Process::spawn_by(shell, &FAILS_ONCE_THE_POWER_BUTTON_IS_PRESSED, &flags);
    let mut user = process.user();
    let vcpu = until("a second vCPU", || process.threads("vcpu1").first().copied());
    let Some(busy) = Held::anywhere(Pid::from_raw(vcpu as i32)) else { return };
    assert!(user.ask("system_powerdown").0.get("return").is_some());
    let said = |what: &str| fs::read_to_string(errors.path()).unwrap().contains(what).then_some(());
    until("try to stop the other vCPU", || said("vCPU 0: KVM internal error"));
    until("word that the other vCPU does not stop", || said("the machine's stop waits: vCPU 1 did not stop within"));
    assert_eq!(user.ask("query-status").0["return"]["status"], "running");
    drop(busy);
    until("machine that stands", || (user.ask("query-status").0["return"]["status"] == "internal-error").then_some(()));
}

/// A busy host that delays the guest's pause must not refuse its migration: state that the release lacks is looked for as soon
/// as possible.
#[test]
fn a_migration_to_a_release_begins_while_the_guest_cannot_be_paused() {
    let Some(guest) = Guest::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let schema = directory.path().join("schema.json");
    let address = guest.process.unused_address();
    let mut user = guest.process.user();
    assert!(user.ask_with("dump-schema", &json!({"file": schema})).0.get("return").is_some());
    let destination =
        Process::awaiting(&address, &[], &["--serial", "none", "--disk", guest._disk.path().to_str().unwrap()]);
    // The destination listens for a source before it serves clients.
    let mut there = destination.user();
    user.pause_without_end();
    // The first round is not over while the vCPU is held.
    user.ask_with("migrate-set-parameters", &json!({"max-bandwidth": 8192}));
    let vcpu = until("a vCPU", || guest.process.threads("vcpu0").first().copied());
    let Some(busy) = Held::anywhere(Pid::from_raw(vcpu as i32)) else { return };
    let (answer, _) = user.ask_with("migrate", &json!({"uri": address, "target-schema": schema}));
    assert!(answer.get("return").is_some(), "{answer}");
    user.await_migration("active");
    drop(busy);
    user.ask_with("migrate-set-parameters", &json!({"max-bandwidth": 0}));
    user.await_migration("completed");
    there.await_migration("completed");
}

/// Device state is checked before the first page, and a cancel does not wait for it.
#[test]
fn a_migration_is_cancelled_at_once_while_a_disk_does_not_answer() {
    let Some(guest) = Guest::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let schema = directory.path().join("schema.json");
    let mut user = guest.process.user();
    assert!(user.ask_with("dump-schema", &json!({"file": schema})).0.get("return").is_some());
    let address = guest.process.unused_address();
    let disk = guest._disk.path().to_str().unwrap();
    let destination = Process::awaiting(&address, &[], &["--serial", "none", "--disk", disk]);
    destination.user();
    let Some(_hanging) = guest.hang() else { return };
    let (answer, took) = user.ask_with("migrate", &json!({"uri": address, "target-schema": schema}));
    assert!(answer.get("return").is_some() && took < AT_ONCE, "{answer} after {took:?}");
    // Long enough to be in the middle of the check.
    std::thread::sleep(Duration::from_secs(2));
    let asked = Instant::now();
    user.send("migrate_cancel");
    let mut other = guest.process.user();
    until("end of the migration", || {
        let (answer, _) = other.ask("query-migrate");
        assert!(asked.elapsed() < 2 * AT_ONCE, "{answer}");
        ["cancelled", "failed"].contains(&answer["return"]["status"].as_str()?).then_some(())
    });
}

/// A signal ends the process while the machine is not made yet, whose files may be slow to open.
#[test]
fn a_signal_ends_the_process_before_there_is_a_machine() {
    const BUILDS: &[(&str, &[libc::c_long])] = &[
        ("opens its files", &[libc::SYS_openat]),
        ("makes guest memory", &[libc::SYS_madvise]),
        ("starts its threads", &[libc::SYS_clone, libc::SYS_clone3]),
        ("makes its control socket", &[libc::SYS_bind]),
    ];
    if let Err(error) = minivmm::kvm::open() {
        return vmstate_lab::skip::skip(error);
    }
    for (what, calls) in BUILDS {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            // Held before its first instruction.
            let mut shell = Command::new("sh");
            shell.args(["-c", r#"kill -STOP $$; exec "$0" run "$@""#, env!("CARGO_BIN_EXE_minivmm")]);
            let process = Process::spawn_by(shell, &[], &["--serial", "none"]);
            let main = process.id();
            until("shell that stands", || {
                let status = waitpid(main, Some(WaitPidFlag::WUNTRACED | WaitPidFlag::WNOHANG)).unwrap();
                matches!(status, WaitStatus::Stopped(..)).then_some(())
            });
            let Some(held) = Held::anywhere(main) else { return };
            kill(main, Signal::SIGCONT).unwrap();
            // The second thread takes signals; the first one tries the sandbox.
            for _ in 0..2 {
                held.go_to(&[libc::SYS_clone, libc::SYS_clone3]);
            }
            held.go_on_to_a_call();
            until("thread for signals", || process.threads("signals").first().copied());
            held.go_to(calls);
            process.signal(signal);
            assert_eq!(held.await_end(), Some(128 + signal as i32), "{what}, {signal}");
        }
    }
}
