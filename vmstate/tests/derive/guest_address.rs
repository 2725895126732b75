//! `GuestAddress` as a field, with the feature `vm-memory`.

use vm_memory::GuestAddress;
use vmstate::VmState;
use vmstate::codec::{Reader, Writer};
use vmstate::raw::vmdesc;

#[derive(VmState)]
#[vmstate(name = "ring", version = 2, minimum_version = 1)]
struct Ring {
    desc: GuestAddress,
    size: u8,
    #[vmstate(len = size, max = 4)]
    areas: Vec<Area>,
    #[vmstate(since = 2)]
    pair: [GuestAddress; 2],
}

#[derive(VmState)]
#[vmstate(transparent)]
struct Area(GuestAddress);

impl Default for Area {
    fn default() -> Self {
        Self(GuestAddress(0))
    }
}

#[test]
fn an_address_is_eight_bytes() {
    let areas = vec![Area(GuestAddress(0x1122))];
    let pair = [GuestAddress(3), GuestAddress(u64::MAX)];
    let mut ring = Ring { desc: GuestAddress(0x1_0000_0002), size: 1, areas, pair };
    let mut out = Writer::recording();
    ring.save_version(&mut out, 2).unwrap();
    let (bytes, outcomes) = out.into_parts();
    let old = b"\0\0\0\x01\0\0\0\x02\x01\0\0\0\0\0\0\x11\x22";
    assert_eq!(bytes, [old, &b"\0\0\0\0\0\0\0\x03\xff\xff\xff\xff\xff\xff\xff\xff"[..]].concat());
    let described = vmdesc(Ring::DESCRIPTION, &outcomes).unwrap()["fields"].to_string();
    let address = |name: &str| format!("{{\"name\":\"{name}\",\"type\":\"uint64\",\"size\":8}}");
    assert!(described.starts_with(&format!("[{},", address("desc"))), "{described}");

    let mut other = Ring { desc: GuestAddress(0), size: 0, areas: vec![], pair: [GuestAddress(9); 2] };
    assert!(other.load_or_keep(&mut Reader::strict(&bytes[..20]), 2).is_err());
    assert_eq!((other.desc, other.size), (GuestAddress(0), 0));
    other.load_or_keep(&mut Reader::strict(old), 1).unwrap();
    assert_eq!((other.desc, other.areas[0].0, other.pair[0]), (ring.desc, GuestAddress(0x1122), GuestAddress(9)));
}
