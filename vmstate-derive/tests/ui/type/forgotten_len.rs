use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    list: Vec<u8>,
}

fn main() {}
