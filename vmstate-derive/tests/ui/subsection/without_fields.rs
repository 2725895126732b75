use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev", subsection(name = "dev/x"))]
struct Dev {
    a: u8,
}

fn main() {}
