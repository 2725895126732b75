//! A struct takes subsections of its name for its own from inside of whatever it is wrapped in.

use std::sync::Mutex;

use vmstate::VmState;

#[derive(VmState, Default)]
#[vmstate(name = "dev")]
struct Inner {
    a: u8,
}

#[derive(VmState)]
#[vmstate(name = "device", subsection(name = "device/x"))]
struct InATuple {
    inner: (u8, Inner),
    #[vmstate(subsection = "device/x")]
    x: u8,
}

#[derive(VmState)]
#[vmstate(name = "device", subsection(name = "device/x"))]
struct BehindAPointer {
    inner: [Option<Box<Mutex<(Inner,)>>>; 1],
    #[vmstate(subsection = "device/x")]
    x: u8,
}

#[derive(VmState)]
#[vmstate(name = "device", subsection(name = "device/x"))]
struct Counted {
    count: u8,
    #[vmstate(len = count, max = 4)]
    inner: Vec<(u8, Inner)>,
    #[vmstate(subsection = "device/x")]
    x: u8,
}

/// A tuple of a struct with stolen subsections and something behind it that is fine: the rule goes inwards, too.
#[derive(VmState)]
#[vmstate(name = "outer")]
struct FaultInside {
    stolen: ([InATuple; 1],),
}

/// A byte ends the list.
#[derive(VmState)]
#[vmstate(name = "device", subsection(name = "device/x"))]
struct FineInAList {
    #[vmstate(list, max = 4)]
    inner: Vec<(u8, Inner)>,
    #[vmstate(subsection = "device/x")]
    x: u8,
}

fn main() {}
