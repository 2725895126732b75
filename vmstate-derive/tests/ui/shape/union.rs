use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
union Dev {
    a: u8,
    b: i8,
}

fn main() {}
