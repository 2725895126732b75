use vmstate::VmState;

#[derive(Default)]
struct Backend;

#[derive(VmState)]
#[vmstate(name = "dev")]
#[vmstate(subsection(name = "dev/x"))]
struct Dev {
    #[vmstate(subsection = "dev/x")]
    x: Option<Backend>,
}

fn main() {}
