//! Post-copy with a second connection for requested pages (`postcopy-preempt`), between two sides of this library and with a QEMU at
//! either end: a requested page arrives while the main channel is stalled.

use std::cell::Cell;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;
use vmstate::channel::{Channel, Listener, SocketChannel};
use vmstate::migrate::{Control, DestinationPhase, Phase, SourcePhase};
use vmstate::section::{Section, Sections};
use vmstate_lab::wait::find;

use super::postcopy::{MissingRam, WANTED, filled_source, migrate_in_postcopy};
use super::{Qemu, Ram, TIMEOUT, Vm, depart, devices, skipped, taken_in};

/// Offset of a page that is not zero, far behind the pages that are sent first.
const FAR: u64 = 3999 * 4096;

/// A source's main channel that sends nothing in post-copy until `may_send` returns true, and the path for the second connection.
struct StalledChannel<'a> {
    socket: SocketChannel,
    path: &'a Path,
    control: &'a Control,
    may_send: &'a dyn Fn() -> bool,
}

impl Channel for StalledChannel<'_> {
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        if self.control.progress().phase == Phase::Source(SourcePhase::Postcopy) && !(self.may_send)() {
            thread::sleep(timeout.min(Duration::from_millis(1)));
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.send(bytes, timeout)
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        self.socket.receive(into, timeout)
    }

    fn urgent(&mut self) -> io::Result<Option<Box<dyn Channel>>> {
        let socket = SocketChannel::connect_unix(self.path, TIMEOUT, &|| true)?;
        Ok(Some(Box::new(socket)))
    }
}

/// A destination's main channel, the listener for second connections, and the number of second connections that were accepted.
struct CountingChannel<'a> {
    socket: SocketChannel,
    listener: &'a Listener,
    accepted: Cell<u32>,
}

impl<'a> CountingChannel<'a> {
    fn new(listener: &'a Listener) -> Self {
        Self { socket: listener.accept_source(&|| true).unwrap(), listener, accepted: Cell::new(0) }
    }
}

impl Channel for CountingChannel<'_> {
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        self.socket.send(bytes, timeout)
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        self.socket.receive(into, timeout)
    }

    fn urgent(&mut self) -> io::Result<Option<Box<dyn Channel>>> {
        let urgent = self.listener.accept_urgent()?;
        self.accepted.set(self.accepted.get() + u32::from(urgent.is_some()));
        Ok(urgent.map(|socket| Box::new(socket) as Box<dyn Channel>))
    }
}

fn preempting() -> Control {
    let control = Control::default();
    control.set_downtime_limit(TIMEOUT);
    let mut parameters = control.parameters();
    (parameters.postcopy_ram, parameters.postcopy_preempt) = (true, true);
    control.set_parameters(parameters).unwrap();
    control.start_postcopy();
    control
}

/// Another process connects before the source does, and sends bytes that begin as a page record does.
#[test]
fn a_requested_page_arrives_while_the_main_channel_is_stalled() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = Listener::unix(&path).unwrap();
    let (here, there) = (MissingRam::new(64 << 20).ram, MissingRam::new(64 << 20));
    // Zero pages are so short that all would be sent before the switch-over.
    here.bytes.lock().unwrap()[0].iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    here.bytes.lock().unwrap()[0][WANTED as usize + 9] = 0x77;
    let control = preempting();
    let may_send = || there.puts().contains(&(0, WANTED));
    let mut other = UnixStream::connect(&path).unwrap();
    other.write_all(b"\0\0\0\0\0\0\0\x08\x04what").unwrap();
    let first = thread::scope(|scope| {
        let arrival = scope.spawn(|| {
            let mut channel = CountingChannel::new(&listener);
            let arrival = taken_in(&mut channel, &mut Vm::default(), &mut Sections::new(), &there);
            assert_eq!(arrival.phase, DestinationPhase::Completed, "{:?}", arrival.error);
            assert_eq!(channel.accepted.get(), 2, "the other process, and the source");
            arrival.report
        });
        let first = scope.spawn(|| find("page", || may_send().then(|| there.puts()[0])));
        let socket = SocketChannel::connect_unix(&path, TIMEOUT, &|| true).unwrap();
        let mut channel = StalledChannel { socket, path: &path, control: &control, may_send: &may_send };
        let mut machine = Vm { running: true, ..Vm::default() };
        let departure = depart(&mut channel, &mut machine, &mut Sections::new(), &here, &control);
        assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
        // Each page is sent once, on either connection.
        let (sent, received) = (departure.report, arrival.join().unwrap());
        assert_eq!(sent.pages, received.pages);
        assert!(received.bytes <= sent.bytes, "{received:?} of {sent:?}");
        first.join().unwrap()
    });
    assert_eq!(first, (0, WANTED));
    assert!(there.is_whole());
    assert!(there.ram.bytes.into_inner().unwrap()[0] == here.bytes.into_inner().unwrap()[0]);
}

