use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "inner", version = 3, minimum_version = 2)]
struct Inner {
    a: u8,
}

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    #[vmstate(struct_version = 4)]
    too_new: Inner,
    #[vmstate(struct_version = 1)]
    too_old: Inner,
    #[vmstate(struct_version = 2)]
    right: Inner,
}

fn main() {}
