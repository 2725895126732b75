//! 16550A serial port at PIO 0x3f8, GSI 4: registers by `vm-superio`, with the FIFO depth of the real chip.
//!
//! `vm-superio` has no FIFO control register, and a 64-byte buffer. QEMU's stream has that register and a FIFO of 16 bytes, so
//! both are modelled here: the chip never holds more bytes than the stream can carry.

mod output;
mod state;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vm_superio::Trigger;
use vm_superio::serial::NoEvents;

pub use self::output::{CAPACITY as OUTPUT_CAPACITY, Output, Sink};
pub use self::state::Thawed;
use crate::bus::BusDevice;
use crate::devices::{Device, DeviceError};
use crate::irq::IrqLine;

/// Receive FIFO of a 16550A.
const FIFO_DEPTH: usize = 16;

/// Input kept for the guest beyond its FIFO.
pub const INPUT_CAPACITY: usize = 4096;

/// How long a pause waits for the sink. This is downtime; output that is left then is migrated.
const DRAIN: Duration = Duration::from_millis(20);

const DATA: u8 = 0;
const IIR_FCR: u8 = 2;
const LCR: u8 = 3;

const IER_RECEIVED: u8 = 0x01;
const IER_TRANSMITTER_EMPTY: u8 = 0x02;

const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR_RECEIVE: u8 = 0x02;
/// Bits of FCR that keep their value: enable, DMA mode, trigger level. The clear bits reset themselves.
const FCR_STICKY: u8 = 0xc9;
const IIR_FIFO_ENABLED: u8 = 0xc0;
const IIR_NONE: u8 = 0x01;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const LCR_DLAB: u8 = 0x80;
const MCR_LOOP: u8 = 0x10;

/// The serial port. Interrupts are edges: the line goes high, then low.
pub struct Serial {
    uart: Uart,
    fcr: u8,
    /// Input from the host that does not fit the FIFO yet.
    input: VecDeque<u8>,
    /// Output that the source could not write.
    unsent: Vec<u8>,
    irq: Arc<dyn IrqLine>,
    output: Output,
}

type Uart = vm_superio::Serial<Pulse, NoEvents, Output>;

impl Serial {
    /// Makes a port after reset.
    pub fn new(irq: Arc<dyn IrqLine>, output: Output) -> Self {
        let uart = Uart::new(Pulse::new(&irq), output.clone());
        Self { uart, fcr: 0, input: VecDeque::new(), unsent: Vec::new(), irq, output }
    }

