//! The serial port as a driver sees it: register values of the 16550A data sheet.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use minivmm::bus::BusDevice;
use minivmm::devices::Device;
use minivmm::devices::serial::{Output, Serial};
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
    let serial = Serial::new(edges.clone(), Output::new(Box::new(sink.clone())).unwrap());
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
    /// Waits until the sink has `expected`, and checks that it has no more.
    fn expect_output(&self, expected: &[u8]) {
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while self.sink.0.lock().unwrap().len() < expected.len() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(*self.sink.0.lock().unwrap(), expected);
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
    rig.expect_output(b"hello");
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
    let mut serial = Serial::new(Arc::new(Edges::default()), Output::new(Box::new(Stuck)).unwrap());
    for _ in 0..100_000 {
        serial.write(RBR, b"x");
    }
    serial.pause(Duration::ZERO).unwrap();
}

/// The first write waits for the test's signal, and so does all later output.
#[test]
fn a_sink_that_takes_nothing_is_owed_a_mebibyte_and_no_more() {
    struct Gated(Receiver<()>, Sender<usize>);
    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Released for good once the other end is gone.
            let _ = self.0.recv();
            self.1.send(bytes.len()).unwrap();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let ((gate, opens), (taken, takes)) = (channel(), channel());
    let mut output = Output::new(Box::new(Gated(opens, taken))).unwrap();
    output.write_all(b"x").unwrap();
    for _ in 0..3 << 10 {
        output.write_all(&[b'y'; 1024]).unwrap();
        // The thread is writing its first bytes by then, and takes no others.
        std::thread::yield_now();
    }
    drop(gate);
    drop(output);
    assert_eq!(takes.iter().sum::<usize>(), 1 << 20);
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
    assert_eq!(rig.edges(), 2, "unacknowledged: the interrupt is raised again after a pause");
    assert_eq!(rig.get(IIR), 0x02);
    assert_eq!(rig.get(IIR), 0x01, "reading acknowledges");
    rig.serial.resume();
    assert_eq!(rig.edges(), 2);
}

