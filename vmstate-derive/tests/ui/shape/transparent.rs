use vmstate::VmState;

#[derive(VmState)]
#[vmstate(transparent, name = "pair")]
struct Pair(u8, u8);

#[derive(VmState)]
#[vmstate(transparent)]
struct Nothing;

#[derive(VmState)]
#[vmstate(transparent, crate = ::vmstate)]
struct Wide(#[vmstate(wire = u16)] u32);

struct Backend;

#[derive(VmState)]
#[vmstate(transparent)]
struct Foreign(Backend);

fn main() {}
