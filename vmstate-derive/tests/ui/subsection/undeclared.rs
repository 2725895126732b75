use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    #[vmstate(subsection = "dev/x")]
    a: u8,
    #[vmstate(subsection = "dev")]
    b: u8,
}

fn main() {}