/// National Semiconductor PC16550D §8.6.3: the interrupt for received data ends with the last byte, and has priority over the
/// transmitter's, which stays pending.
#[test]
fn received_data_is_pending_until_it_is_read_and_hides_an_empty_transmitter() {
    let mut rig = rig();
    rig.put(IIR, 0x81);
    rig.put(IER, 0x03);
    assert_eq!(rig.get(IIR), 0xc2);
    rig.serial.enqueue(b"ab");
    rig.put(RBR, b'x');
    let edges = rig.edges();
    for _ in 0..2 {
        assert_eq!(rig.get(IIR), 0xc4, "reading it does not acknowledge it");
    }
    assert_eq!(rig.get(RBR), b'a');
    assert_eq!(rig.get(IIR), 0xc4, "one byte is left");
    rig.put(IER, 0x02);
    assert_eq!(rig.get(IIR), 0xc2, "what is not enabled is not shown");
    assert_eq!(rig.get(IIR), 0xc1);
    rig.put(IER, 0x01);
    assert_eq!(rig.get(IIR), 0xc4);
    assert_eq!(rig.get(RBR), b'b');
    assert_eq!(rig.get(IIR), 0xc1);
    assert_eq!(rig.edges(), edges + 1, "an edge when received data was enabled again, none for what was pending");
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

mod section {
    use super::*;
    use vmstate::Section;
    use vmstate::codec::{Reader, Writer};

    fn save(rig: &mut Rig) -> Vec<u8> {
        let mut out = Writer::new();
        rig.serial.save(&mut out).unwrap();
        out.into_bytes()
    }

    fn load(rig: &mut Rig, bytes: &[u8], version: u32) -> vmstate::Result<()> {
        let mut input = Reader::strict(bytes);
        rig.serial.load(&mut input, version)?;
        assert_eq!(input.rest(), b"");
        Ok(())
    }

    fn subsection(name: &str, body: &[u8]) -> Vec<u8> {
        [&[5, name.len() as u8], name.as_bytes(), &[0, 0, 0, 1], body].concat()
    }

    /// divider 12, rbr, ier 5, iir, lcr 8N1, mcr, lsr, msr, scr, fcr: as in a stream of QEMU 10.0.2.
    const QEMU: [u8; 11] = [0x00, 0x0c, 0x00, 0x05, 0xc1, 0x13, 0x0b, 0x60, 0xb0, 0x00, 0x81];

    #[test]
    fn qemus_port_loads_and_saves_byte_for_byte() {
        for accelerator in ["kvm", "tcg"] {
            let path = format!(
                "{}/../tests/fixtures/streams/microvm-{accelerator}-serial.section",
                env!("CARGO_MANIFEST_DIR")
            );
            let bytes = std::fs::read(path).unwrap();
            assert_eq!(bytes, QEMU);
            let mut rig = rig();
            load(&mut rig, &bytes, 3).unwrap();
            assert_eq!(save(&mut rig), bytes);
            assert_eq!((rig.get(IER), rig.get(IIR), rig.get(LCR), rig.get(MCR)), (5, 0xc1, 0x13, 0x0b));
            assert_eq!(rig.edges(), 0);
        }
    }

    #[test]
    fn versions_outside_the_window_are_refused() {
        let mut rig = rig();
        for version in [0, 1, 4] {
            assert!(load(&mut rig, &QEMU, version).is_err(), "version {version}");
        }
        // The nested struct always has the layout of its newest version.
        load(&mut rig, &QEMU, 2).unwrap();
    }

    #[test]
    fn unread_input_travels() {
        let mut source = rig();
        source.put(IIR, 0x81);
        source.put(IER, 0x01);
        source.serial.enqueue(b"secret");
        let bytes = save(&mut source);
        // Six bytes are below the trigger level of eight: QEMU reports them by the timeout interrupt.
        let mut expected = vec![0, 12, 0, 1, 0xcc, 3, 8, 0x61, 0xb0, 0, 0x81];
        expected.extend(subsection("serial/recv_fifo", b"secret\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x06"));
        expected.extend(subsection("serial/timeout_ipending", &[0, 0, 0, 1]));
        assert_eq!(bytes, expected);
        let mut destination = rig();
        load(&mut destination, &bytes, 3).unwrap();
        destination.serial.resume();
        assert!(destination.edges() > 0, "the guest is told");
        assert_eq!(destination.get(IIR), 0xc4);
        let got: Vec<u8> =
            std::iter::from_fn(|| (destination.get(LSR) & 1 != 0).then(|| destination.get(RBR))).collect();
        assert_eq!(got, b"secret");
    }

    #[test]
    fn fifo_of_qemu_may_wrap_and_output_left_over_is_sent() {
        let mut bytes = vec![0, 12, 0, 3, 0xc4, 3, 8, 0x01, 0xb0, 0, 0x01];
        bytes.extend(subsection("serial/thr_ipending", &[0, 0, 0, 1]));
        bytes.extend(subsection("serial/tsr", &[0, 0, 0, 1, b'?', b'A']));
        bytes.extend(subsection("serial/recv_fifo", b"cd____________ab\0\0\0\x0e\0\0\0\x04"));
        bytes.extend(subsection("serial/xmit_fifo", b"BC______________\0\0\0\0\0\0\0\x02"));
        bytes.extend(subsection("serial/fifo_timeout_timer", &[1; 8]));
        bytes.extend(subsection("serial/poll", &[0; 12]));
        let mut rig = rig();
        load(&mut rig, &bytes, 3).unwrap();
        assert!(rig.sink.0.lock().unwrap().is_empty(), "nothing leaves before the guest runs");
        let again = save(&mut rig);
        let mut rig = self::rig();
        load(&mut rig, &again, 3).unwrap();
        rig.serial.resume();
        rig.expect_output(b"ABC");
        let got: Vec<u8> = std::iter::from_fn(|| (rig.get(LSR) & 1 != 0).then(|| rig.get(RBR))).collect();
        assert_eq!(got, b"abcd");
        assert_eq!(rig.get(IIR), 0xc2, "transmitter empty is still to come");
    }

    #[test]
    fn transmitter_empty_is_not_lost() {
        let mut source = rig();
        source.put(IER, 0x02);
        let bytes = save(&mut source);
        assert_eq!(bytes[4], 0x02, "iir");
        let mut destination = rig();
        load(&mut destination, &bytes, 3).unwrap();
        let before = destination.edges();
        destination.serial.resume();
        assert_eq!(destination.edges(), before + 1);
        assert_eq!(destination.get(IIR), 0x02);
    }

    #[test]
    fn a_load_that_fails_changes_nothing() {
        let mut rig = rig();
        rig.put(IIR, 0x81);
        rig.serial.enqueue(b"kept");
        rig.put(7, 0x5a);
        let before = save(&mut rig);
        let fifo = |head: u8, num: u8| {
            [&QEMU[..], &subsection("serial/recv_fifo", &[&[0; 16][..], &[0, 0, 0, head, 0, 0, 0, num]].concat())]
                .concat()
        };
        let mut bad_ier = QEMU;
        bad_ier[3] = 0x10;
        let cases = [
            fifo(16, 1),
            fifo(0, 17),
            bad_ier.to_vec(),
            [&QEMU[..], &subsection("serial/tsr", &[0, 0, 0, 5, 0, 0])].concat(),
            [&QEMU[..], &subsection("serial/unknown", &[])].concat(),
        ];
        for bytes in cases {
            assert!(load(&mut rig, &bytes, 3).is_err());
            assert_eq!(save(&mut rig), before);
        }
        for len in 0..QEMU.len() {
            assert!(load(&mut rig, &QEMU[..len], 3).is_err());
        }
        assert_eq!(save(&mut rig), before);
    }
}
