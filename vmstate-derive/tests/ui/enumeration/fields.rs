//! Enums with fields: each variant has its number, each field a type with bytes and a default.

use vmstate::VmState;

struct Foreign;

#[derive(VmState)]
#[vmstate(name = "mode")]
#[repr(u8)]
enum Mode {
    Off,
    Level(u8),
    Both { left: u8 },
    Computed(u8) = 1 << 2,
    #[vmstate(since = 2)]
    New(#[vmstate(range = 0..2)] u8) = 5,
}

#[derive(VmState)]
enum NoRepr {
    Level(u8),
}

#[derive(VmState)]
#[repr(u8)]
enum Unsupported {
    Off = 0,
    Other(Foreign) = 1,
}

fn main() {}
