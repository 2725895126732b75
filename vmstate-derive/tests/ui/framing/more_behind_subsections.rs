use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "leaf", subsection(name = "leaf/x"))]
struct Leaf {
    a: u8,
    #[vmstate(subsection = "leaf/x")]
    x: u8,
}

/// It ends as its last field does.
#[derive(VmState)]
#[vmstate(name = "wrapper", version = 2, minimum_version = 1)]
struct Wrapper {
    leaf: Leaf,
    // More bytes in a new stream only.
    #[vmstate(since = 2)]
    b: u8,
}

#[derive(VmState)]
#[vmstate(name = "dev", subsection(name = "dev/x"))]
struct Dev {
    leaf: Leaf,
    wrapper: Wrapper,
    #[vmstate(unframed)]
    given: Leaf,
    #[vmstate(subsection = "dev/x")]
    leaves: [Leaf; 2],
    one: [Leaf; 1],
}

fn main() {}
