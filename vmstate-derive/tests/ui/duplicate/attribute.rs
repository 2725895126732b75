use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev", name = "dev")]
#[vmstate(version = 1)]
#[vmstate(version = 2)]
struct Dev {
    #[vmstate(skip, skip)]
    a: u8,
    #[vmstate(since = 1, since = 1)]
    b: u8,
}

fn main() {}
