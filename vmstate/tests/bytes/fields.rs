//! Every kind of field, with its bytes written out from QEMU's format (migration/vmstate.c, vmstate-types.c).

use vmstate::codec::{Limits, Reader, Strictness, Writer};
use vmstate::testing::bytes;
use vmstate::{ErrorKind, Unused, VmState};

fn load<T: VmState>(mut state: T, bytes: &[u8], version: u32, strictness: Strictness) -> vmstate::Result<T> {
    let mut input = Reader::new(bytes, 0, strictness, Limits::default()).complete();
    state.load_or_keep(&mut input, version)?;
    assert_eq!(input.rest(), b"", "all bytes belong to the state");
    Ok(state)
}

/// Checks that `state` saves to `wire`, and `wire` loads to `state`.
fn both_ways<T: VmState + Default + Clone + PartialEq + std::fmt::Debug>(state: T, wire: &[u8]) {
    assert_eq!(bytes(&mut state.clone()), wire);
    for strictness in [Strictness::Strict, Strictness::QemuCompatible] {
        assert_eq!(load(T::default(), wire, T::DESCRIPTION.version, strictness).unwrap(), state);
    }
}

macro_rules! state {
    ($(#[$attr:meta])* struct $name:ident { $($fields:tt)* }) => {
        #[derive(VmState, Default, Clone, PartialEq, Debug)]
        $(#[$attr])*
        struct $name { $($fields)* }
    };
}

state! {
    #[vmstate(name = "integers")]
    struct Integers { a: u8, b: u16, c: u32, d: u64, e: i8, f: i16, g: i32, h: i64, i: bool, j: bool }
}

#[test]
fn integers_are_big_endian_twos_complement() {
    let state = Integers {
        a: 0x12,
        b: 0x1234,
        c: 0x1234_5678,
        d: 0x1234_5678_9abc_def0,
        e: -2,
        f: -3,
        g: -4,
        h: -5,
        i: true,
        j: false,
    };
    both_ways(
        state,
        b"\x12\x12\x34\x12\x34\x56\x78\x12\x34\x56\x78\x9a\xbc\xde\xf0\
          \xfe\xff\xfd\xff\xff\xff\xfc\xff\xff\xff\xff\xff\xff\xff\xfb\x01\x00",
    );
}

#[test]
fn bytes_that_end_among_integers_end_at_one_of_them() {
    let fields = [("a", 1), ("b", 2), ("c", 4), ("d", 8), ("e", 1), ("f", 2), ("g", 4), ("h", 8), ("i", 1), ("j", 1)];
    let bytes = [0; 32];
    let mut start = 0;
    for (name, size) in fields {
        for end in start..start + size {
            let error = load(Integers::default(), &bytes[..end], 1, Strictness::Strict).unwrap_err();
            assert!(error.is_incomplete());
            let place = format!("{name} at {start:#x}: {size} bytes expected, {} left", end - start);
            assert_eq!(error.to_string(), place);
        }
        start += size;
    }
}

#[test]
fn a_strict_bool_is_0_or_1_and_qemu_takes_any_byte() {
    let mut bytes = bytes(&mut Integers::default());
    bytes[30] = 2;
    let error = load(Integers::default(), &bytes, 1, Strictness::Strict).unwrap_err();
    assert_eq!(error.to_string(), "i at 0x1e: a bool is 0 or 1, got 2");
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert!(load(Integers::default(), &bytes, 1, Strictness::QemuCompatible).unwrap().i);
}

state! {
    #[vmstate(name = "inner", version = 7)]
    struct Inner { x: u16, y: [u8; 2] }
}

state! {
    #[vmstate(name = "arrays")]
    struct Arrays { words: [u16; 3], table: [[u8; 2]; 3], structs: [Inner; 2], one: Inner, boxed: Box<u16>, none: [u32; 0] }
}

#[test]
fn arrays_and_structs_are_concatenated_without_count_or_version() {
    let state = Arrays {
        words: [1, 2, 0x0304],
        table: [[1, 2], [3, 4], [5, 6]],
        structs: [Inner { x: 7, y: [8, 9] }, Inner { x: 10, y: [11, 12] }],
        one: Inner { x: 13, y: [14, 15] },
        boxed: Box::new(0x1617),
        none: [],
    };
    both_ways(state, b"\0\x01\0\x02\x03\x04\x01\x02\x03\x04\x05\x06\0\x07\x08\x09\0\x0a\x0b\x0c\0\x0d\x0e\x0f\x16\x17");
}

state! {
    #[vmstate(name = "rows")]
    struct Rows { a: [u8; 2], b: [i8; 2], c: [i16; 2], d: [u32; 2], e: [i64; 2] }
}

#[test]
fn integer_arrays_are_one_block_and_end_at_an_element() {
    let state = Rows { a: [1, 0xff], b: [-1, 2], c: [-2, 0x0304], d: [0x0506_0708, 9], e: [-3, 0x0a] };
    let bytes = b"\x01\xff\xff\x02\xff\xfe\x03\x04\x05\x06\x07\x08\0\0\0\x09\
                  \xff\xff\xff\xff\xff\xff\xff\xfd\0\0\0\0\0\0\0\x0a";
    both_ways(state, bytes);
    let error = load(Rows::default(), &bytes[..27], 1, Strictness::Strict).unwrap_err();
    assert_eq!(error.to_string(), "e[1] at 0x18: 8 bytes expected, 3 left");
}

state! {
    #[vmstate(name = "counted")]
    struct Counted {
        n: i32,
        #[vmstate(len = n, max = 3)]
        words: Vec<u16>,
        #[vmstate(len = n, max = 3, buffer)]
        raw: Vec<u8>,
        #[vmstate(len = n, max = 3)]
        structs: Vec<Inner>,
        #[vmstate(buffer)]
        fixed: [u8; 2],
    }
}

#[test]
fn counted_fields_send_their_elements_only() {
    let inner = |x| Inner { x, y: [0, 1] };
    let state = Counted { n: 2, words: vec![1, 2], raw: vec![3, 4], structs: vec![inner(5), inner(6)], fixed: [7, 8] };
    both_ways(state, b"\0\0\0\x02\0\x01\0\x02\x03\x04\0\x05\0\x01\0\x06\0\x01\x07\x08");
    both_ways(Counted { fixed: [1, 2], ..Counted::default() }, b"\0\0\0\0\x01\x02");
}

#[test]
fn a_count_is_accepted_up_to_max() {
    for (n, shown) in [(4_i32, "4"), (-1, "-1"), (i32::MAX, "2147483647"), (i32::MIN, "-2147483648")] {
        let mut bytes = n.to_be_bytes().to_vec();
        bytes.extend([0; 64]);
        let error = load(Counted::default(), &bytes, 1, Strictness::QemuCompatible).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed);
        assert_eq!(error.to_string(), format!("words at 0x4: n is {shown}, from 0 to 3 elements are allowed"));
    }
}

#[test]
fn a_vector_that_disagrees_with_its_length_is_not_saved() {
    let mut out = Writer::new();
    let error = vmstate::Wire::save(&mut Counted { n: 1, ..Counted::default() }, &mut out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert_eq!(error.to_string(), "words: its length field says 1, but it holds 0");
}

#[test]
fn a_vector_is_charged_to_the_budget_before_it_is_allocated() {
    let limits = Limits::new(5);
    let mut state = Counted::default();
    let error = state.load_or_keep(&mut Reader::new(b"\0\0\0\x03", 0, Strictness::Strict, limits), 1).unwrap_err();
    assert_eq!(error.to_string(), "words at 0x4: needs 6 bytes of memory, 5 are left of this section's limit");
}

state! {
    #[vmstate(name = "timers")]
    struct Timers {
        n: u8,
        #[vmstate(len = n, max = 9)]
        timers: [Inner; 3],
        end: u8,
    }
}

#[test]
fn an_array_may_send_its_first_elements_only() {
    let inner = |x| Inner { x, y: [0, 1] };
    let state = Timers { n: 2, timers: [inner(1), inner(2), Inner::default()], end: 9 };
    both_ways(state.clone(), b"\x02\0\x01\0\x01\0\x02\0\x01\x09");
    let kept = load(state.clone(), b"\x01\0\x07\0\x01\x08", 1, Strictness::Strict).unwrap();
    assert_eq!(kept, Timers { n: 1, timers: [inner(7), inner(2), Inner::default()], end: 8 }, "others stay");

    let error = load(state.clone(), b"\x04", 1, Strictness::Strict).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert_eq!(error.to_string(), "timers at 0x1: its length field says 4, it has room for 3");
    let error = vmstate::Wire::save(&mut Timers { n: 4, ..state }, &mut Writer::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
}

state! {
    #[vmstate(name = "versioned", version = 3, minimum_version = 1)]
    struct Versioned {
        a: u8,
        #[vmstate(since = 2)]
        _gone: Unused<2>,
        #[vmstate(since = 3)]
        b: u8,
        #[vmstate(exists = Self::before_3, wire = u8)]
        c: u32,
        #[vmstate(since = 1)]
        d: u8,
    }
}

impl Versioned {
    fn before_3(&self, version: u32) -> bool {
        // The predicate sees the fields loaded before it.
        version < 3 && self.a != 0
    }
}

#[test]
fn a_field_is_there_from_its_version_on() {
    both_ways(Versioned { a: 1, b: 2, d: 3, ..Versioned::default() }, &[1, 0, 0, 2, 3]);
    let at = |bytes: &[u8], version| load(Versioned::default(), bytes, version, Strictness::Strict).unwrap();
    assert_eq!(at(&[1, 9, 9, 5, 3], 2), Versioned { a: 1, c: 5, d: 3, ..Versioned::default() });
    assert_eq!(at(&[1, 5, 3], 1), Versioned { a: 1, c: 5, d: 3, ..Versioned::default() });
    assert_eq!(at(&[0, 3], 1), Versioned { d: 3, ..Versioned::default() });
}

state! {
    #[vmstate(name = "grown", version = 4, minimum_version = 1)]
    struct Grown {
        a: u16,
        #[vmstate(since = 3)]
        b: u32,
        c: u8,
        d: bool,
        #[vmstate(since = 2)]
        e: u16,
        #[vmstate(since = 4)]
        f: bool,
        g: i8,
    }
}

#[test]
fn an_older_version_lacks_fields_in_the_middle_of_plain_ones() {
    let grown = Grown { a: 0x0102, b: 0x0304_0506, c: 7, d: true, e: 0x0809, f: true, g: -1 };
    let versions: [(u32, &[u8], Grown); 4] = [
        (1, &[1, 2, 7, 1, 255], Grown { b: 0, e: 0, f: false, ..grown }),
        (2, &[1, 2, 7, 1, 8, 9, 255], Grown { b: 0, f: false, ..grown }),
        (3, &[1, 2, 3, 4, 5, 6, 7, 1, 8, 9, 255], Grown { f: false, ..grown }),
        (4, &[1, 2, 3, 4, 5, 6, 7, 1, 8, 9, 1, 255], grown.clone()),
    ];
    for (version, bytes, expected) in versions {
        let mut out = Writer::new();
        grown.clone().save_version(&mut out, version).unwrap();
        assert_eq!(out.as_slice(), bytes, "version {version}");
        assert_eq!(load(Grown::default(), bytes, version, Strictness::Strict).unwrap(), expected);
    }
    both_ways(grown, &[1, 2, 3, 4, 5, 6, 7, 1, 8, 9, 1, 255]);
}

#[test]
fn versions_outside_the_window_are_refused() {
    let refused = |version| load(Versioned::default(), &[0; 8], version, Strictness::QemuCompatible).unwrap_err();
    assert_eq!(refused(4).to_string(), "at 0x0: version 4 is newer than 3");
    assert_eq!(refused(0).to_string(), "at 0x0: version 0 is older than 1, the oldest that loads");
    assert_eq!(refused(0).kind(), ErrorKind::Incompatible);
}

state! {
    #[vmstate(name = "narrow")]
    struct Narrow {
        #[vmstate(wire = u16)]
        a: u32,
        #[vmstate(wire = u32)]
        b: u8,
        #[vmstate(wire = i64)]
        c: usize,
    }
}

#[test]
fn a_field_may_be_narrower_or_wider_on_the_wire() {
    both_ways(Narrow { a: 0xffff, b: 0xff, c: 1 }, b"\xff\xff\0\0\0\xff\0\0\0\0\0\0\0\x01");
    let mut out = Writer::new();
    let error = vmstate::Wire::save(&mut Narrow { a: 0x1_0000, ..Narrow::default() }, &mut out).unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Rejected, "a: 65536 does not fit u16".into()));
    let error = load(Narrow::default(), b"\0\0\0\0\x01\0\0\0\0\0\0\0\0\0", 1, Strictness::Strict).unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Malformed, "b at 0x2: 256 does not fit u8".into()));
}

