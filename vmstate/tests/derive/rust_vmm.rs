//! The states of rust-vmm's queue and serial port, and the devices themselves as sections.

use std::error::Error;
use std::sync::{Arc, Mutex};

use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestAddress;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial, SerialState};
use vmstate::codec::{Reader, Writer};
use vmstate::section::{ByState, SaveRestore, Section, Sections};
use vmstate::testing::bytes;
use vmstate::{ErrorKind, VmState};

#[derive(VmState)]
#[vmstate(name = "net")]
struct Net {
    status: u8,
    queues: [Queue; 2],
    state: QueueState,
}

fn net() -> Net {
    let mut queue = Queue::new(256).unwrap();
    queue.set_size(16);
    queue.set_desc_table_address(Some(0x1000), Some(2));
    queue.set_avail_ring_address(Some(0x3000), None);
    queue.set_used_ring_address(Some(0x4000), None);
    queue.set_next_avail(5);
    queue.set_next_used(4);
    queue.set_event_idx(true);
    queue.set_ready(true);
    let state = queue.state();
    Net { status: 1, queues: [queue, Queue::new(256).unwrap()], state }
}

/// Maximum, next available and used, event index, size, ready, addresses.
const QUEUE: &[u8] = b"\x01\0\0\x05\0\x04\x01\0\x10\x01\
    \0\0\0\x02\0\0\x10\0\0\0\0\0\0\0\x30\0\0\0\0\0\0\0\x40\0";
const UNUSED_QUEUE: &[u8] = b"\x01\0\0\0\0\0\0\x01\0\0\
    \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn net_bytes() -> Vec<u8> {
    [&[1], QUEUE, UNUSED_QUEUE, QUEUE].concat()
}

#[test]
fn a_queue_is_its_state() {
    assert_eq!(bytes(&mut net()), net_bytes());
    let mut fresh =
        Net { status: 0, queues: [Queue::new(256).unwrap(), Queue::new(256).unwrap()], state: QueueState::default() };
    fresh.load_or_keep(&mut Reader::strict(&net_bytes()), 1).unwrap();
    assert_eq!(fresh.queues, net().queues);
    assert_eq!(fresh.state, net().state);
    assert_eq!(fresh.queues[0].desc_table(), GuestAddress(0x2_0000_1000).0);
    for end in 0..net_bytes().len() {
        fresh.load_or_keep(&mut Reader::strict(&net_bytes()[..end]), 1).unwrap_err();
        assert_eq!(fresh.queues, net().queues, "cut at {end}");
    }
}

#[test]
fn a_state_that_no_queue_can_have_is_refused() {
    let refused = |at: usize, value: &[u8]| {
        let mut wire = net_bytes();
        wire[at..at + value.len()].copy_from_slice(value);
        let mut device = net();
        let error = device.load_or_keep(&mut Reader::strict(&wire), 1).unwrap_err();
        assert_eq!(device.queues, net().queues);
        assert_eq!(error.path(), "queues[0]");
        (error.kind(), error.to_string())
    };
    assert_eq!(refused(8, &[0, 15]).0, ErrorKind::Rejected);
    assert_eq!(refused(18, &[1]).0, ErrorKind::Rejected);
    let (kind, text) = refused(1, &[2, 0]);
    let expected =
        "queues[0] at 0x1: the stream has a queue of at most 512 elements, this machine has 256: configure both alike";
    assert_eq!((kind, text.as_str()), (ErrorKind::Incompatible, expected));
}

#[derive(Clone)]
struct Line(Arc<Mutex<u32>>);

impl Trigger for Line {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        *self.0.lock().unwrap() += 1;
        Ok(())
    }
}

/// A serial port as a VMM owns it: its parts are kept, so that it can be created again.
struct Port {
    serial: Serial<Line, NoEvents, Vec<u8>>,
    line: Line,
}

impl Port {
    fn new() -> Self {
        let line = Line(Arc::default());
        Self { serial: Serial::new(line.clone(), Vec::new()), line }
    }
}

impl SaveRestore for Port {
    type State = SerialState;

    fn save_state(&mut self) -> Result<SerialState, Box<dyn Error + Send + Sync>> {
        Ok(self.serial.state())
    }

