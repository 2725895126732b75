//! The serial port as QEMU's "serial" section, version 3.
//!
//! `vm-superio` keeps its registers private, so they are copied into these structs to save and back to load.

use vm_superio::serial::SerialState;
use vmstate::codec::{Reader, Writer};
use vmstate::error::{Error, ErrorKind, Result};
use vmstate::schema::{Description, Kind};
use vmstate::{Timer, VmState, Wire};

use super::{
    FCR_ENABLE, FCR_STICKY, FIFO_DEPTH, IER_RECEIVED, IER_TRANSMITTER_EMPTY, IIR_FIFO_ENABLED, IIR_NONE, IIR_RECEIVED,
    IIR_TRANSMITTER_EMPTY, Serial,
};

const IIR_ID: u8 = 0x0f;
const IIR_TIMEOUT: u8 = 0x0c;
const LSR_DATA_READY: u8 = 0x01;
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;
const LSR_HOLDING_EMPTY: u8 = 0x20;

/// How often QEMU retries to send a byte before it drops the byte.
const RETRIES_MAX: u32 = 4;

/// QEMU's isa-serial: section around the chip.
#[derive(VmState, Debug, Default)]
#[vmstate(name = "serial", version = 3, minimum_version = 2)]
struct Port {
    state: Chip,
}

/// QEMU's 16550A.
#[derive(VmState, Clone, Debug)]
#[vmstate(name = "serial", version = 3, minimum_version = 2, validate = Self::check)]
#[vmstate(subsection(name = "serial/thr_ipending", version = 1, needed = Self::hides_transmitter_empty))]
#[vmstate(subsection(name = "serial/tsr", version = 1, needed = Self::retries))]
#[vmstate(subsection(name = "serial/recv_fifo", version = 1, needed = Self::has_received))]
#[vmstate(subsection(name = "serial/xmit_fifo", version = 1, needed = Self::has_unsent))]
#[vmstate(subsection(name = "serial/fifo_timeout_timer", version = 1, needed = Self::never))]
#[vmstate(subsection(name = "serial/timeout_ipending", version = 1, needed = Self::timed_out))]
#[vmstate(subsection(name = "serial/poll", version = 1, needed = Self::never))]
struct Chip {
    #[vmstate(since = 2)]
    divider: u16,
    rbr: u8,
    ier: u8,
    iir: u8,
    lcr: u8,
    mcr: u8,
    lsr: u8,
    msr: u8,
    scr: u8,
    #[vmstate(since = 3)]
    fcr_vmstate: u8,
    /// Transmitter-empty interrupt pending; -1 if `iir` tells.
    #[vmstate(subsection = "serial/thr_ipending")]
    thr_ipending: i32,
    #[vmstate(subsection = "serial/tsr")]
    tsr_retry: u32,
    #[vmstate(subsection = "serial/tsr")]
    thr: u8,
    #[vmstate(subsection = "serial/tsr")]
    tsr: u8,
    #[vmstate(subsection = "serial/recv_fifo")]
    recv_fifo: Fifo,
    #[vmstate(subsection = "serial/xmit_fifo")]
    xmit_fifo: Fifo,
    /// Time at which QEMU reports bytes below the trigger level; minivmm reports them at once.
    #[vmstate(subsection = "serial/fifo_timeout_timer")]
    fifo_timeout_timer: Timer,
    #[vmstate(subsection = "serial/timeout_ipending")]
    timeout_ipending: i32,
    /// Polling of a real port's modem lines, which minivmm does not have.
    #[vmstate(subsection = "serial/poll")]
    poll_msl: i32,
    #[vmstate(subsection = "serial/poll")]
    modem_status_poll: Timer,
}

/// QEMU's byte queue: `num` bytes from `head` on, wrapping around.
#[derive(VmState, Clone, Debug, Default)]
#[vmstate(name = "Fifo8", version = 1)]
struct Fifo {
    #[vmstate(buffer, since = 1)]
    data: [u8; FIFO_DEPTH],
    head: u32,
    num: u32,
}