/// A channel that does not implement `urgent` has no second connection.
#[test]
fn a_source_without_a_second_connection_keeps_its_guest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = Listener::unix(&path).unwrap();
    let control = preempting();
    let mut machine = Vm { running: true, ..Vm::default() };
    let there = MissingRam::new(16 << 20);
    let departure = thread::scope(|scope| {
        let arrival = scope.spawn(|| {
            let mut channel = listener.accept_source(&|| true).unwrap();
            taken_in(&mut channel, &mut Vm::default(), &mut Sections::new(), &there)
        });
        let mut channel = SocketChannel::connect_unix(&path, TIMEOUT, &|| true).unwrap();
        let departure = depart(&mut channel, &mut machine, &mut Sections::new(), &Ram::new(), &control);
        drop(channel);
        assert_eq!(arrival.join().unwrap().phase, DestinationPhase::Failed);
        departure
    });
    assert_eq!(departure.phase, SourcePhase::Failed);
    assert!(machine.running);
    let error = departure.error.unwrap().to_string();
    assert!(
        error.contains("need a second connection") && error.contains("turn capability postcopy-preempt off"),
        "{error}"
    );
}

#[test]
fn a_qemu_destination_gets_a_requested_page_while_the_main_channel_is_stalled() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut qemu = Qemu::start(&["-incoming", "defer"]);
    qemu.switch_on(&["postcopy-ram", "postcopy-preempt"]);
    qemu.execute("migrate-incoming", json!({"uri": format!("unix:{}", path.display()), "exit-on-error": false}));
    let socket = find("listener", || SocketChannel::connect_unix(&path, TIMEOUT, &|| true).ok());
    let (ram, control, dump) = (Ram::filled(), preempting(), directory.path().join("dump"));
    let is_dumped = AtomicBool::new(false);
    let departure = thread::scope(|scope| {
        // QEMU's main thread reads a page far behind the pages that are sent first, and so waits for it.
        scope.spawn(|| {
            find("post-copy", || {
                let status = qemu.execute("query-migrate", json!({}))["status"].clone();
                (status == "postcopy-active").then_some(())
            });
            qemu.execute("pmemsave", json!({"val": FAR, "size": 4096, "filename": dump}));
            is_dumped.store(true, Ordering::SeqCst);
        });
        let may_send = || is_dumped.load(Ordering::SeqCst);
        let mut channel = StalledChannel { socket, path: &path, control: &control, may_send: &may_send };
        let mut machine = Vm { running: true, ..Vm::default() };
        depart(&mut channel, &mut machine, &mut Sections::new(), &ram, &control)
    });
    assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
    assert!(std::fs::read(&dump).unwrap() == ram.bytes.lock().unwrap()[0][FAR as usize..][..4096]);
    qemu.await_completed();
    qemu.check_low_memory(&ram, directory.path());
}

#[test]
fn a_qemu_source_sends_a_requested_page_on_the_second_connection() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (listener, mut qemu) = filled_source(
        directory.path(),
        &["return-path", "postcopy-ram", "postcopy-preempt"],
        json!({"max-bandwidth": 16384, "max-postcopy-bandwidth": 65536}),
    );
    let (ram, mut machine) = (MissingRam::new(64 << 20), Vm::default());
    let mut devices = devices();
    let mut sections = Sections::new();
    for (name, instance, device) in &mut devices {
        sections.register(name, *instance, device as &mut dyn Section).unwrap();
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            migrate_in_postcopy(&mut qemu, directory.path());
            find("page", || ram.puts().contains(&(0, WANTED)).then_some(()));
            qemu.execute("migrate-set-parameters", json!({"max-postcopy-bandwidth": 0}));
        });
        let mut channel = CountingChannel::new(&listener);
        let arrival = taken_in(&mut channel, &mut machine, &mut sections, &ram);
        assert_eq!(arrival.phase, DestinationPhase::Completed, "{:?}", arrival.error);
        assert_eq!(channel.accepted.get(), 1);
    });
    drop(sections);
    assert!(machine.running && ram.is_whole());
    let puts = ram.puts();
    let turn = |offset| puts.iter().position(|put| *put == (0, offset)).unwrap();
    assert!(turn(WANTED) < turn(WANTED - 4096));
    let status = qemu.await_completed();
    assert_eq!(status["ram"]["postcopy-requests"], 1, "{status}");
}
