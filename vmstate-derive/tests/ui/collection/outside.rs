use vmstate::VmState;

const FIRST: usize = 3;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    #[vmstate(slice = 2..9)]
    beyond: [u8; 4],
    #[vmstate(slice = FIRST..2)]
    backwards: [u16; 4],
    #[vmstate(buffer, slice = ..=4)]
    inclusive: [u8; 4],
}

fn main() {}
