//! Post-copy with a QEMU at either end, whose connection breaks twice: both sides continue over another one.

use std::cell::RefCell;
use std::io;
use std::thread;
use std::time::Duration;

use serde_json::json;
use vmstate::channel::{Channel, Listener, SocketChannel};
use vmstate::error::Error;
use vmstate::migrate::{Control, DestinationPhase, SourcePhase};
use vmstate::section::{Section, Sections};
use vmstate_lab::wait::find;

use super::postcopy::{MissingRam, filled};
use super::{Qemu, Ram, TIMEOUT, Vm, depart, devices, skipped, taken_in};

/// A connection that breaks after a number of bytes in either direction, once it is armed, and is then replaced by others.
struct Breaking<'a> {
    socket: Option<SocketChannel>,
    counts: &'a dyn Fn() -> bool,
    left: usize,
    /// Waits until the other side is in a state in which it survives the end of the connection.
    await_active: Box<dyn FnMut() + 'a>,
    /// The number of bytes that each further connection carries.
    next: Vec<usize>,
    again: Box<dyn FnMut() -> SocketChannel + 'a>,
}

impl Breaking<'_> {
    fn spend(&mut self, count: usize) -> io::Result<usize> {
        if (self.counts)() {
            self.left = self.left.saturating_sub(count);
        }
        if self.left == 0 && self.socket.is_some() {
            (self.await_active)();
            self.socket = None;
        }
        Ok(count)
    }

    fn socket(&mut self) -> io::Result<&mut SocketChannel> {
        self.socket.as_mut().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl Channel for Breaking<'_> {
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        let count = self.socket()?.send(bytes, timeout)?;
        self.spend(count)
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        let most = if (self.counts)() { self.left.min(into.len()) } else { into.len() };
        let count = self.socket()?.receive(&mut into[..most], timeout)?;
        self.spend(count)
    }

    fn reconnect(&mut self, _why: &Error) -> io::Result<()> {
        self.socket = None;
        self.left = self.next.pop().ok_or(io::ErrorKind::NotConnected)?;
        self.socket = Some((self.again)());
        Ok(())
    }
}

/// Waits for `postcopy-active`: a QEMU that loses its connection during the switch-over fails.
fn await_active(qemu: &mut Qemu) {
    find("post-copy", || (qemu.execute("query-migrate", json!({}))["status"] == "postcopy-active").then_some(()));
}

fn await_paused(qemu: &mut Qemu) {
    find("pause", || {
        let status = qemu.execute("query-migrate", json!({}))["status"].clone();
        assert!(status == "postcopy-active" || status == "postcopy-paused", "{status}");
        (status == "postcopy-paused").then_some(())
    });
}

#[test]
fn a_qemu_destination_receives_the_rest_over_further_connections() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let mut qemu = Qemu::start(&["-incoming", "defer"]);
    qemu.switch_on(&["postcopy-ram"]);
    let connect = |path: &std::path::Path| SocketChannel::connect_unix(path, TIMEOUT, &|| true).ok();
    qemu.execute("migrate-incoming", json!({"uri": format!("unix:{}", socket.display()), "exit-on-error": false}));
    let first = find("listener", || connect(&socket));
    let ram = Ram::filled();
    let (mut machine, control) = (Vm { running: true, ..Vm::default() }, Control::default());
    control.set_downtime_limit(TIMEOUT);
    control.set_postcopy_ram(true);
    control.start_postcopy();
    let mut number = 0;
    let shared = RefCell::new(&mut qemu);
    let again = || {
        let qemu = &mut **shared.borrow_mut();
        await_paused(qemu);
        number += 1;
        let path = directory.path().join(format!("again{number}"));
        qemu.execute("migrate-recover", json!({"uri": format!("unix:{}", path.display())}));
        find("listener", || connect(&path))
    };
    let mut channel = Breaking {
        socket: Some(first),
        counts: &|| true,
        left: 2_000_000,
        next: vec![usize::MAX, 1_000_003],
        await_active: Box::new(|| await_active(&mut shared.borrow_mut())),
        again: Box::new(again),
    };
    let departure = depart(&mut channel, &mut machine, &mut Sections::new(), &ram, &control);
    assert!(channel.next.is_empty(), "a connection did not break");
    drop(channel);
    assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
    assert!(!machine.running);
    qemu.await_completed();
    qemu.check_low_memory(&ram, directory.path());
}

#[test]
fn a_qemu_source_sends_the_rest_over_further_connections() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let listener = Listener::unix(&socket).unwrap();
    let filled = filled(directory.path(), 0x10_0000);
    let mut qemu = Qemu::start(&["-m", "64M", "-device", &filled]);
    qemu.switch_on(&["return-path", "postcopy-ram"]);
    qemu.execute("migrate-set-parameters", json!({"max-bandwidth": 16384, "max-postcopy-bandwidth": 16384}));
    let uri = json!({"uri": format!("unix:{}", socket.display()), "resume": false});
    qemu.execute("migrate", uri.clone());
    let first = listener.accept_source(&|| true).unwrap();
    let mut machine = Vm::default();
    let mut devices = devices();
    let mut sections = Sections::new();
    for (name, instance, device) in &mut devices {
        sections.register(name, *instance, device as &mut dyn Section).unwrap();
    }
    let ram = MissingRam::new(64 << 20);
    let switch = || {
        find("migration", || (qemu.execute("query-migrate", json!({}))["status"] == "active").then_some(()));
        qemu.execute("migrate-start-postcopy", json!({}));
    };
    thread::scope(|scope| scope.spawn(switch).join().unwrap());
    let mut number = 0;
    let shared = RefCell::new(&mut qemu);
    let again = || {
        let qemu = &mut **shared.borrow_mut();
        await_paused(qemu);
        let mut uri = uri.clone();
        uri["resume"] = true.into();
        number += 1;
        if number == 2 {
            qemu.execute("migrate-set-parameters", json!({"max-postcopy-bandwidth": 0}));
        }
        qemu.execute("migrate", uri);
        listener.accept_resuming(TIMEOUT).unwrap()
    };
    let mut channel = Breaking {
        socket: Some(first),
        counts: &|| ram.listens(),
        left: 5000,
        next: vec![usize::MAX, 10_001],
        await_active: Box::new(|| await_active(&mut shared.borrow_mut())),
        again: Box::new(again),
    };
    let arrival = taken_in(&mut channel, &mut machine, &mut sections, &ram);
    assert!(channel.next.is_empty(), "a connection did not break: {arrival:?}");
    drop((channel, sections));
    assert_eq!(arrival.phase, DestinationPhase::Completed, "{:?}", arrival.error);
    assert!(machine.running && ram.is_whole());
    qemu.await_completed();
    // The reset vector's far jump, in the last page of the firmware.
    assert_eq!(ram.byte(2, 0x1fff0), 0xea);
}
