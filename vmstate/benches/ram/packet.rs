//! The packets of page channels, compared with packets encoded and decoded field by field without checks, and with a copy of the
//! pages themselves.

use std::hint::black_box;

use vmstate::ram::RamBlock;
use vmstate::raw::multifd::{Coding, HEADER, PACKET_PAGES, Packet, PacketPages};

use super::{Unit, compare};

const PAGE: usize = 4096;
const NAME: &str = "microvm.ram";
/// Number of packets in a round.
const PACKETS: u64 = 256;

pub(crate) fn run(rounds: usize) {
    let blocks = [RamBlock { name: NAME.into(), len: 1 << 30 }];
    // Every other page, so that no two pages are adjacent.
    let normal: Vec<u64> = (0..PACKET_PAGES as u64).map(|page| 2 * page * PAGE as u64).collect();
    let pages = PacketPages { block: 0, normal, zero: Vec::new() };
    let packet = Packet { number: 7, sync: false, coding: Coding::Raw, payload: PACKET_PAGES * PAGE, pages };
    let bytes = packet.to_bytes(NAME);
    assert_eq!(naive_encode(&packet), bytes.to_vec());
    assert_eq!(naive_decode(&bytes), packet.pages.normal);
    let (from, mut to) = (vec![1_u8; PACKET_PAGES * PAGE * 128], vec![2_u8; PACKET_PAGES * PAGE]);
    let mut copies = from.chunks_exact(to.len()).cycle();
    let mut copy = || {
        for _ in 0..PACKETS {
            to.copy_from_slice(copies.next().expect("an endless row"));
            black_box(&mut to);
        }
    };
    let unit = Unit::Speed(PACKETS as usize * PACKET_PAGES * PAGE);
    compare(
        "packet of 128 pages, encode",
        unit,
        rounds,
        &mut [
            ("packet", Box::new(|| each(|| black_box(&packet).to_bytes(NAME)))),
            ("naive", Box::new(|| each(|| naive_encode(black_box(&packet))))),
            ("copy of its pages", Box::new(&mut copy)),
        ],
    );
    compare(
        "packet of 128 pages, decode",
        unit,
        rounds,
        &mut [
            ("packet", Box::new(|| each(|| Packet::read(black_box(&bytes), &blocks)))),
            ("naive", Box::new(|| each(|| naive_decode(black_box(&bytes))))),
            ("copy of its pages", Box::new(&mut copy)),
        ],
    );
}

/// Runs `one` for each packet, and keeps the compiler from dropping the result.
fn each<T>(one: impl Fn() -> T) {
    for _ in 0..PACKETS {
        black_box(one());
    }
}

fn naive_encode(packet: &Packet) -> Vec<u8> {
    let count = |count: usize| (count as u32).to_be_bytes();
    let mut bytes = Vec::new();
    bytes.extend(0x1122_3344_u32.to_be_bytes());
    bytes.extend(1_u32.to_be_bytes());
    bytes.extend(0_u32.to_be_bytes());
    bytes.extend(count(PACKET_PAGES));
    bytes.extend(count(packet.pages.normal.len()));
    bytes.extend(count(packet.payload));
    bytes.extend(packet.number.to_be_bytes());
    bytes.extend(count(packet.pages.zero.len()));
    bytes.resize(64, 0);
    bytes.extend(NAME.bytes());
    bytes.resize(320, 0);
    for offset in &packet.pages.normal {
        bytes.extend(offset.to_be_bytes());
    }
    bytes.resize(HEADER, 0);
    bytes
}

/// Decodes the offsets of the normal pages.
fn naive_decode(bytes: &[u8; HEADER]) -> Vec<u64> {
    let word = |at: usize| u32::from_be_bytes(*bytes[at..].first_chunk().expect("inside"));
    let offset = |index: usize| u64::from_be_bytes(*bytes[320 + 8 * index..].first_chunk().expect("inside"));
    (0..word(16) as usize).map(offset).collect()
}
