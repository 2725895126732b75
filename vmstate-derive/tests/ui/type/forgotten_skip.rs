use vmstate::VmState;

struct Backend;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    a: u8,
    backend: Backend,
}

fn main() {}
