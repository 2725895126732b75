use vmstate::VmState;

struct Foreign;

#[derive(VmState)]
#[vmstate(name = "signed")]
struct Signed {
    #[vmstate(counted = i16, max = 4)]
    field: Vec<u8>,
}

#[derive(VmState)]
#[vmstate(name = "array")]
struct Array {
    #[vmstate(counted = u16, max = 4)]
    field: [u8; 4],
}

#[derive(VmState)]
#[vmstate(name = "elements")]
struct Elements {
    #[vmstate(counted = u16, max = 4)]
    field: Vec<Foreign>,
}

#[derive(VmState)]
#[vmstate(name = "wide")]
struct Wide {
    #[vmstate(counted = u8, max = 256)]
    field: String,
}

fn main() {}
