//! Subsections of subsections: each rule once.

use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
#[vmstate(subsection(name = "dev/x"))]
#[vmstate(subsection(name = "dev/x2"))]
#[vmstate(subsection(name = "dev/y"))]
#[vmstate(subsection(name = "dev/y/z"))]
struct Dev {
    #[vmstate(subsection = "dev/x")]
    x: u8,
    #[vmstate(subsection = "dev/x2")]
    x2: u8,
    #[vmstate(subsection = "dev/x", len = z, max = 4)]
    counted_elsewhere: Vec<u8>,
    #[vmstate(subsection = "dev/y/z")]
    z: u8,
    #[vmstate(subsection = "dev/y", len = z, max = 4)]
    counted_inside: Vec<u8>,
}

fn main() {}
