use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    count: u8,
    #[vmstate(via = u8, wire = u16)]
    a: u32,
    #[vmstate(tmp = Tmp, via = u8)]
    b: u32,
    #[vmstate(struct_version = 1, len = count, max = 3)]
    c: u32,
    #[vmstate(via = u8, equal)]
    d: u32,
    #[vmstate(skip, via = u8)]
    e: u32,
}

fn main() {}
