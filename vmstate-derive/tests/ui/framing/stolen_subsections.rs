use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Inner {
    a: u8,
}

#[derive(VmState)]
#[vmstate(name = "between")]
struct Between {
    inner: [Inner; 2],
}

#[derive(VmState)]
#[vmstate(name = "device", version = 2, minimum_version = 1, subsection(name = "device/x"))]
struct Device {
    between: Between,
    #[vmstate(since = 2)]
    b: u8,
    #[vmstate(subsection = "device/x")]
    x: u8,
}

/// Bytes that are always there keep them apart.
#[derive(VmState)]
#[vmstate(name = "device", subsection(name = "device/x"))]
struct Apart {
    between: Between,
    b: u8,
    #[vmstate(subsection = "device/x")]
    x: u8,
}

fn main() {}
