use std::collections::BTreeMap;

use vmstate::VmState;

#[derive(VmState, Default, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[vmstate(name = "inner", subsection(name = "inner/more"))]
struct Inner {
    x: u8,
    #[vmstate(subsection = "inner/more")]
    y: u8,
}

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    #[vmstate(list, max = 4)]
    a_byte_ends_a_list: Vec<Inner>,
    #[vmstate(map, max = 4)]
    a_byte_follows_a_value: BTreeMap<u8, Inner>,
    last: u8,
}

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Keys {
    #[vmstate(map, max = 4)]
    values_follow_keys: BTreeMap<Inner, u8>,
}

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Pointers {
    pointer: Option<Box<Inner>>,
    last: u8,
}

fn main() {}
