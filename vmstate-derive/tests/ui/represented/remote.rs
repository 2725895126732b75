//! A mirror has all fields of the other struct, of the same types.

use vmstate::VmState;

mod foreign {
    #[derive(Clone)]
    pub struct Regs {
        pub rax: u64,
        pub rbx: u64,
    }
}

#[derive(VmState)]
#[vmstate(name = "one_less", remote = foreign::Regs)]
struct OneLess {
    rax: u64,
}

#[derive(VmState)]
#[vmstate(name = "other_type", remote = foreign::Regs)]
struct OtherType {
    rax: u64,
    rbx: u32,
}

#[derive(VmState)]
#[vmstate(name = "generic", remote = foreign::Regs)]
struct Generic<T> {
    rax: T,
    rbx: u64,
}

fn main() {}