mod le {
    //! A hand-written codec of a user.
    use vmstate::codec::{Reader, Writer};
    use vmstate::schema::{Kind, MaybeStatic};

    pub(crate) const KIND: Kind = Kind::Custom(MaybeStatic::Static("le24"));

    pub(crate) fn save(value: &u32, out: &mut Writer) -> vmstate::Result<()> {
        let [a, b, c, _] = value.to_le_bytes();
        out.bytes(&[a, b, c]);
        Ok(())
    }

    pub(crate) fn load(input: &mut Reader<'_>) -> vmstate::Result<u32> {
        input.array().map(|[a, b, c]| u32::from_le_bytes([a, b, c, 0]))
    }
}

state! {
    #[vmstate(name = "custom")]
    struct Custom {
        #[vmstate(with = le)]
        a: u32,
    }
}

#[test]
fn a_hand_written_codec_makes_the_bytes() {
    both_ways(Custom { a: 0x12_3456 }, &[0x56, 0x34, 0x12]);
    let mut out = Writer::recording();
    vmstate::Wire::save(&mut Custom::default(), &mut out).unwrap();
    assert_eq!(out.into_parts().1, [3], "its size is an outcome");
}

state! {
    #[vmstate(name = "padded")]
    struct Padded { _a: Unused<3>, b: u8, _c: Unused<1> }
}

#[test]
fn unused_bytes_are_zero_and_ignored() {
    both_ways(Padded { b: 5, ..Padded::default() }, &[0, 0, 0, 5, 0]);
    assert_eq!(load(Padded::default(), &[1, 2, 3, 5, 4], 1, Strictness::Strict).unwrap().b, 5);
}
