use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    #[vmstate(equal)]
    words: [u16; 2],
}

fn main() {}
