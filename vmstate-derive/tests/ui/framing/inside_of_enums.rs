//! A value that ends in subsections is refused before other bytes in a variant, too.

use vmstate::VmState;

#[derive(VmState, Default)]
#[vmstate(name = "in", subsection(name = "in/s"))]
struct In {
    a: u8,
    #[vmstate(subsection = "in/s")]
    s: u8,
}

#[derive(VmState)]
#[repr(u8)]
enum Inside {
    None = 0,
    Pair(In, u8) = 1,
}

#[derive(VmState)]
#[repr(u8)]
enum Ends {
    None = 0,
    Alone(In) = 1,
}

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    inside: Inside,
    ends: Ends,
    fine_at_the_end: Ends,
}

fn main() {}
