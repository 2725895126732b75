//! Target: a whole stream, loaded at once and in pieces.
//!
//! ```text
//! byte 0: length of a piece (low 7 bits, times 16), QEMU-compatible (high bit) | stream
//! ```

use vmstate::codec::Strictness;

use crate::machine::Machine;
use crate::{Target, devices, streams};

pub(crate) const TARGET: Target = Target { name: "stream", memory: 8 << 20, body, seeds };

fn body(input: &[u8]) {
    let [how, stream @ ..] = input else { return };
    let strictness = if how & 0x80 == 0 { Strictness::Strict } else { Strictness::QemuCompatible };
    let mut whole = Machine::microvm();
    let loaded = whole.load(stream, strictness, usize::MAX).map_err(|error| error.to_string());
    let mut pieces = Machine::microvm();
    let at_once = 16 * (1 + usize::from(how & 0x7f));
    let loaded_in_pieces = pieces.load(stream, strictness, at_once).map_err(|error| error.to_string());
    assert_eq!(loaded_in_pieces, loaded, "the result depends on the size of pieces");
    assert_eq!(pieces.saved(), whole.saved(), "the result depends on the size of pieces");
}

fn seeds() -> Vec<Vec<u8>> {
    let devices = devices::all();
    let known: Vec<&str> = devices.iter().map(|&(name, ..)| name).collect();
    let streams = [streams::RESET, streams::KVM, streams::TCG].map(|stream| streams::loadable(stream, &known));
    let own = Machine::with(&[("ram", 2 << 12)]).save();
    streams
        .iter()
        .chain([&own])
        .flat_map(|stream| [0x04, 0xff].map(|how| [&[how], stream.as_slice()].concat()))
        .collect()
}
