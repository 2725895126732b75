//! `via` needs both conversions.

use vmstate::VmState;

#[derive(Clone)]
struct Line(u32);

#[derive(VmState)]
#[vmstate(name = "half")]
struct Half {
    line: u8,
}

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    #[vmstate(via = Half)]
    line: Line,
}

fn main() {}
