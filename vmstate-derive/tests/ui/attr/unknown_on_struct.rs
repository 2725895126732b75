use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev", minimum = 1, needed = Self::x, skip)]
struct Dev {
    a: u8,
}

fn main() {}
