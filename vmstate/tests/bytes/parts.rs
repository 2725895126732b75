//! Parts of arrays, multiplied lengths, boxed slices and bitmaps, with their bytes written out from QEMU's format
//! (include/migration/vmstate.h, migration/vmstate-types.c).

use vmstate::codec::{Limits, Reader, Strictness, Writer};
use vmstate::{Error, ErrorKind, VmState, Wire};

fn save<T: VmState + Clone>(state: &T) -> Vec<u8> {
    let mut out = Writer::new();
    state.clone().save(&mut out).unwrap();
    out.into_bytes()
}

fn load<T: VmState + Clone>(state: &T, bytes: &[u8], strictness: Strictness) -> vmstate::Result<T> {
    let mut state = state.clone();
    let mut input = Reader::new(bytes, 0, strictness, Limits::default()).complete();
    state.load_or_keep(&mut input, 1)?;
    assert_eq!(input.rest(), b"", "all bytes belong to the state");
    Ok(state)
}

/// Checks that `bytes` load into `before` as `after`, which saves to them, and that no prefix of them changes the device.
fn becomes<T: VmState + Clone + PartialEq + std::fmt::Debug>(before: &T, bytes: &[u8], after: &T) {
    assert_eq!(load(before, bytes, Strictness::Strict).unwrap(), *after);
    assert_eq!(save(after), bytes);
    for end in 0..bytes.len() {
        let mut kept = before.clone();
        let mut input = Reader::new(&bytes[..end], 0, Strictness::Strict, Limits::default());
        assert!(kept.load_or_keep(&mut input, 1).unwrap_err().is_incomplete(), "cut at {end}");
        assert_eq!(kept, *before, "cut at {end}");
    }
}

fn refused<T: VmState + Clone>(state: &T, bytes: &[u8]) -> Error {
    match load(state, bytes, Strictness::Strict) {
        Ok(_) => panic!("{bytes:x?} loaded"),
        Err(error) => error,
    }
}

const FIRST: usize = 1;

#[derive(VmState, Default, Clone, PartialEq, Debug)]
#[vmstate(name = "slices")]
struct Slices {
    #[vmstate(slice = FIRST..3)]
    middle: [u16; 4],
    #[vmstate(slice = 3..)]
    end: [(u8, bool); 4],
    #[vmstate(slice = ..=1)]
    rows: [[u8; 2]; 3],
    #[vmstate(slice = 4..6, buffer)]
    bytes: [u8; 8],
    #[vmstate(slice = 2..2)]
    nothing: [u8; 2],
}

#[test]
fn a_slice_leaves_the_other_elements_as_they_are() {
    let before = Slices {
        middle: [1, 2, 3, 4],
        end: [(5, false); 4],
        rows: [[6; 2], [7; 2], [8; 2]],
        bytes: [9; 8],
        nothing: [10; 2],
    };
    let after = Slices {
        middle: [1, 0x1112, 0x1314, 4],
        end: [(5, false), (5, false), (5, false), (0x15, true)],
        rows: [[0x16, 0x17], [0x18, 0x19], [8; 2]],
        bytes: [9, 9, 9, 9, 0x1a, 0x1b, 9, 9],
        nothing: [10; 2],
    };
    becomes(&before, b"\x11\x12\x13\x14\x15\x01\x16\x17\x18\x19\x1a\x1b", &after);
    let error = refused(&before, b"\x11\x12\x13");
    assert_eq!(error.to_string(), "middle[1] at 0x2: 2 bytes expected, 1 left", "counted from the slice's start");
}

#[derive(VmState, Default, Clone, PartialEq, Debug)]
#[vmstate(name = "multiplied")]
struct Multiplied {
    sectors: u8,
    #[vmstate(len = sectors * 3, max = 6)]
    words: Vec<u16>,
    #[vmstate(len = sectors * SECTOR, max = 16, buffer)]
    bytes: Vec<u8>,
    huge: u64,
    #[vmstate(len = huge * 0x1_0000_0000, max = usize::MAX)]
    overflowing: Vec<u8>,
}

const SECTOR: usize = 4;

