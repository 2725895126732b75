//! `vm_superio`: the state of its serial port.

use vm_superio::serial::SerialState;

use super::as_ours;

/// Size of the receive FIFO (`FIFO_SIZE` of `vm_superio::serial`, which refuses more).
const FIFO_SIZE: usize = 0x40;

/// The fields of `SerialState`, in the order in which `vm_superio` declares them.
#[derive(vmstate_derive::VmState)]
#[vmstate(name = "vm_superio_serial", crate = crate, remote = SerialState)]
struct Ours {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    #[vmstate(counted = u8, max = FIFO_SIZE)]
    in_buffer: Vec<u8>,
}

as_ours!(SerialState, Ours);
