//! Target: sections with content of disks, consoles and networks, as a destination loads them.
//!
//! ```text
//! byte 0: section (low 2 bits) | program
//! ```
//!
//! Named dirty bitmaps and the image of a disk must be those of a model that is given each accepted record; a refused
//! record changes nothing. Bytes in transit must reach guest and peer as the section has them.

mod bitmaps;
mod disk;
mod in_transit;
mod seeds;

use crate::Target;
use crate::program::Program;

pub(crate) const TARGET: Target = Target { name: "arrival", memory: 16 << 20, body, seeds: seeds::all };

const BITMAPS: u8 = 0;
const DISK: u8 = 1;
const IN_TRANSIT: u8 = 2;

fn body(input: &[u8]) {
    let [section, program @ ..] = input else { return };
    match section & 3 {
        BITMAPS => bitmaps::run(&mut Program::new(program)),
        DISK => disk::run(&mut Program::new(program)),
        IN_TRANSIT => in_transit::run(program),
        _ => {}
    }
}
