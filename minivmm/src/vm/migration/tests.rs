//! The driver's side without its thread: each step is taken by hand.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmstate_lab::tiny;

use super::*;
use crate::config::{Config, Serial};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "no {what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Asked {
    vm: Vm,
    /// Has the kernel, which a reset reads again.
    _dir: tempfile::TempDir,
}

/// The tiny guest has run, and has asked for this by a key; no driver has looked at it. `None` after saying that the test is
/// skipped.
fn asked_by(key: u8) -> Option<Asked> {
    if let Err(error) = crate::kvm::open() {
        vmstate_lab::skip::skip(error);
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("kernel");
    std::fs::write(&kernel, tiny::bzimage()).unwrap();
    let config = Config {
        kernel: Some(kernel),
        initrd: None,
        append: tiny::command_line(16, 0),
        memory: 16 << 20,
        cpus: 1,
        disks: Vec::new(),
        lease: None,
        nets: Vec::new(),
        serial: Serial::None,
        control: None,
        incoming: None,
    };
    let screen = Screen::default();
    let vm = Vm::new(config, Box::new(screen.clone())).unwrap();
    vm.start();
    until("pass", || String::from_utf8_lossy(&screen.0.lock().unwrap()).contains("p00000002"));
    assert_eq!(vm.keyboard().send(&[key]), 1);
    until("event", || vm.machine.events().first().is_some());
    Some(Asked { vm, _dir: dir })
}

/// The state that is sent is that of the machine after the reset, at its kernel's first instruction.
#[test]
fn a_reset_just_before_the_switch_over_is_carried_out_before_the_state_is_read() {
    const ENTRY: u64 = 0x10_0200;
    let Some(Asked { mut vm, _dir }) = asked_by(b'r') else { return };
    assert!(vm.switch_over(PATIENCE).is_ok());
    let state = vm.state.lock().unwrap();
    assert_eq!(state.hypervisor.vcpus[0].cpu.eip, ENTRY);
    assert_eq!(vm.machine.events().first(), None);
    assert_eq!(vm.shared.run_state(), RunState::FinishMigrate);
}

/// It is carried out next: the guest is not handed over.
#[test]
fn a_power_off_just_before_the_switch_over_refuses_it() {
    let Some(Asked { mut vm, _dir }) = asked_by(b'q') else { return };
    match vm.switch_over(PATIENCE) {
        Err(Outcome::Refused(Refusal(why))) => assert!(why.starts_with("the guest powered off"), "{why}"),
        _ => panic!("the guest is off"),
    }
    assert_eq!(vm.shared.run_state(), RunState::Running);
    assert_eq!(vm.machine.events().first(), Some(GuestEvent::PoweredOff));
}

/// Its thread may be held up by the peer or the host; the socket's file would block the next start.
#[test]
fn a_machine_that_ends_leaves_no_socket_though_its_migration_does_not_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("door");
    let listener = Arc::new(Listener::unix(&path).unwrap());
    let theirs = Arc::clone(&listener);
    let (end, ends) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let _ = ends.recv();
        drop(theirs);
    });
    give_up(None, Some(Incoming { control: Control::default(), thread, listener, stopped: false }));
    assert!(!path.exists());
    drop(end);
}
