use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev", subsection(name = "dev/x", need = Self::x, crate = vmstate))]
struct Dev {
    #[vmstate(subsection = "dev/x")]
    a: u8,
}

fn main() {}
