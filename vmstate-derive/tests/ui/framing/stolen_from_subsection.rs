//! A struct at the end of a subsection would take the subsection's own subsections for its own.

use vmstate::VmState;

#[derive(VmState, Default)]
#[vmstate(name = "dev/x")]
struct Inner {
    a: u8,
}

#[derive(VmState)]
#[vmstate(name = "dev")]
#[vmstate(subsection(name = "dev/x"))]
#[vmstate(subsection(name = "dev/x/y"))]
struct Dev {
    #[vmstate(subsection = "dev/x")]
    inner: Inner,
    #[vmstate(subsection = "dev/x/y")]
    y: u8,
}

fn main() {}
