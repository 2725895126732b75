//! Values that are read, and mean nothing.

use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev", subsection(name = "dev/wide", version = 256), subsection(name = "dev/\0"))]
struct Dev {
    n: u8,
    #[vmstate(len = n * 2 + 1, max = 9)]
    sum: Vec<u8>,
    #[vmstate(len = n + 1, max = 9)]
    one_more: Vec<u8>,
    #[vmstate(name = "a\0b")]
    nul: u8,
    #[vmstate(subsection = "dev/wide")]
    wide: u8,
    #[vmstate(subsection = "dev/\0")]
    end: u8,
}

#[derive(VmState)]
#[vmstate(name = "packed")]
#[repr(C, packed)]
struct Packed {
    a: u8,
    b: u32,
}

#[derive(VmState)]
#[vmstate(transparent)]
#[repr(packed(2))]
struct PackedTransparent(u32);

fn main() {}