    /// Takes input for the guest; returns how many bytes were taken. The caller keeps the rest and tries again later.
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.input_room());
        self.input.extend(&bytes[..taken]);
        self.refill();
        taken
    }

    /// Number of bytes that [`enqueue`](Self::enqueue) takes now.
    pub fn input_room(&self) -> usize {
        INPUT_CAPACITY.saturating_sub(self.input.len())
    }

    /// Stops writing output until the port is released or resumes; returns the input that the guest has not received, and the
    /// output that is not written.
    pub fn hold(&mut self) -> (Vec<u8>, Vec<u8>) {
        let unsent = self.unsent.iter().copied().chain(self.output.hold()).collect();
        (self.input.iter().copied().collect(), unsent)
    }

    /// Continues with input and output of another process, once the port is released or resumes.
    pub fn take_over(&mut self, input: Vec<u8>, output: Vec<u8>) {
        (self.input, self.unsent) = (input.into(), output);
    }

    /// Writes the output that was held, here or in another process.
    pub fn release(&mut self) {
        self.output.release();
        // Cannot fail.
        let _ = self.output.write_all(&std::mem::take(&mut self.unsent));
    }

    /// Bytes that the receiver can hold now; without FIFO it is a single register.
    fn depth(&self) -> usize {
        if self.fcr & FCR_ENABLE == 0 { 1 } else { FIFO_DEPTH }
    }

    fn received(&self) -> usize {
        self.uart.state().in_buffer.len()
    }

    fn in_loopback(&self) -> bool {
        self.uart.state().modem_control & MCR_LOOP != 0
    }

    /// Moves waiting input into the receiver. In loopback mode the receiver gets only the transmitter's bytes.
    fn refill(&mut self) {
        if self.input.is_empty() || self.in_loopback() {
            return;
        }
        let room = self.depth().saturating_sub(self.received()).min(self.input.len());
        let bytes: Vec<u8> = self.input.drain(..room).collect();
        let taken = self.uart.enqueue_raw_bytes(&bytes);
        debug_assert!(taken.is_ok_and(|taken| taken == bytes.len()), "the chip's buffer holds 64 bytes");
    }

    fn write_fcr(&mut self, value: u8) {
        let toggled = (value ^ self.fcr) & FCR_ENABLE != 0;
        if toggled || value & FCR_CLEAR_RECEIVE != 0 {
            self.clear_receiver();
        }
        self.fcr = if value & FCR_ENABLE == 0 { 0 } else { value & FCR_STICKY };
    }

    /// Clears the receiver through the data port, the only way in `vm-superio`, which the divisor latch may hide.
    fn clear_receiver(&mut self) {
        let lcr = self.uart.read(LCR);
        self.set(LCR, lcr & !LCR_DLAB);
        for _ in 0..self.received() {
            self.uart.read(DATA);
        }
        self.set(LCR, lcr);
    }

    /// Reads the interrupt identification, which is the pending cause of highest priority. If that is the empty transmitter,
    /// the read acknowledges it.
    fn identify(&mut self) -> u8 {
        let causes = self.uart.state().interrupt_identification;
        let fifo = if self.fcr & FCR_ENABLE == 0 { 0 } else { IIR_FIFO_ENABLED };
        if causes & IIR_RECEIVED != 0 {
            return IIR_RECEIVED | fifo;
        }
        self.uart.read(IIR_FCR) & !IIR_FIFO_ENABLED | fifo
    }

    /// Recomputes the pending causes. `vm-superio` drops received data as a cause once a byte or the identification was read,
    /// and reports causes that are disabled. The real chip reports received data as long as there is any; so does the state,
    /// for a guest that migrates. The line already has the right level, so there is no edge.
    fn settle(&mut self) {
        let mut chip = self.uart.state();
        let received = chip.interrupt_enable & IER_RECEIVED != 0 && !chip.in_buffer.is_empty();
        let emptied = if chip.interrupt_enable & IER_TRANSMITTER_EMPTY != 0 { IIR_TRANSMITTER_EMPTY } else { 0 };
        let causes = if received { IIR_RECEIVED } else { 0 } | chip.interrupt_identification & emptied;
        let identification = if causes == 0 { IIR_NONE } else { causes };
        if chip.interrupt_identification != identification {
            chip.interrupt_identification = identification;
            let silent = Pulse { irq: Arc::clone(&self.irq), silent: AtomicBool::new(true) };
            // Cannot fail: the state is a chip's.
            if let Ok(uart) = Uart::from_state(&chip, silent, NoEvents, self.output.clone()) {
                uart.interrupt_evt().silent.store(false, Ordering::Relaxed);
                self.uart = uart;
            }
        }
    }

    fn replace(&mut self, with: Thawed) -> Result<(), vm_superio::serial::Error<Infallible>> {
        self.uart = Uart::from_state(&with.chip, Pulse::new(&self.irq), NoEvents, self.output.clone())?;
        self.fcr = with.fcr;
        self.unsent = with.unsent;
        Ok(())
    }

    /// Ignores errors: neither [`Output`] nor a line can fail.
    fn set(&mut self, register: u8, value: u8) {
        let _ = self.uart.write(register, value);
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset as u8..).zip(data) {
            *byte = if register == IIR_FCR { self.identify() } else { self.uart.read(register) };
            self.settle();
        }
        self.refill();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (register, &byte) in (offset as u8..).zip(data) {
            let loops = register == DATA && self.in_loopback() && self.uart.state().line_control & LCR_DLAB == 0;
            match register {
                IIR_FCR => self.write_fcr(byte),
                DATA if loops && self.received() >= self.depth() => {} // overrun: the byte is lost
                _ => self.set(register, byte),
            }
            self.settle();
        }
        self.refill();
    }
}

impl Device for Serial {
    /// Gives the sink a moment to take the output. A terminal that nobody reads must not prevent a pause.
    fn pause(&mut self, deadline: Duration) -> Result<(), DeviceError> {
        self.output.drain(deadline.min(DRAIN));
        Ok(())
    }

    /// Raises a pending interrupt again: this host's interrupt controller has not seen its edge, and a guest that waits for
    /// "transmitter empty" would wait for ever.
    fn resume(&mut self) {
        self.release();
        self.refill();
        if self.uart.state().interrupt_identification != IIR_NONE {
            Pulse::new(&self.irq).pulse();
        }
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial").field("uart", &self.uart.state()).field("fcr", &self.fcr).finish_non_exhaustive()
    }
}

/// Pulses the interrupt line: an edge.
struct Pulse {
    irq: Arc<dyn IrqLine>,
    silent: AtomicBool,
}

impl Pulse {
    fn new(irq: &Arc<dyn IrqLine>) -> Self {
        Self { irq: Arc::clone(irq), silent: AtomicBool::new(false) }
    }

    fn pulse(&self) {
        if !self.silent.load(Ordering::Relaxed) {
            self.irq.set(true);
            self.irq.set(false);
        }
    }
}

impl Trigger for Pulse {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.pulse();
        Ok(())
    }
}
