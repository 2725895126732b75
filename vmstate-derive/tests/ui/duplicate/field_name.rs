use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    count: u8,
    #[vmstate(name = "count")]
    other: u8,
}

/// Meant: QEMU numbers them in its self-description.
#[derive(VmState)]
#[vmstate(name = "meant")]
struct Meant {
    #[vmstate(name = "env.xmm_regs")]
    low: u64,
    #[vmstate(name = "env.xmm_regs")]
    high: u64,
}

fn main() {}
