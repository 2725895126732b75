//! A user operates a running machine: looks at it, follows its migration, cancels it, ends the machine.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use minivmm::vm::{Published, Request, RunState};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vmstate::migrate::{Phase, SourcePhase};

use super::{Running, TIMEOUT, machine, migrate, minivmm};

/// Script of a migration that runs until it is cancelled.
fn goes_on(shared: &Published) {
    shared.update_migration(|info| {
        info.phase = Phase::Source(SourcePhase::Rounds);
        info.figures.rounds = 3;
        info.figures.bytes = 450 << 20;
        info.figures.ram_bytes = 1 << 30;
        info.figures.remaining_bytes = 120 << 20;
        info.figures.bytes_per_second = 400 << 20;
        info.figures.dirty_pages_per_second = 32 << 10;
        info.figures.throttle_percent = 20;
        info.figures.elapsed = Duration::from_millis(1500);
        info.figures.expected_downtime = Some(Duration::from_millis(120));
        info.figures.expected_total = Some(Duration::from_millis(4100));
    });
}

fn interrupt(child: &Child) {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
}

#[test]
fn an_interrupt_cancels_the_migration() {
    let (directory, _server, requests) = machine(goes_on);
    let mut child = migrate(directory.path()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(matches!(requests.recv().unwrap(), Request::Migrate(..)));
    // Only the line of the round in which the command began.
    let line = "phase=active round=3 sent-bytes=471859200 left-bytes=125829120 bytes-per-second=419430400 \
                dirty-bytes-per-second=134217728 throttle-percent=20 expected-downtime-ms=120 time-left-ms=2600\n";
    let mut shown = vec![0; line.len()];
    child.stderr.as_mut().unwrap().read_exact(&mut shown).unwrap();
    assert_eq!(String::from_utf8(shown).unwrap(), line);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(requests.recv().unwrap(), Request::MigrateCancel);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "minivmm: the migration was cancelled; the guest runs on where it was\n"
    );
}

/// The machine is slow to cancel, and the user interrupts twice.
#[test]
fn a_second_interrupt_ends_the_command_and_not_the_cancel() {
    let directory = tempfile::tempdir().unwrap();
    let (handle, mut queue, shared) = minivmm::vm::Handle::new(RunState::Running);
    let (seen, requests) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let driver = thread::spawn(move || {
        while let minivmm::vm::Next::Asked((minivmm::vm::AnyRequest::User(request), answer)) = queue.next(&|| None) {
            let _ = seen.send(request.clone());
            match request {
                Request::Migrate(..) => goes_on(&shared),
                Request::MigrateCancel => return released.recv().is_ok(),
                _ => {}
            }
            let _ = answer.send(Ok(()));
        }
        false
    });
    let _server = minivmm::control::Server::bind(&directory.path().join("qmp"), handle).unwrap();
    let child = migrate(directory.path()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(matches!(requests.recv_timeout(TIMEOUT).unwrap(), Request::Migrate(..)));
    interrupt(&child);
    assert_eq!(requests.recv_timeout(TIMEOUT).unwrap(), Request::MigrateCancel);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.ends_with("does not wait for its answer: see minivmm status\n"), "{text}");
    release.send(()).unwrap();
    assert!(driver.join().unwrap(), "the machine was left with its cancel");
}

/// Two signals at once, as timeout(1) sends them: the command may end at once, but only after it has asked the machine to
/// cancel.
#[test]
fn two_interrupts_at_once_cancel_the_migration() {
    let (directory, _server, requests) = machine(goes_on);
    let child = migrate(directory.path()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(matches!(requests.recv_timeout(TIMEOUT).unwrap(), Request::Migrate(..)));
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
    }
    assert_eq!(requests.recv_timeout(TIMEOUT).unwrap(), Request::MigrateCancel);
    child.wait_with_output().unwrap();
}

