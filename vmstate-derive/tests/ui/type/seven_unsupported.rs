//! One error a field, however often the derived code uses its type.

use std::collections::{BTreeMap, VecDeque};

use vmstate::VmState;

#[derive(Default)]
struct Foreign;

#[derive(VmState)]
#[vmstate(name = "dev", subsection(name = "dev/x"))]
struct Dev {
    count: u8,
    plain: Foreign,
    #[vmstate(len = count, max = 2)]
    counted: Vec<Foreign>,
    #[vmstate(list, max = 2)]
    list: VecDeque<Foreign>,
    #[vmstate(map, max = 2)]
    map: BTreeMap<u8, Foreign>,
    #[vmstate(buffer)]
    buffer: [u16; 2],
    tuple: (u8, Foreign),
    #[vmstate(subsection = "dev/x")]
    whole: String,
}

fn main() {}
