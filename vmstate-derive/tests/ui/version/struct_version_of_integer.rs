use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    #[vmstate(struct_version = 1)]
    a: u32,
}

fn main() {}
