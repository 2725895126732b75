use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    n: u8,
    #[vmstate(len = n)]
    a: Vec<u8>,
    #[vmstate(max = 3)]
    b: u8,
    #[vmstate(len = n, max = 0)]
    c: Vec<u8>,
}

fn main() {}