    fn restore_state(&mut self, state: SerialState) -> Result<(), Box<dyn Error + Send + Sync>> {
        if state.scratch == 0xee {
            return Err("0xee is kept for the test".into());
        }
        let serial = Serial::from_state(&state, self.line.clone(), NoEvents, Vec::new());
        self.serial = serial.map_err(|refused| format!("{refused:?}"))?;
        Ok(())
    }
}

/// Divisor 12, line control 3, scratch 7, two bytes received.
const PORT: &[u8] = b"\x0c\0\0\x01\x03\x61\x08\xb0\x07\x02hi";

#[test]
fn a_serial_port_is_restored_from_its_state() {
    let mut port = Port::new();
    port.serial.write(7, 7).unwrap();
    port.serial.enqueue_raw_bytes(b"hi").unwrap();
    let mut out = Writer::new();
    ByState(&mut port).save(&mut out).unwrap();
    assert_eq!(out.into_bytes(), PORT);

    let mut other = Port::new();
    ByState(&mut other).load(&mut Reader::strict(PORT), 1).unwrap();
    assert_eq!(other.serial.state(), port.serial.state());
    assert_eq!((other.serial.read(0), other.serial.read(0), other.serial.read(7)), (b'h', b'i', 7));
}

#[test]
fn every_form_of_a_device_with_a_state_is_a_section() {
    let mut kept = Port::new();
    let shared = Arc::new(Mutex::new(Port::new()));
    let mut sections = Sections::new();
    sections.add(ByState(&mut kept)).unwrap();
    sections.add(ByState(Arc::clone(&shared))).unwrap();
    sections.add(ByState(Box::new(Port::new()))).unwrap();
    sections.add(ByState(Port::new())).unwrap();
    let locked: Arc<Mutex<dyn Section>> = Arc::new(Mutex::new(ByState(Port::new())));
    sections.add(locked).unwrap();
    for instance in 0..5 {
        sections.load("vm_superio_serial", instance, 1, &mut Reader::strict(PORT)).unwrap();
    }
    drop(sections);
    assert_eq!(kept.serial.state().scratch, 7);
    assert_eq!(shared.lock().unwrap().serial.state().scratch, 7);
}

#[test]
fn what_does_not_load_or_is_refused_leaves_the_device() {
    let mut port = ByState(Port::new());
    port.load(&mut Reader::strict(PORT), 1).unwrap();
    for end in 0..PORT.len() {
        assert_eq!(port.load(&mut Reader::strict(&PORT[..end]), 1).unwrap_err().kind(), ErrorKind::Incomplete);
    }
    let mut refused = |change: &[(usize, u8)]| {
        let mut wire = PORT.to_vec();
        change.iter().for_each(|(at, value)| wire[*at] = *value);
        let error = port.load(&mut Reader::strict(&wire), 1).unwrap_err();
        let mut out = Writer::new();
        port.save(&mut out).unwrap();
        assert_eq!(out.into_bytes(), PORT);
        (error.kind(), error.to_string())
    };
    let text = "at 0x0: restore_state: 0xee is kept for the test".to_owned();
    assert_eq!(refused(&[(8, 0xee)]), (ErrorKind::Rejected, text));
    let text = "in_buffer at 0x9: it has 65 elements, from 0 to 64 are allowed".to_owned();
    assert_eq!(refused(&[(9, 65)]), (ErrorKind::Malformed, text));
    assert_eq!(port.load(&mut Reader::strict(PORT), 2).unwrap_err().kind(), ErrorKind::Incompatible);
}

#[test]
fn a_device_whose_thread_panicked_neither_saves_nor_loads() {
    let shared = Arc::new(Mutex::new(Port::new()));
    let panicking = Arc::clone(&shared);
    let panicked = std::thread::spawn(move || {
        let _guard = panicking.lock();
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(panicked.join().is_err());
    let error = ByState(shared).save(&mut Writer::new()).unwrap_err();
    assert_eq!(
        (error.kind(), error.message()),
        (ErrorKind::Rejected, "a thread panicked while it changed this device")
    );
}
