use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev", version = 2)]
#[vmstate(subsection(name = "dev/x"))]
#[vmstate(subsection(name = "dev/y", version = 2, needed = Self::has_y))]
struct Dev {
    alone: Option<u8>,
    #[vmstate(subsection = "dev/x")]
    x: Option<u8>,
    #[vmstate(subsection = "dev/x")]
    beside: u8,
    #[vmstate(subsection = "dev/y", since = 2)]
    y: Option<u8>,
}

impl Dev {
    fn has_y(&self) -> bool {
        true
    }
}

fn main() {}