#[test]
fn a_length_may_count_several_elements() {
    let state = |sectors: u8, words: &[u16], bytes: &[u8]| Multiplied {
        sectors,
        words: words.to_vec(),
        bytes: bytes.to_vec(),
        ..Multiplied::default()
    };
    let bytes = b"\x01\0\x01\0\x02\0\x03\x04\x05\x06\x07\0\0\0\0\0\0\0\0";
    becomes(&state(0, &[], &[]), bytes, &state(1, &[1, 2, 3], &[4, 5, 6, 7]));
    becomes(&state(2, &[9; 6], &[9; 8]), bytes, &state(1, &[1, 2, 3], &[4, 5, 6, 7]));

    let error = refused(&Multiplied::default(), b"\x03");
    assert_eq!(error.to_string(), "words at 0x1: sectors is 3 times 3, from 0 to 6 elements are allowed");
    assert_eq!(error.kind(), ErrorKind::Malformed);
    let error = state(1, &[1, 2], &[]).save(&mut Writer::new()).unwrap_err();
    assert_eq!(error.to_string(), "words: its length field says 3, but it holds 2");
}

/// QEMU multiplies the two numbers as `int`s.
#[test]
fn a_product_that_overflows_is_refused() {
    let error = refused(&Multiplied::default(), b"\0\0\0\0\x01\0\0\0\0");
    let text =
        "overflowing at 0x9: huge is 4294967296 times 4294967296, from 0 to 18446744073709551615 elements are allowed";
    assert_eq!(error.to_string(), text);
}

#[derive(VmState, Clone, PartialEq, Debug)]
#[vmstate(name = "partial")]
struct Partial {
    used: u16,
    #[vmstate(len = used, max = 99)]
    boxed: Box<[u16]>,
    #[vmstate(len = used, max = 99, buffer)]
    boxed_bytes: Box<[u8]>,
    #[vmstate(len = used, max = 99, buffer)]
    bytes: [u8; 4],
}

#[test]
fn memory_of_fixed_size_sends_its_first_elements() {
    let before = Partial { used: 0, boxed: [1, 2, 3].into(), boxed_bytes: [4; 4].into(), bytes: [5; 4] };
    let after = Partial { used: 2, boxed: [6, 7, 3].into(), boxed_bytes: [8, 9, 4, 4].into(), bytes: [10, 11, 5, 5] };
    becomes(&before, b"\0\x02\0\x06\0\x07\x08\x09\x0a\x0b", &after);
    assert_eq!(refused(&before, b"\0\x04").to_string(), "boxed at 0x2: its length field says 4, it has room for 3");
    let error = Partial { used: 4, ..before }.save(&mut Writer::new()).unwrap_err();
    assert_eq!(error.to_string(), "boxed: its length field says 4, it has room for 3");
    assert_eq!(error.kind(), ErrorKind::Rejected);
}

/// A hook replaces the field's box.
#[derive(VmState, Clone, PartialEq, Debug)]
#[vmstate(name = "replaced", pre_load = Self::shrink, post_load = Self::refuse)]
struct Replaced {
    used: u8,
    #[vmstate(len = used, max = 9)]
    boxed: Box<[u8]>,
}

impl Replaced {
    fn shrink(&mut self) -> Result<(), &'static str> {
        self.boxed = [0].into();
        Ok(())
    }

    fn refuse(&mut self, _version: u32) -> Result<(), &'static str> {
        Err("no")
    }
}

#[test]
fn a_box_that_a_hook_replaced_is_put_back() {
    let before = Replaced { used: 2, boxed: [1, 2, 3].into() };
    let mut kept = before.clone();
    kept.load_or_keep(&mut Reader::strict(b"\x01\x09"), 1).unwrap_err();
    assert_eq!(kept, before);
}

/// Every type of a length, each with the largest value that fits.
#[derive(VmState, Default, Clone, PartialEq, Debug)]
#[vmstate(name = "lengths")]
struct Lengths {
    a: i32,
    #[vmstate(len = a, max = 3)]
    by_i32: Vec<u8>,
    b: u32,
    #[vmstate(len = b, max = 3)]
    by_u32: Vec<u8>,
    c: u16,
    #[vmstate(len = c, max = 3)]
    by_u16: Vec<u8>,
    d: u8,
    #[vmstate(len = d, max = 3)]
    by_u8: Vec<u8>,
}

#[test]
fn a_length_may_be_any_integer() {
    let state =
        Lengths { a: 1, by_i32: vec![1], b: 2, by_u32: vec![2, 3], c: 1, by_u16: vec![4], d: 1, by_u8: vec![5] };
    becomes(&Lengths::default(), b"\0\0\0\x01\x01\0\0\0\x02\x02\x03\0\x01\x04\x01\x05", &state);
    let text = "by_u32 at 0x8: b is 4294967295, from 0 to 3 elements are allowed";
    assert_eq!(refused(&Lengths::default(), b"\0\0\0\0\xff\xff\xff\xff").to_string(), text);
}

