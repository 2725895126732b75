use std::collections::BTreeMap;

use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    #[vmstate(list)]
    without_max: Vec<u8>,
    #[vmstate(map)]
    map_without_max: BTreeMap<u64, u8>,
    #[vmstate(map, max = 0)]
    nothing: BTreeMap<u64, u8>,
    #[vmstate(list, max = 4, slice = 1..2)]
    two_of_them: Vec<u8>,
    #[vmstate(bitmap, buffer)]
    bits_or_bytes: [u64; 4],
    count: u8,
    #[vmstate(list, len = count, max = 4)]
    counted_twice: Vec<u8>,
    #[vmstate(bitmap, len = count)]
    bits: Vec<u64>,
    #[vmstate(len = count +, max = 4)]
    plus: Vec<u64>,
    #[vmstate(slice = 3)]
    no_range: [u8; 4],
    #[vmstate(lists, max = 4)]
    misspelt: Vec<u8>,
    #[vmstate(skip, list, max = 4)]
    skipped: Vec<u8>,
    nullable: Option<u8>,
}

fn main() {}
