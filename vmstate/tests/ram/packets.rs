//! Packets of page channels, byte by byte as in QEMU's `MultiFDInit_t` and `MultiFDPacket_t` (migration/multifd.h), and hostile
//! ones.

use vmstate::error::ErrorKind;
use vmstate::ram::RamBlock;
use vmstate::raw::multifd::{Coding, HEADER, OPENING, Opening, PACKET_PAGES, Packet, PacketPages, runs};

fn blocks() -> Vec<RamBlock> {
    [("microvm.ram", 0x10_0000), ("pc.bios", 0x2_0000)]
        .map(|(name, len)| RamBlock { name: name.to_owned(), len })
        .to_vec()
}

fn packet() -> Packet {
    Packet {
        number: 0x0102_0304_0506_0708,
        sync: false,
        coding: Coding::Raw,
        payload: 3 * 4096,
        pages: PacketPages { block: 1, normal: vec![0x3000, 0x4000, 0x1_f000], zero: vec![0x1000, 0] },
    }
}

/// The packet above as bytes, assembled by hand.
fn bytes() -> [u8; HEADER] {
    let words = |values: &[u32]| values.iter().flat_map(|value| value.to_be_bytes()).collect::<Vec<_>>();
    let mut bytes = words(&[0x1122_3344, 1, 0, 128, 3, 0x3000, 0x0102_0304, 0x0506_0708, 2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes.len(), 64);
    bytes.extend(b"pc.bios");
    bytes.resize(320, 0);
    for offset in [0x3000_u64, 0x4000, 0x1_f000, 0x1000, 0] {
        bytes.extend(offset.to_be_bytes());
    }
    bytes.resize(320 + 8 * 128, 0);
    bytes.try_into().unwrap()
}

#[test]
fn an_opening_is_qemus() {
    let uuid = *b"0123456789abcdef";
    let mut expected = b"\x11\x22\x33\x44\0\0\0\x010123456789abcdef\x07".to_vec();
    expected.resize(64, 0);
    assert_eq!(Opening { uuid, id: 7 }.to_bytes().as_slice(), expected);
    let mut bytes: [u8; OPENING] = expected.try_into().unwrap();
    assert_eq!(Opening::read(&bytes).unwrap(), Opening { uuid, id: 7 });
    // QEMU may use the reserved bytes.
    bytes[25..].fill(0xff);
    assert_eq!(Opening::read(&bytes).unwrap(), Opening { uuid, id: 7 });
    for (at, kind) in [(0, ErrorKind::Malformed), (3, ErrorKind::Malformed), (4, ErrorKind::Incompatible)] {
        let mut wrong = bytes;
        wrong[at] ^= 0x10;
        assert_eq!(Opening::read(&wrong).unwrap_err().kind(), kind, "{at}");
    }
}

#[test]
fn a_packet_of_pages_is_qemus() {
    assert_eq!(packet().to_bytes("pc.bios"), bytes());
    assert_eq!(Packet::read(&bytes(), &blocks()).unwrap(), packet());
    let compressed = Packet { coding: Coding::Zstd, payload: 77, ..packet() };
    let mut expected = bytes();
    expected[11] = 2 << 1;
    expected[20..24].copy_from_slice(&77_u32.to_be_bytes());
    assert_eq!(compressed.to_bytes("pc.bios"), expected);
    assert_eq!(Packet::read(&expected, &blocks()).unwrap(), compressed);
}

#[test]
fn a_packet_with_a_flag_alone_is_qemus() {
    let mut expected = [0; HEADER];
    expected[..12].copy_from_slice(b"\x11\x22\x33\x44\0\0\0\x01\0\0\0\x01");
    expected[31] = 9;
    assert_eq!(Packet::sync(9).to_bytes("").as_slice(), expected);
    assert_eq!(Packet::read(&expected, &[]).unwrap(), Packet::sync(9));
    // QEMU before 9.0 has the compression in the flags of such a packet, and the values of the last packet in other fields.
    (expected[11], expected[15], expected[22]) = (1 | 2 << 1, 128, 0x10);
    assert_eq!(Packet::read(&expected, &[]).unwrap(), Packet::sync(9));
    // And sends pages with it.
    let mut with_pages = bytes();
    with_pages[11] = 1;
    assert_eq!(Packet::read(&with_pages, &blocks()).unwrap(), Packet { sync: true, ..packet() });
}

/// Every field that could cause wrong behaviour.
#[test]
fn what_does_not_fit_is_refused() {
    let word = |at: usize, value: u32| {
        let mut bytes = bytes();
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        bytes
    };
    let offset = |index: usize, value: u64| {
        let mut bytes = bytes();
        bytes[320 + 8 * index..][..8].copy_from_slice(&value.to_be_bytes());
        bytes
    };
    let named = |name: &[u8]| {
        let mut bytes = bytes();
        bytes[64..320].fill(0);
        bytes[64..64 + name.len()].copy_from_slice(name);
        bytes
    };
    let zstd = |payload: u32| {
        let mut bytes = word(20, payload);
        bytes[11] = 4;
        bytes
    };
    let malformed = [
        ("magic", word(0, 0x1122_3345)),
        ("room", word(12, 129)),
        ("room for the normal", word(12, 2)),
        ("room for the zero", word(12, 4)),
        ("many", word(16, u32::MAX)),
        ("many zero", word(32, u32::MAX)),
        ("neither", {
            let mut bytes = word(16, 0);
            bytes[35] = 0;
            bytes
        }),
        ("too few bytes", word(20, 0x2000)),
        ("too many bytes", word(20, 0x3001)),
        ("no compressed bytes", zstd(0)),
        ("too many compressed bytes", zstd((1 << 20) + 1)),
        ("between two pages", offset(0, 0x3001)),
        ("behind the block", offset(2, 0x2_0000)),
        ("far behind the block", offset(2, !0xfff)),
        ("zero behind the block", offset(4, 0x2_0000)),
        ("no such block", named(b"pc.bio")),
        ("no end of the name", named(&[b'a'; 256])),
        ("no name", named(b"")),
        ("two codings", word(8, 3 << 1)),
    ];
    for (what, bytes) in malformed {
        let error = Packet::read(&bytes, &blocks()).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Malformed, "{what}: {error}");
    }
    let incompatible = [
        ("version", word(4, 2), "version 2"),
        ("zlib", word(8, 1 << 1), "zlib"),
        ("qpl", word(8, 4 << 1), "qpl"),
        ("uadk", word(8, 8 << 1), "uadk"),
        ("qatzip", word(8, 16 << 1), "qatzip"),
        ("a device's state", word(8, 1 << 6), "flags 0x40"),
        ("any other", word(8, 1 << 31), "flags 0x80000000"),
    ];
    for (what, bytes, says) in incompatible {
        let error = Packet::read(&bytes, &blocks()).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Incompatible, "{what}");
        assert!(error.message().contains(says), "{error}");
    }
    // The last page of each block, and the largest number of pages.
    for at in [offset(2, 0x1_f000), zstd(1 << 20), zstd(1)] {
        Packet::read(&at, &blocks()).unwrap();
    }
    let all = PacketPages { block: 0, normal: (0..128).map(|page| page * 4096).collect(), zero: Vec::new() };
    let full = Packet { payload: 128 * 4096, pages: all, ..packet() };
    assert_eq!(Packet::read(&full.to_bytes("microvm.ram"), &blocks()).unwrap(), full);
}

#[test]
fn pages_that_follow_each_other_are_one_run() {
    let found = |offsets: &[u64]| runs(1, offsets).map(|run| (run.block, run.offset, run.len)).collect::<Vec<_>>();
    assert_eq!(found(&[]), []);
    assert_eq!(
        found(&[0x3000, 0x4000, 0x1_f000, 0, 0x1000]),
        [(1, 0x3000, 0x2000), (1, 0x1_f000, 0x1000), (1, 0, 0x2000)]
    );
    let all: Vec<_> = (0..PACKET_PAGES as u64).map(|page| page * 4096).collect();
    assert_eq!(found(&all), [(1, 0, 0x8_0000)]);
}
