//! The serial port as a driver sees it: register values of the 16550A data sheet.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use minivmm::bus::BusDevice;
use minivmm::devices::Device;
use minivmm::devices::serial::Serial;
use minivmm::irq::IrqLine;

const RBR: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;

/// Counts rising edges.
#[derive(Default)]
struct Edges(AtomicUsize);

impl IrqLine for Edges {
    fn set(&self, high: bool) {
        self.0.fetch_add(usize::from(high), Ordering::SeqCst);
    }
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Rig {
    serial: Serial,
    edges: Arc<Edges>,
    sink: Sink,
}

fn rig() -> Rig {
    let (edges, sink) = (Arc::new(Edges::default()), Sink::default());
    let serial = Serial::new(edges.clone(), Box::new(sink.clone())).unwrap();
    Rig { serial, edges, sink }
}

impl Rig {
    fn get(&mut self, register: u64) -> u8 {
        let mut byte = [0];
        self.serial.read(register, &mut byte);
        byte[0]
    }
    fn put(&mut self, register: u64, value: u8) {
        self.serial.write(register, &[value]);
    }
    fn edges(&self) -> usize {
        self.edges.0.load(Ordering::SeqCst)
    }
}

#[test]
fn output_reaches_the_sink_in_order_and_line_is_always_ready() {
    let mut rig = rig();
    for &byte in b"hello" {
        rig.put(RBR, byte);
    }
    assert_eq!(rig.get(LSR), 0x60, "THRE and TEMT");
    rig.serial.pause(Duration::from_secs(5)).unwrap();
    assert_eq!(*rig.sink.0.lock().unwrap(), b"hello");
}

#[test]
fn a_sink_that_blocks_does_not_block_the_port() {
    struct Stuck;
    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            loop {
                std::thread::park();
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut serial = Serial::new(Arc::new(Edges::default()), Box::new(Stuck)).unwrap();
    for _ in 0..100_000 {
        serial.write(RBR, b"x");
    }
    serial.pause(Duration::ZERO).unwrap();
}

#[test]
fn fifo_control_decides_depth_and_identification() {
    let mut rig = rig();
    assert_eq!(rig.get(IIR), 0x01, "no interrupt, no FIFO");
    rig.put(IIR, 0x81);
    assert_eq!(rig.get(IIR), 0xc1, "no interrupt, FIFOs enabled");
    assert_eq!(rig.serial.enqueue(&[b'a'; 20]), 20);
    rig.put(IIR, 0x83);
    let left = std::iter::from_fn(|| (rig.get(LSR) & 1 != 0).then(|| rig.get(RBR))).count();
    assert_eq!(left, 4, "clearing the FIFO dropped 16, the others were still on the line");
}

#[test]
fn input_interrupts_once_and_comes_out_in_order() {
    let mut rig = rig();
    rig.put(IIR, 0x01);
    rig.put(IER, 0x01);
    let text: Vec<u8> = (0..100).collect();
    assert_eq!(rig.serial.enqueue(&text), 100);
    assert_eq!(rig.edges(), 1);
    assert_eq!(rig.get(IIR), 0xc4, "received data available");
    let mut got = Vec::new();
    while rig.get(LSR) & 0x01 != 0 {
        got.push(rig.get(RBR));
    }
    assert_eq!(got, text);
}

#[test]
fn transmitter_empty_interrupts_when_enabled() {
    let mut rig = rig();
    rig.put(IER, 0x02);
    assert_eq!(rig.edges(), 1);
    rig.serial.pause(Duration::from_secs(1)).unwrap();
    rig.serial.resume();
    assert_eq!(rig.edges(), 2, "not acknowledged: raised again after a pause");
    assert_eq!(rig.get(IIR), 0x02);
    assert_eq!(rig.get(IIR), 0x01, "reading acknowledges");
    rig.serial.resume();
    assert_eq!(rig.edges(), 2);
}

#[test]
fn loopback_returns_output_and_loses_what_overruns() {
    let mut rig = rig();
    rig.put(IIR, 0x01);
    rig.put(MCR, 0x10);
    for byte in 0..20 {
        rig.put(RBR, byte);
    }
    let mut got = Vec::new();
    while rig.get(LSR) & 0x01 != 0 {
        got.push(rig.get(RBR));
    }
    assert_eq!(got, (0..16).collect::<Vec<u8>>());
}

#[test]
fn divisor_latch_hides_data() {
    let mut rig = rig();
    rig.put(LCR, 0x83);
    rig.put(RBR, 0x34);
    rig.put(IER, 0x12);
    assert_eq!((rig.get(RBR), rig.get(IER)), (0x34, 0x12));
    rig.put(LCR, 0x03);
    assert_eq!(rig.get(IER), 0);
    rig.serial.pause(Duration::from_secs(1)).unwrap();
    assert!(rig.sink.0.lock().unwrap().is_empty());
}
