use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
enum Dev {
    A,
    B,
}

fn main() {}
