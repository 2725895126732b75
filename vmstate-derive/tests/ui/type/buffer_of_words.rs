use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    #[vmstate(buffer)]
    a: [u16; 4],
}

fn main() {}
