//! Padding: always, from a version on, by a predicate, and as long as a length says (QEMU's `VMSTATE_UNUSED`, `_V`, `_TEST` and
//! `_VARRAY_UINT32`).

use serde_json::json;
use vmstate::codec::{Reader, Strictness, Writer};
use vmstate::raw::vmdesc;
use vmstate::{Unused, VmState, Wire};

#[derive(VmState, Clone, Default)]
#[vmstate(name = "padded", version = 2, minimum_version = 1)]
struct Padded {
    a: u8,
    _always: Unused<2>,
    #[vmstate(since = 2)]
    _new: Unused<3>,
    #[vmstate(exists = Self::is_odd)]
    _odd: Unused<1>,
    count: u32,
    #[vmstate(len = count, max = 3)]
    _counted: Unused<2>,
    b: u8,
}

impl Padded {
    fn is_odd(&self, _version: u32) -> bool {
        self.a % 2 == 1
    }
}

#[test]
fn padding_is_zero_when_written_and_anything_when_read() {
    let mut padded = Padded { a: 1, count: 2, b: 9, ..Padded::default() };
    let mut out = Writer::recording();
    padded.save(&mut out).unwrap();
    let (bytes, outcomes) = out.into_parts();
    assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 9]);
    let unused =
        |ordinal: u32, size: u32| json!({"name": format!("unused[{ordinal}]"), "type": "unused_buffer", "size": size});
    let counted = json!({"name": "unused[3]", "array_len": 2, "type": "unused_buffer", "size": 2});
    let expected = json!([
        {"name": "a", "type": "uint8", "size": 1},
        unused(0, 2),
        unused(1, 3),
        unused(2, 1),
        {"name": "count", "type": "uint32", "size": 4},
        counted,
        {"name": "b", "type": "uint8", "size": 1},
    ]);
    assert_eq!(vmdesc(Padded::DESCRIPTION, &outcomes).unwrap()["fields"], expected);

    for strictness in [Strictness::Strict, Strictness::QemuCompatible] {
        let load = |bytes: &[u8], version| {
            let mut loaded = Padded::default();
            let mut input = Reader::new(bytes, 0, strictness, Default::default()).complete();
            loaded.load_or_keep(&mut input, version).map(|()| (loaded.a, loaded.count, loaded.b, input.rest().len()))
        };
        assert_eq!(load(&[3, 7, 7, 7, 7, 7, 7, 0, 0, 0, 1, 7, 7, 5], 2).unwrap(), (3, 1, 5, 0));
        assert_eq!(load(&[2, 7, 7, 0, 0, 0, 0, 5], 1).unwrap(), (2, 0, 5, 0));
        let error = load(&[2, 7, 7, 0, 0, 0, 4, 5], 1).unwrap_err();
        assert_eq!(error.to_string(), "_counted at 0x7: count is 4, from 0 to 3 elements are allowed");
        let error = load(&[2, 7, 7, 0, 0, 0, 1, 5], 1).unwrap_err();
        assert_eq!(error.to_string(), "_counted[0] at 0x7: 2 bytes expected, 1 left");
    }

    let mut old = Writer::new();
    padded.save_version(&mut old, 1).unwrap();
    assert_eq!(old.as_slice(), [1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 9]);
}
