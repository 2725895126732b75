use vmstate::VmState;

#[derive(VmState)]
struct Dev {
    a: u8,
}

#[derive(VmState)]
#[vmstate(name = "", subsection(version = 1))]
struct Other {
    a: u8,
}

fn main() {}
