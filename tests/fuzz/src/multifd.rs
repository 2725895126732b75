//! Target: a page channel with any content: packets, each with the bytes that it announces. Acceptance and meaning of a
//! packet must be as a naive reader finds.

use vmstate::ram::RamBlock;
use vmstate::raw::multifd::{Coding, Decompressor, HEADER, OPENING, Opening, Packet, PacketPages};

use crate::Target;

/// Memory: 32 MiB for a window of zstd, and 2 MiB for what is read and written.
pub(crate) const TARGET: Target = Target { name: "multifd", memory: 48 << 20, body, seeds };

const PAGE: u64 = 4096;

fn blocks() -> Vec<RamBlock> {
    [("low", 12), ("high", 4)].map(|(name, pages)| RamBlock { name: name.into(), len: pages * PAGE }).to_vec()
}

fn body(mut input: &[u8]) {
    let blocks = blocks();
    let mut decompressor = None;
    if let Some((opening, rest)) = input.split_first_chunk::<OPENING>()
        && let Ok(read) = Opening::read(opening)
    {
        assert!(read.to_bytes()[..25] == opening[..25], "an opening is not written as it was read");
        input = rest;
    }
    while let Some((header, rest)) = input.split_first_chunk::<HEADER>() {
        let read = Packet::read(header, &blocks).ok();
        assert_eq!(read, naively(header, &blocks), "differs from the naive reader");
        let Some(packet) = read else { return };
        let Some((payload, rest)) = rest.split_at_checked(packet.payload) else { return };
        if packet.coding == Coding::Zstd && !payload.is_empty() {
            let decompressor = decompressor.get_or_insert_with(|| Decompressor::new().expect("zstd"));
            decompressor.input(payload.len()).copy_from_slice(payload);
            let mut pages = vec![0; packet.pages.normal.len() * PAGE as usize];
            if decompressor.decompress(payload.len(), &mut pages).is_err() {
                return;
            }
        }
        input = rest;
    }
}

/// Decodes a header naively; `None` for a packet that must be refused.
fn naively(header: &[u8; HEADER], blocks: &[RamBlock]) -> Option<Packet> {
    let word =
        |at: usize| u64::from_be_bytes([[0; 4], header[at..at + 4].try_into().unwrap()].concat().try_into().unwrap());
    let long = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().unwrap());
    let (flags, room, normal, payload, zero) = (word(8), word(12), word(16), word(20), word(32));
    let known = word(0) == 0x1122_3344 && word(4) == 1 && [0, 1, 4, 5].contains(&flags);
    if !known || room > 128 || normal + zero > room {
        return None;
    }
    let (number, sync) = (long(24), flags % 2 == 1);
    if normal + zero == 0 {
        return sync.then(|| Packet::sync(number));
    }
    let name = header[64..320].split(|&byte| byte == 0).next()?;
    let block = blocks.iter().position(|block| name.len() < 256 && block.name.as_bytes() == name)?;
    let offsets: Vec<u64> = (0..(normal + zero) as usize).map(|index| long(320 + 8 * index)).collect();
    if offsets.iter().any(|offset| offset % PAGE != 0 || *offset >= blocks[block].len) {
        return None;
    }
    let coding = if flags >= 4 { Coding::Zstd } else { Coding::Raw };
    let fits = match coding {
        Coding::Raw => payload == normal * PAGE,
        Coding::Zstd if normal == 0 => payload == 0,
        Coding::Zstd => (1..=1 << 20).contains(&payload),
    };
    let (normal, zero) = offsets.split_at(normal as usize);
    let pages = PacketPages { block, normal: normal.to_vec(), zero: zero.to_vec() };
    fits.then_some(Packet { number, sync, coding, payload: payload as usize, pages })
}

fn seeds() -> Vec<Vec<u8>> {
    let opening = Opening { uuid: [7; 16], id: 1 }.to_bytes();
    let pages = |normal: &[u64], zero: &[u64]| PacketPages { block: 1, normal: normal.to_vec(), zero: zero.to_vec() };
    let raw =
        Packet { number: 1, sync: false, coding: Coding::Raw, payload: 4096, pages: pages(&[0x1000], &[0, 0x3000]) };
    // A page of zeros as a zstd frame without an end: a header, and a block of one byte 4096 times.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 0x50, 2, 0x80, 0, 0];
    let coded = Packet { coding: Coding::Zstd, payload: frame.len(), pages: pages(&[0x2000], &[]), ..raw.clone() };
    let sync = Packet::sync(0).to_bytes("");
    vec![
        [&opening[..], &sync, &raw.to_bytes("high"), &[9; 4096], &sync].concat(),
        [&coded.to_bytes("high")[..], &frame, &coded.to_bytes("high"), &frame[6..]].concat(),
    ]
}