/// The terminal shows one line, rewritten, no longer than the terminal is wide.
#[test]
fn a_terminal_gets_one_line() {
    let size = Winsize { ws_row: 24, ws_col: 50, ws_xpixel: 0, ws_ypixel: 0 };
    let pair = openpty(Some(&size), None).unwrap();
    let (directory, _server, requests) = machine(goes_on);
    let mut child = migrate(directory.path()).stderr(Stdio::from(pair.slave)).spawn().unwrap();
    assert!(matches!(requests.recv_timeout(TIMEOUT).unwrap(), Request::Migrate(..)));
    let mut terminal = std::fs::File::from(pair.master);
    // As many figures as fit 50 columns less three.
    let line = "\rround 3: 120M left, 400M/s, dirty 128M/s, throt\x1b[K";
    let mut shown = vec![0; line.len()];
    terminal.read_exact(&mut shown).unwrap();
    assert_eq!(String::from_utf8(shown).unwrap(), line);
    interrupt(&child);
    let deadline = Instant::now() + TIMEOUT;
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the command does not end");
        thread::sleep(Duration::from_millis(10));
    }
    // The other end of the pair is closed: Linux returns EIO after the last byte.
    let mut rest = Vec::new();
    let _ = terminal.read_to_end(&mut rest);
    let rest = String::from_utf8(rest).unwrap();
    let end = "\r\x1b[Kminivmm: the migration was cancelled; the guest runs on where it was\r\n";
    assert!(rest.ends_with(end) && rest.contains("\rcancelling; ") && rest.matches('\n').count() == 1, "{rest:?}");
}

