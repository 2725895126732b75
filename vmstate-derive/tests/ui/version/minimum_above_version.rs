use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev", version = 3, minimum_version = 4)]
#[vmstate(subsection(name = "dev/x", minimum_version = 2))]
struct Dev {
    #[vmstate(subsection = "dev/x")]
    a: u8,
}

fn main() {}
