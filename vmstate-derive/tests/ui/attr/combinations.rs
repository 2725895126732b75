use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev", version = 2)]
struct Dev {
    #[vmstate(skip, since = 2)]
    a: u8,
    #[vmstate(since = 2, exists = Self::x)]
    b: u8,
    #[vmstate(with = codec, wire = u16)]
    c: u8,
    n: u8,
    #[vmstate(len = n, max = 3, wire = u16)]
    d: Vec<u8>,
}

fn main() {}
