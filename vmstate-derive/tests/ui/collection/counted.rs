use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct WithMistakes {
    #[vmstate(counted = u16)]
    without_max: Vec<u8>,
    #[vmstate(counted, max = 4)]
    no_integer: Vec<u8>,
    #[vmstate(counted = u16, max = 0)]
    nothing: Vec<u8>,
    #[vmstate(counted = u16, list, max = 4)]
    twice: Vec<u8>,
    #[vmstate(counted = u16, buffer, max = 4)]
    buffer: Vec<u8>,
    #[vmstate(map, via = u8, max = 4)]
    map: Vec<u8>,
    #[vmstate(count = u8, max = 4)]
    misspelt: Vec<u8>,
    #[vmstate(with = [module])]
    without_length: [u8; 2],
}

fn main() {}
