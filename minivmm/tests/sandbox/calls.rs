//! System calls of confined threads, each in a process of its own.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use minivmm::devices::virtio::net::{Backend, Stream};
use minivmm::sandbox::{self, Kind, OnViolation};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{Pid, chroot, execv, getppid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use vm_memory::mmap::MmapRegion;
use vmstate_lab::wait::until;

/// Environment variable that names the case of a child process.
const CASE: &str = "MINIVMM_SANDBOX_CASE";

const KINDS: [(&str, Kind); 11] = [
    ("main", Kind::Main),
    ("driver", Kind::Driver),
    ("vcpu", Kind::Vcpu),
    ("throttle", Kind::Throttle),
    ("device", Kind::Device),
    ("connect", Kind::Connect),
    ("console", Kind::Console),
    ("backup", Kind::Backup),
    ("migration", Kind::Migration),
    ("look-up", Kind::LookUp),
    ("control", Kind::Control),
];

/// Effect of a violation in each kind of build; both are tested.
const BUILDS: [(&str, OnViolation); 2] = [("debug", OnViolation::Report), ("release", OnViolation::Kill)];

/// A system call with its name.
type Try = (&'static str, fn() -> io::Result<()>);

/// Calls that no thread may make.
const FORBIDDEN: &[Try] = &[
    ("execve", || Ok(execv(c"/bin/true", &[c"true"] as &[&CStr]).map(drop)?)),
    ("ptrace", || Ok(ptrace::traceme()?)),
    ("mount", || Ok(mount(Some("none"), "/mnt", Some("tmpfs"), MsFlags::empty(), None::<&str>)?)),
    ("unshare", || Ok(unshare(CloneFlags::CLONE_NEWNS)?)),
    ("chroot", || Ok(chroot("/")?)),
    ("kill", || Ok(kill(Pid::from_raw(1), None::<Signal>)?)),
    ("getppid", || {
        getppid();
        Err(io::ErrorKind::PermissionDenied.into())
    }),
    // The file system on which a machine's files are.
    ("openat", || File::options().append(true).open("/dev/null").map(drop)),
    ("socket", || Ok(socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).map(drop)?)),
    ("mmap", || {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        MmapRegion::<()>::build(None, 4096, prot, flags).map(drop).map_err(|error| match error {
            vm_memory::mmap::MmapRegionError::Mmap(error) => error,
            other => io::Error::other(other),
        })
    }),
    ("ioctl", || Ok(rustix::termios::tcgetwinsize(io::stderr()).map(drop)?)),
];

/// A call that only some threads may make.
const READ: Try = ("openat", || File::open("/dev/null").map(drop));
const CONNECTION: Try =
    ("socket", || Ok(socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map(drop)?));
// All signals are blocked meanwhile, so no handler names the call.
const THREAD: Try =
    ("", || sandbox::spawn(Kind::Vcpu, "child", || ())?.join().map_err(|_| io::Error::other("it panicked")));
const PROCESS: Try = ("", || Command::new("/bin/true").status().map(drop));

/// Runs `test` again in a process for each build, which runs `case` instead.
fn in_processes(test: &str, case: &str) -> [(ExitStatus, String); 2] {
    BUILDS.map(|(build, _)| in_a_process(test, &format!("{case} {build}")))
}

fn in_a_process(test: &str, case: &str) -> (ExitStatus, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CASE, case)
        // The test harness has threads before the sandbox is armed, too late to limit the heap's arenas.
        .env("MALLOC_ARENA_MAX", "1")
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Runs the case of this process on a thread of its kind.
fn tried(all: &[Try]) -> Option<io::Result<()>> {
    let case = std::env::var(CASE).ok()?;
    let [kind, number, how] = case.split(' ').collect::<Vec<_>>()[..] else { panic!("{case}") };
    let (_, kind) = KINDS.into_iter().find(|(name, _)| *name == kind).unwrap();
    let (_, attempt) = all[number.parse::<usize>().unwrap()];
    let (_, how) = BUILDS.into_iter().find(|(name, _)| *name == how).unwrap();
    sandbox::arm(how).unwrap();
    Some(sandbox::spawn(kind, "tries", attempt).unwrap().join().unwrap())
}

#[track_caller]
fn are_killed(kind: &str, call: &str, ends: [(ExitStatus, String); 2]) {
    for ((build, _), (status, stderr)) in BUILDS.into_iter().zip(ends) {
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{kind}, {call}, {build}: {status}, {stderr}");
        let named = format!("minivmm: sandbox: a thread of kind {kind} made the system call {call} (");
        let names = build == "debug" && !call.is_empty();
        assert_eq!(stderr.contains(&named), names, "{kind}, {call}, {build}: {stderr}");
    }
}

#[track_caller]
fn succeed(kind: &str, call: &str, ends: [(ExitStatus, String); 2]) {
    for (status, stderr) in ends {
        assert!(status.success(), "{kind}, {call}: {status}, {stderr}");
    }
}

#[test]
fn what_no_thread_may_do_ends_the_process() {
    if let Some(result) = tried(FORBIDDEN) {
        // Forbidden calls of a look-up thread fail.
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        return;
    }
    for (kind, _) in KINDS {
        for (number, (call, _)) in FORBIDDEN.iter().enumerate() {
            let ends = in_processes("calls::what_no_thread_may_do_ends_the_process", &format!("{kind} {number}"));
            match kind {
                "look-up" => succeed(kind, call, ends),
                _ => are_killed(kind, call, ends),
            }
        }
    }
}

#[test]
fn what_one_kind_needs_another_may_not_do() {
    const ALL: [Try; 4] = [READ, CONNECTION, THREAD, PROCESS];
    if let Some(result) = tried(&ALL) {
        result.unwrap();
        return;
    }
    // The driver opens files, migrations and cards make connections; driver, migration and control socket start threads, and no
    // thread starts a process.
    let allowed = |kind: &str| match kind {
        "driver" => [true, true, true, false],
        "migration" => [false, true, true, false],
        "control" => [false, false, true, false],
        "connect" => [false, true, false, false],
        _ => [false; 4],
    };
    for (kind, _) in KINDS.into_iter().filter(|(kind, _)| *kind != "look-up") {
        for (number, ((call, _), allowed)) in ALL.iter().zip(allowed(kind)).enumerate() {
            let ends = in_processes("calls::what_one_kind_needs_another_may_not_do", &format!("{kind} {number}"));
            match allowed {
                true => succeed(kind, call, ends),
                false => are_killed(kind, call, ends),
            }
        }
    }
}

/// A thread that a confined one starts is confined by both filters.
#[test]
fn a_thread_has_no_more_rights_than_the_one_that_started_it() {
    const NESTED: [Try; 1] = [("socket", || sandbox::spawn(Kind::Driver, "child", CONNECTION.1)?.join().unwrap())];
    if let Some(result) = tried(&NESTED) {
        return result.unwrap();
    }
    let test = "calls::a_thread_has_no_more_rights_than_the_one_that_started_it";
    are_killed("driver", "socket", in_processes(test, "control 0"));
    succeed("migration", "socket", in_processes(test, "migration 0"));
}

/// The card's thread notices that its connection is gone, and continues with the next one, which another thread made.
#[test]
fn a_card_goes_on_with_a_connection_that_it_may_not_make_itself() {
    if std::env::var_os(CASE).is_some() {
        sandbox::arm(OnViolation::OF_THIS_BUILD).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("network");
        let listener = UnixListener::bind(&path).unwrap();
        let stream = Stream::open(&path).unwrap();
        drop(listener.accept().unwrap());
        let card = sandbox::spawn(Kind::Device, "virtio-net", move || {
            let mut frame = [0; 100];
            until("end of the connection", || stream.receive(&mut frame).is_err() && !stream.is_up());
            until("another connection", || stream.is_up());
            stream.send(&[0; 12 + 60]).unwrap();
            stream
        });
        let mut frame = [0; 4 + 60];
        listener.accept().unwrap().0.read_exact(&mut frame).unwrap();
        drop(card.unwrap().join().unwrap());
        assert_eq!(frame[..4], [0, 0, 0, 60]);
        return;
    }
    let test = "calls::a_card_goes_on_with_a_connection_that_it_may_not_make_itself";
    let (status, stderr) = in_a_process(test, "card");
    assert!(status.success(), "{status} {stderr}");
}

#[test]
fn a_kernel_without_filters_is_refused_by_name() {
    const WITHOUT: &str = "--sandbox on: this kernel takes no seccomp filter (Error calling `seccomp`: Invalid argument (os error \
                           22)): it needs CONFIG_SECCOMP_FILTER=y; give --sandbox off to run without";
    if std::env::var_os(CASE).is_some() {
        let no_more = (libc::SYS_seccomp, Vec::new());
        let (rest, refused) = (SeccompAction::Allow, SeccompAction::Errno(libc::EINVAL as u32));
        let filter = SeccompFilter::new([no_more].into(), rest, refused, TargetArch::x86_64).unwrap();
        seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
        assert_eq!(sandbox::arm(OnViolation::OF_THIS_BUILD).unwrap_err().to_string(), WITHOUT);
        // No thread is confined then.
        sandbox::spawn(Kind::Vcpu, "free", || File::open("/dev/null").unwrap()).unwrap().join().unwrap();
        return;
    }
    let (status, stderr) = in_a_process("calls::a_kernel_without_filters_is_refused_by_name", "");
    assert!(status.success(), "{status} {stderr}");
}

#[test]
fn what_any_program_does_goes_on() {
    const USUAL: [Try; 1] = [("everything", || {
        let map: HashMap<_, _> = (0..10_000).map(|number| (number, vec![0_u8; number])).collect();
        drop(map);
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        assert!(receiver.recv_timeout(Duration::from_millis(5)).is_err());
        drop(sender);
        std::thread::sleep(Duration::from_millis(1));
        assert!(Instant::now().elapsed() < Duration::from_secs(60));
        std::panic::catch_unwind(|| panic!("on purpose")).unwrap_err();
        eprintln!("all done");
        Ok(())
    })];
    if let Some(result) = tried(&USUAL) {
        return result.unwrap();
    }
    for (kind, _) in KINDS {
        for (status, stderr) in in_processes("calls::what_any_program_does_goes_on", &format!("{kind} 0")) {
            assert!(
                status.success() && stderr.contains("on purpose") && stderr.contains("all done"),
                "{kind}: {status} {stderr}"
            );
        }
    }
}