#[derive(VmState, Default, Clone, PartialEq, Debug)]
#[vmstate(name = "bitmaps")]
struct Bitmaps {
    #[vmstate(bitmap)]
    fixed: [u64; 2],
    bits: i32,
    #[vmstate(bitmap, len = bits, max = 130)]
    counted: Vec<u64>,
    #[vmstate(bitmap, len = bits, max = 130)]
    inline: [u64; 3],
}

const BITMAPS: &[u8] = b"\0\0\0\0\0\0\0\x01\x80\0\0\0\0\0\0\0\0\0\0\x42\
    \xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0\x02\
    \0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x03";

#[test]
fn a_bitmap_is_words_of_64_bits_the_lowest_bit_first() {
    let before = Bitmaps { bits: 1, counted: vec![1], inline: [5; 3], ..Bitmaps::default() };
    let after = Bitmaps { fixed: [1, 1 << 63], bits: 66, counted: vec![u64::MAX, 2], inline: [4, 3, 5] };
    becomes(&before, BITMAPS, &after);
    let nothing = Bitmaps { inline: [5; 3], ..Bitmaps::default() };
    becomes(&before, &[0; 20], &nothing);
    let whole = Bitmaps { bits: 64, counted: vec![u64::MAX], ..Bitmaps::default() };
    let mut bytes = [0; 36];
    bytes[19] = 64;
    bytes[20..28].fill(0xff);
    becomes(&Bitmaps::default(), &bytes, &whole);
}

#[test]
fn bits_beyond_the_length_are_not_sent_and_not_kept() {
    let state = Bitmaps { bits: 66, counted: vec![0, 0xffff], ..Bitmaps::default() };
    assert_eq!(save(&state)[28..36], *b"\0\0\0\0\0\0\0\x03");
    let mut bytes = BITMAPS.to_vec();
    bytes[35] = 0x06;
    let error = refused(&Bitmaps::default(), &bytes);
    assert_eq!(error.to_string(), "counted[1] at 0x1c: 0x6 has bits set beyond the 66 of this bitmap");
    assert_eq!(error.kind(), ErrorKind::Malformed);
    let loaded = load(&Bitmaps::default(), &bytes, Strictness::QemuCompatible).unwrap();
    assert_eq!(loaded.counted, [u64::MAX, 2]);
}

#[test]
fn a_bitmap_is_accepted_up_to_max_and_charged() {
    let bits = |bits: i32| [vec![0; 16], bits.to_be_bytes().to_vec()].concat();
    for wrong in [131, -1] {
        let error = refused(&Bitmaps::default(), &bits(wrong));
        let text = format!("counted at 0x14: bits is {wrong}, from 0 to 130 elements are allowed");
        assert_eq!(error.to_string(), text);
    }
    let limits = Limits::new(15);
    let bytes = bits(66);
    let error = Bitmaps::default().load_or_keep(&mut Reader::new(&bytes, 0, Strictness::Strict, limits), 1);
    let text = "counted at 0x14: needs 16 bytes of memory, 15 are left of this section's limit";
    assert_eq!(error.unwrap_err().to_string(), text);
    let error = Bitmaps { bits: 65, counted: vec![0], ..Bitmaps::default() }.save(&mut Writer::new()).unwrap_err();
    assert_eq!(error.to_string(), "counted: its length field says 2, but it holds 1");
}

/// The slice of a generic array is checked when the struct is used.
#[derive(VmState, Clone, PartialEq, Debug)]
#[vmstate(name = "generic")]
struct Generic<T: Default, const N: usize> {
    n: u8,
    #[vmstate(slice = 1..N)]
    tail: [T; N],
    #[vmstate(len = n * 2, max = 4)]
    boxed: Box<[T]>,
    #[vmstate(bitmap)]
    bits: [u64; N],
    #[vmstate(buffer, slice = ..N)]
    bytes: [u8; N],
}

#[test]
fn parts_may_be_of_generic_arrays() {
    let before = Generic { n: 0, tail: [9_u8, 9], boxed: [9; 3].into(), bits: [0; 2], bytes: [0; 2] };
    let after = Generic { n: 1, tail: [9, 1], boxed: [2, 3, 9].into(), bits: [4, 5], bytes: [6, 7] };
    becomes(&before, b"\x01\x01\x02\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x05\x06\x07", &after);
}
