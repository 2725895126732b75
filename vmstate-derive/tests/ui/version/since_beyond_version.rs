use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev", version = 3, minimum_version = 1)]
#[vmstate(subsection(name = "dev/x"))]
struct Dev {
    #[vmstate(since = 4)]
    a: u8,
    #[vmstate(since = 3)]
    b: u8,
    #[vmstate(subsection = "dev/x", since = 2)]
    c: u8,
}

fn main() {}