impl Fifo {
    fn of(bytes: &[u8]) -> Self {
        let mut fifo = Self { num: bytes.len() as u32, ..Self::default() };
        fifo.data[..bytes.len()].copy_from_slice(bytes);
        fifo
    }

    fn bytes(&self) -> impl Iterator<Item = u8> {
        (0..self.num).map(|at| self.data[(self.head.wrapping_add(at) as usize) % FIFO_DEPTH])
    }

    fn check(&self, name: &str) -> Result<(), String> {
        if self.head as usize >= FIFO_DEPTH || self.num as usize > FIFO_DEPTH {
            return Err(format!("{name} has head {} and {} bytes, it holds {FIFO_DEPTH}", self.head, self.num));
        }
        Ok(())
    }
}

impl Default for Chip {
    fn default() -> Self {
        Self {
            divider: 0,
            rbr: 0,
            ier: 0,
            iir: IIR_NONE,
            lcr: 0,
            mcr: 0,
            lsr: LSR_TRANSMITTER_EMPTY,
            msr: 0,
            scr: 0,
            fcr_vmstate: 0,
            thr_ipending: -1,
            tsr_retry: 0,
            thr: 0,
            tsr: 0,
            recv_fifo: Fifo::default(),
            xmit_fifo: Fifo::default(),
            fifo_timeout_timer: Timer::default(),
            timeout_ipending: 0,
            poll_msl: -1,
            modem_status_poll: Timer::default(),
        }
    }
}

impl Chip {
    /// As in QEMU: sent only if the interrupt identification shows another cause instead.
    fn hides_transmitter_empty(&self) -> bool {
        let shown = self.iir & IIR_ID == IIR_TRANSMITTER_EMPTY;
        self.ier & IER_TRANSMITTER_EMPTY != 0 && (self.thr_ipending != 0) != shown
    }

    fn retries(&self) -> bool {
        self.tsr_retry != 0
    }

    fn has_received(&self) -> bool {
        self.recv_fifo.num != 0
    }

    fn has_unsent(&self) -> bool {
        self.xmit_fifo.num != 0
    }

    fn timed_out(&self) -> bool {
        self.timeout_ipending != 0
    }

    fn never(&self) -> bool {
        false
    }

    fn check(&self) -> Result<(), String> {
        if self.ier & 0xf0 != 0 {
            return Err(format!("ier {:#x} has bits that a 16550A does not have", self.ier));
        }
        if self.tsr_retry > RETRIES_MAX {
            return Err(format!("tsr_retry {} is more than {RETRIES_MAX}", self.tsr_retry));
        }
        self.recv_fifo.check("recv_fifo")?;
        self.xmit_fifo.check("xmit_fifo")
    }

    fn fifo_enabled(&self) -> bool {
        self.fcr_vmstate & FCR_ENABLE != 0
    }

    /// Number of received bytes that raises an interrupt at once: the trigger level in FCR bits 6 and 7.
    fn trigger_level(&self) -> usize {
        if self.fifo_enabled() { [1, 4, 8, 14][usize::from(self.fcr_vmstate >> 6)] } else { 1 }
    }

    fn freeze(Thawed { chip, fcr, unsent }: &Thawed) -> Self {
        let mut frozen = Self {
            divider: u16::from_be_bytes([chip.baud_divisor_high, chip.baud_divisor_low]),
            ier: chip.interrupt_enable,
            lcr: chip.line_control,
            mcr: chip.modem_control,
            lsr: chip.line_status,
            msr: chip.modem_status,
            scr: chip.scratch,
            fcr_vmstate: *fcr,
            thr_ipending: i32::from(chip.interrupt_identification & IIR_TRANSMITTER_EMPTY != 0),
            ..Self::default()
        };
        if let [first, rest @ ..] = unsent.as_slice() {
            (frozen.tsr_retry, frozen.tsr) = (1, *first);
            frozen.xmit_fifo = Fifo::of(&rest[..rest.len().min(FIFO_DEPTH)]);
        }
        if frozen.fifo_enabled() {
            frozen.recv_fifo = Fifo::of(&chip.in_buffer);
        } else {
            frozen.rbr = chip.in_buffer.first().copied().unwrap_or(0);
        }
        // `vm-superio` keeps a set of causes, QEMU only the one of highest priority.
        let received = chip.interrupt_enable & IER_RECEIVED != 0 && !chip.in_buffer.is_empty();
        let cause = if received && chip.in_buffer.len() >= frozen.trigger_level() {
            IIR_RECEIVED
        } else if received {
            frozen.timeout_ipending = 1;
            IIR_TIMEOUT
        } else if frozen.thr_ipending != 0 && frozen.ier & IER_TRANSMITTER_EMPTY != 0 {
            IIR_TRANSMITTER_EMPTY
        } else {
            IIR_NONE
        };
        frozen.iir = cause | if frozen.fifo_enabled() { IIR_FIFO_ENABLED } else { 0 };
        frozen
    }

