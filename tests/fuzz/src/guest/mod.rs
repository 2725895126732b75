//! Target: a guest's driver. The input is a program of register and memory accesses, notifications, pauses and moves to
//! another device, for a disk, a network card, a serial port or the event device of minivmm.
//!
//! ```text
//! byte 0: device (low 2 bits), properties of its backend (high bits) | operations
//! ```
//!
//! At a move the state is saved; a fresh device must load it strictly and save the same bytes. Then the program goes on
//! at both devices, each with its own memory and backend: both must answer every read alike, and change memory and
//! backend alike.

mod chains;
mod driver;
mod hosts;
mod moves;
mod ports;
mod seeds;
mod surroundings;
mod world;

use crate::program::Program;
use driver::Driver;
use hosts::{Card, Disk};

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "guest", memory: 16 << 20, body, seeds: seeds::all };

fn body(input: &[u8]) {
    let [first, program @ ..] = input else { return };
    let mut program = Program::new(program);
    let host = first >> 2;
    match first & 3 {
        0 => Driver::new(Disk::new(host)).run(&mut program),
        1 => Driver::new(Card::new(host)).run(&mut program),
        2 => ports::serial(&mut program),
        _ => ports::event_device(&mut program),
    }
}
