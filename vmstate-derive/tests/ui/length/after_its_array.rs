use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev", subsection(name = "dev/x"), subsection(name = "dev/y"))]
struct Dev {
    #[vmstate(len = n, max = 3)]
    a: Vec<u8>,
    n: u8,
    #[vmstate(subsection = "dev/x")]
    m: u8,
    #[vmstate(subsection = "dev/y", len = m, max = 3)]
    b: Vec<u8>,
    #[vmstate(len = nothing, max = 3)]
    c: Vec<u8>,
}

fn main() {}
