use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    bits: u32,
    #[vmstate(list, max = 4)]
    not_a_list: [u8; 4],
    #[vmstate(map, max = 4)]
    pairs: Vec<(u64, u8)>,
    #[vmstate(bitmap)]
    bytes: [u8; 8],
    #[vmstate(bitmap, len = bits, max = 64)]
    words: Vec<u32>,
    #[vmstate(buffer, len = bits, max = 64)]
    buffer: Vec<u16>,
    #[vmstate(slice = 1..2)]
    slice: Vec<u16>,
    #[vmstate(range = 0.0..=1.0)]
    range: f64,
}

fn main() {}
