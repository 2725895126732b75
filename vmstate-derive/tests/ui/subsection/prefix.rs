use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
#[vmstate(subsection(name = "other/x"))]
#[vmstate(subsection(name = "dev/"))]
#[vmstate(subsection(name = "devx"))]
struct Dev {
    #[vmstate(subsection = "other/x")]
    a: u8,
    #[vmstate(subsection = "dev/")]
    b: u8,
    #[vmstate(subsection = "devx")]
    c: u8,
}

fn main() {}
