use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    #[vmstate(equal, at_most_current)]
    a: u8,
    #[vmstate(equal, wire = u16)]
    b: u32,
    #[vmstate(at_most_current, buffer)]
    c: [u8; 2],
    #[vmstate(range = 3)]
    d: u8,
    #[vmstate(skip, range = 0..=3)]
    e: u8,
}

fn main() {}
