use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = dev, version = "3", post_load, subsection = "dev/x")]
struct Dev {
    #[vmstate(skip = true)]
    a: u8,
    #[vmstate(since)]
    b: u8,
    #[vmstate(exists = |_, _| true)]
    c: u8,
    #[vmstate(since = )]
    d: u8,
    #[vmstate]
    e: u8,
    #[vmstate(since 3)]
    f: u8,
    #[vmstate(since = -1)]
    g: u8,
}

fn main() {}
