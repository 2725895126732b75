use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    #[vmstate(sinc = 1)]
    a: u8,
    #[vmstate(colour)]
    b: u8,
    #[vmstate(post_load = Self::thaw)]
    c: u8,
}

fn main() {}