    /// Returns the chip, its FIFO control register, and the output that the source could not write.
    fn thaw(&self) -> Thawed {
        let in_buffer: Vec<u8> = match (self.fifo_enabled(), self.lsr & LSR_DATA_READY != 0) {
            (true, _) => self.recv_fifo.bytes().collect(),
            (false, true) => vec![self.rbr],
            (false, false) => Vec::new(),
        };
        let mut unsent = Vec::new();
        if self.tsr_retry != 0 {
            unsent.push(self.tsr);
            if !self.fifo_enabled() && self.lsr & LSR_HOLDING_EMPTY == 0 {
                unsent.push(self.thr);
            }
        }
        unsent.extend(self.xmit_fifo.bytes());
        let empty_pending = match self.thr_ipending {
            -1 => self.iir & IIR_ID == IIR_TRANSMITTER_EMPTY,
            pending => pending != 0,
        };
        let mut causes = 0;
        if self.ier & IER_RECEIVED != 0 && !in_buffer.is_empty() {
            causes |= IIR_RECEIVED;
        }
        if self.ier & IER_TRANSMITTER_EMPTY != 0 && (empty_pending || !unsent.is_empty()) {
            causes |= IIR_TRANSMITTER_EMPTY;
        }
        let [baud_divisor_high, baud_divisor_low] = self.divider.to_be_bytes();
        let chip = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: self.ier,
            interrupt_identification: if causes == 0 { IIR_NONE } else { causes },
            line_control: self.lcr,
            line_status: LSR_TRANSMITTER_EMPTY | u8::from(!in_buffer.is_empty()),
            modem_control: self.mcr,
            modem_status: self.msr,
            scratch: self.scr,
            in_buffer,
        };
        Thawed { chip, fcr: self.fcr_vmstate & FCR_STICKY, unsent }
    }
}

/// State that a load replaces.
#[derive(Clone, Debug)]
pub struct Thawed {
    pub(super) chip: SerialState,
    pub(super) fcr: u8,
    pub(super) unsent: Vec<u8>,
}

impl Wire for Serial {
    type Undo = Thawed;
    const KIND: Kind = Port::KIND;

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        Port { state: Chip::freeze(&self.remember()) }.save(out)
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        self.load_version(input, Port::DESCRIPTION.version)
    }

    fn remember(&self) -> Thawed {
        Thawed { chip: self.uart.state(), fcr: self.fcr, unsent: self.unsent.clone() }
    }

    fn undo(&mut self, before: Thawed) {
        // Cannot fail: the state was a chip's.
        let _ = self.replace(before);
    }
}

impl VmState for Serial {
    const DESCRIPTION: &'static Description = Port::DESCRIPTION;

    fn load_version(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()> {
        let mut port = Port::default();
        port.load_version(input, version)?;
        self.replace(port.state.thaw())
            .map_err(|error| Error::new(ErrorKind::Rejected, error.to_string()).at(input.offset()).in_field("state"))
    }
}

impl vmstate::Section for Serial {
    fn description(&self) -> &'static Description {
        Self::DESCRIPTION
    }

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        Wire::save(self, out)
    }

    fn load(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()> {
        self.load_or_keep(input, version)
    }
}
