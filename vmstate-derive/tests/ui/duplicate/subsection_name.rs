use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev", subsection(name = "dev/x"), subsection(name = "dev/x"))]
struct Dev {
    #[vmstate(subsection = "dev/x")]
    a: u8,
}

fn main() {}
