//! Steps of the driver in a migration, called one by one without its thread.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

use vmstate::channel::Listener;
use vmstate::channel::tls::TlsServer;
use vmstate_lab::tiny;
use vmstate_lab::wait::{TIMEOUT, until};

use super::*;
use crate::config::{Config, Cpu, Restore, Serial, Tls};
use crate::machine_map::MACHINE_TYPE;
use crate::vm::End;
use crate::vm::migration::incoming::Origin;
use crate::vm::migration::under_way::{Incoming, give_up};
use crate::vm::queue::Next;
use crate::vm::request::{AnyRequest, EngineRequest};

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

struct Asked {
    vm: Vm,
    /// Folder of the kernel, which a reset reads again.
    _dir: tempfile::TempDir,
}

/// A machine with the tiny guest.
fn config(dir: &Path) -> Config {
    let kernel = dir.join("kernel");
    std::fs::write(&kernel, tiny::bzimage()).unwrap();
    Config {
        kernel: Some(kernel),
        initrd: None,
        append: tiny::command_line(16, 0),
        memory: 16 << 20,
        shares_memory: false,
        cpus: 1,
        cpu: Cpu::default(),
        disks: Vec::new(),
        lease: None,
        nets: Vec::new(),
        serial: Serial::None,
        control: None,
        incoming: None,
        restore: Restore::default(),
        tls: Tls::default(),
        kvm: None,
    }
}

/// Starts the tiny guest, which runs and reacts to a key with this request; no driver has handled it yet. `None` after saying
/// that the test is skipped.
fn asked_by(key: u8) -> Option<Asked> {
    if let Err(error) = crate::kvm::open() {
        vmstate_lab::skip::skip(error);
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let screen = Screen::default();
    let vm = Vm::new(config(dir.path()), Box::new(screen.clone())).unwrap();
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
    assert!(vm.switch_over(TIMEOUT).is_ok());
    let state = vm.state.lock().unwrap();
    assert_eq!(state.hypervisor.vcpus[0].cpu.eip, ENTRY);
    assert_eq!(vm.machine.events().first(), None);
    assert_eq!(vm.shared.run_state(), RunState::FinishMigrate);
}

/// The power-off is carried out next: the guest is not handed over.
#[test]
fn a_power_off_just_before_the_switch_over_refuses_it() {
    let Some(Asked { mut vm, _dir }) = asked_by(b'q') else { return };
    match vm.switch_over(TIMEOUT) {
        Err(Outcome::Refused(Refusal(why))) => assert!(why.starts_with("the guest powered off"), "{why}"),
        _ => panic!("the guest is off"),
    }
    assert_eq!(vm.shared.run_state(), RunState::Running);
    assert_eq!(vm.machine.events().first(), Some(GuestEvent::PoweredOff));
}

/// A peer that sees the connection close may end the machine at once, and a quit would have priority over the end's message.
#[test]
fn a_connection_is_closed_once_the_end_of_its_migration_is_published() {
    if let Err(error) = crate::kvm::open() {
        return vmstate_lab::skip::skip(error);
    }
    let dir = tempfile::tempdir().unwrap();
    let incoming_socket = dir.path().join("incoming");
    let mut vm = Vm::new(config(dir.path()), Box::new(std::io::sink())).unwrap();
    assert!(
        vm.receive(Origin::Listener(Listener::unix(&incoming_socket).unwrap().with_tls(None::<TlsServer>)), None, true)
            .is_ok()
    );
    // Header; a configuration with the machine name; and the command OPEN_RETURN_PATH.
    let name = [&[0, 0, 0, MACHINE_TYPE.len() as u8], MACHINE_TYPE.as_bytes()].concat();
    let mut source = UnixStream::connect(&incoming_socket).unwrap();
    source.write_all(&[b"QEVM\0\0\0\x03\x07", &*name, b"\x08\0\x01\0\0"].concat()).unwrap();
    until("source that is looked at", || vm.shared.migration().figures.bytes > 0);
    assert!(vm.incoming.as_ref().unwrap().control.cancel());
    until("end", || vm.queue.len() == 1);
    source.set_nonblocking(true).unwrap();
    let mut said = Vec::new();
    assert_eq!(source.read_to_end(&mut said).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "it is closed");

    let Next::Asked((AnyRequest::Engine(EngineRequest::Ended(end)), answer)) = vm.queue.next(&|| None) else {
        panic!("the thread has ended");
    };
    assert!(matches!(vm.ended(end), Err(Outcome::Ended(End::Failed(why))) if why.contains("did not run here")));
    answer.send(Ok(())).unwrap();
    source.set_nonblocking(false).unwrap();
    source.set_read_timeout(Some(TIMEOUT)).unwrap();
    source.read_to_end(&mut said).unwrap();
}

/// The thread may be delayed by the peer or the host; a left-over socket file would block the next start.
#[test]
fn a_machine_that_ends_leaves_no_socket_though_its_migration_does_not_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("incoming");
    let listener = Arc::new(Listener::unix(&path).unwrap().with_tls(None::<TlsServer>));
    let theirs = Arc::clone(&listener);
    let (end, ends) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let _ = ends.recv();
        drop(theirs);
    });
    give_up(
        None,
        Some(Incoming {
            control: Control::default(),
            thread,
            listener: Some(listener),
            from_file: false,
            exit_on_error: true,
        }),
    );
    assert!(!path.exists());
    drop(end);
}

/// A source finds the machine unchanged.
#[test]
fn a_machine_loads_itself_and_is_as_before() {
    if let Err(error) = crate::kvm::open() {
        return vmstate_lab::skip::skip(error);
    }
    let dir = tempfile::tempdir().unwrap();
    let vm = Vm::new(Config { cpus: 2, ..config(dir.path()) }, Box::new(std::io::sink())).unwrap();
    let state = || {
        let mut state = vm.machine.read_state().unwrap();
        // Clocks advance.
        for vcpu in &mut state.vcpus {
            (vcpu.cpu.tsc, vcpu.apic.initial_count_load_time, vcpu.apic.next_time) = (0, 0, 0);
        }
        (state.vcpus, state.pics, state.ioapic)
    };
    let before = state();
    vm.warm_up().unwrap();
    assert!(state() == before);
    assert_eq!(vm.state.lock().unwrap().hypervisor, HypervisorState::new(2));
}