#[test]
fn a_machine_is_looked_at_stopped_let_go_on_and_ended() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("vm.toml");
    std::fs::write(&config, "serial = \"none\"\nsandbox = true\nmemory = \"much\"\n").unwrap();
    let options = ["--config", config.to_str().unwrap()];
    let (code, output) = match Running::start(&options, Stdio::null()) {
        Some(machine) => machine.end(),
        None => return,
    };
    assert_eq!(code, Some(2));
    assert!(output.contains("vm.toml:3: memory: write a number of bytes"), "{output}");
    std::fs::write(&config, "serial = \"none\"\nmemory = \"1M\"\n").unwrap();
    let Some(machine) = Running::start(&options, Stdio::null()) else { return };
    machine.control();
    let control = format!("unix:{}/qmp", machine.directory.path().display());
    let ask = |command: &str, more: &[&str]| {
        let output = minivmm(&[&[command, "--control", &control], more].concat());
        assert_eq!(output.status.code(), Some(0), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    ask("stop", &[]);
    let text = ask("status", &[]);
    assert!(text.starts_with("guest: paused\nmigration: none\n"), "{text}");
    let json: Value = serde_json::from_str(&ask("status", &["--json"])).unwrap();
    assert_eq!((&json["status"], &json["migration"]), (&json!({"status": "paused", "running": false}), &json!({})));
    ask("cont", &[]);
    assert!(ask("status", &[]).starts_with("guest: running\n"));
    ask("quit", &[]);
    assert_eq!(machine.end().0, Some(0));
    let output = minivmm(&["status", "--control", &control]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

/// The machine is in the sandbox, as by default; the guest checks its memory in the second machine.
#[test]
fn a_guest_is_put_aside_in_a_file_and_run_from_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (disk, state) = (path("disk"), path("state"));
    std::fs::write(&disk, [0; 4096]).unwrap();
    let Some(mut machine) = Running::start(&["--disk", &disk], Stdio::null()) else { return };
    machine.await_banner();
    let control = format!("unix:{}/qmp", machine.directory.path().display());
    machine.control();
    // A guest with a disk is refused: it would write to the disk after the snapshot.
    let output = minivmm(&["snapshot", "save", "--control", &control, &state]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && told.contains("copy the disks while the guest is paused"), "{told}");
    assert!(!std::path::Path::new(&state).exists());
    let output = minivmm(&["migrate", "--control", &control, &format!("file:{state}")]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains(&format!("the guest is stopped, its state is in {state}: ")), "{told}");
    let status = minivmm(&["status", "--control", &control]).stdout;
    assert!(status.starts_with(b"guest: postmigrate\nmigration: completed"), "{}", String::from_utf8_lossy(&status));

    // Longer than the two hosts' wall clocks may differ.
    thread::sleep(Duration::from_millis(300));
    let from = format!("file:{state}");
    let run = || Running::start(&["--disk", &disk, "--incoming", &from], Stdio::null()).unwrap();
    let mut there = run();
    // The rest of a line that it had begun, and a whole one.
    let mut printed = [0; 20];
    there.child.stdout.as_mut().unwrap().read_exact(&mut printed).unwrap();
    assert!(printed.contains(&b'p') && !printed.contains(&b'E'), "{}", String::from_utf8_lossy(&printed));
    let output = minivmm(&["cont", "--control", &control]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    there.control().execute("quit", json!({})).unwrap();
    let (code, told) = there.end();
    assert!(code == Some(0) && !told.contains("wall clock"), "{code:?} {told}");
    let (code, why) = run().end();
    assert!(code == Some(1) && why.contains("another guest was started on disk 1"), "{code:?} {why}");
}

/// The guest prints a letter for each pass over its memory, and another one for a wrong page.
#[test]
fn a_guest_runs_on_behind_its_snapshot_and_clones_run_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state").display().to_string();
    let Some(mut machine) = Running::start(&[], Stdio::null()) else { return };
    machine.await_banner();
    let control = format!("unix:{}/qmp", machine.directory.path().display());
    machine.control();
    let save = || minivmm(&["snapshot", "save", "--control", &control, &state]);
    let told = String::from_utf8(save().stderr).unwrap();
    assert!(told.contains(&format!("the guest runs on, its state of one moment is in {state}: ")), "{told}");
    assert!(told.contains("downtime "), "{told}");
    let status = minivmm(&["status", "--control", &control]).stdout;
    assert!(status.starts_with(b"guest: running\nmigration: completed"), "{}", String::from_utf8_lossy(&status));
    // An existing file is not replaced.
    let written = std::fs::metadata(&state).unwrap().modified().unwrap();
    let output = save();
    assert!(output.status.code() == Some(1), "{output:?}");
    assert_eq!(std::fs::metadata(&state).unwrap().modified().unwrap(), written);

    let from = format!("file:{state}");
    let mut clones = [(); 2]
        .map(|()| Running::start(&["--incoming", &from], Stdio::null()).unwrap())
        .into_iter()
        .collect::<Vec<_>>();
    // Several threads, confined as they are in use, write another file and read it.
    let by_threads = format!("file:{state}-by-threads");
    let multifd = json!({"capabilities": [{"capability": "multifd", "state": true}]});
    let probe =
        File::options().write(true).create_new(true).custom_flags(libc::O_DIRECT).open(folder.path().join("probe"));
    let direct = json!({"direct-io": probe.is_ok()});
    machine.control().execute("migrate-set-capabilities", multifd.clone()).unwrap();
    machine.control().execute("migrate-set-parameters", direct.clone()).unwrap();
    let output = minivmm(&["snapshot", "save", "--control", &control, &by_threads["file:".len()..]]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let reads = Running::start(&["--incoming", "defer", "--restore", "eager"], Stdio::null()).unwrap();
    reads.control().execute("migrate-set-capabilities", multifd).unwrap();
    reads.control().execute("migrate-set-parameters", direct).unwrap();
    reads.control().execute("migrate-incoming", json!({ "uri": by_threads })).unwrap();
    clones.push(reads);
    for running in clones.iter_mut().chain([&mut machine]) {
        let mut printed = [0; 20];
        running.child.stdout.as_mut().unwrap().read_exact(&mut printed).unwrap();
        assert!(printed.contains(&b'p') && !printed.contains(&b'E'), "{}", String::from_utf8_lossy(&printed));
    }
    for running in clones.into_iter().chain([machine]) {
        running.control().execute("quit", json!({})).unwrap();
        assert_eq!(running.end().0, Some(0));
    }
}

/// Each script has all commands, and bash completes with its own; each command has a manual page.
#[test]
fn completions_and_manuals_have_each_command() {
    let commands = ["run", "migrate", "snapshot", "plan", "status", "stop", "cont", "quit"];
    for shell in ["bash", "zsh", "fish"] {
        let output = minivmm(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let script = String::from_utf8(output.stdout).unwrap();
        let missing: Vec<_> = commands.iter().filter(|command| !script.contains(**command)).collect();
        assert!(missing.is_empty() && script.contains("downtime-limit"), "{shell}: {missing:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    std::fs::write(&script, minivmm(&["completions", "bash"]).stdout).unwrap();
    let words = "COMP_WORDS=(minivmm migrate --downt); COMP_CWORD=2; _minivmm minivmm --downt migrate; echo \"${COMPREPLY[@]}\"";
    let source = format!(". {}; {words}", script.display());
    let completed = Command::new("bash").args(["-c", &source]).output().unwrap();
    assert_eq!(String::from_utf8(completed.stdout).unwrap(), "--downtime-limit\n");

    let pages = folder.path().join("man1");
    assert_eq!(minivmm(&["man", pages.to_str().unwrap()]).status.code(), Some(0));
    for command in commands {
        let page = std::fs::read_to_string(pages.join(format!("minivmm-{command}.1"))).unwrap();
        assert!(page.contains(".SH OPTIONS") && page.contains("Print help"), "{page}");
    }
    let page = String::from_utf8(minivmm(&["man"]).stdout).unwrap();
    assert!(page.contains(".TH minivmm 1") && page.contains("boots Linux"), "{page}");
    assert_eq!(minivmm(&["man", "/dev/null/x"]).status.code(), Some(2));
}
