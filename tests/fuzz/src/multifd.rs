//! Target: page channels that say anything. Which packets are taken, and what they say, is what a naive reader finds; which
//! channels belong to the migration, and when its main channel may pass a flush, what a naive list of all packets tells.
//!
//! ```text
//! byte 0, even: packets of one channel, each with the bytes that it announces
//! byte 0, odd: steps of 4 bytes: what | channel | uuid | number of the packet
//! ```

use std::collections::BTreeSet;

use vmstate::ram::RamBlock;
use vmstate::raw::multifd::{Coding, Decompressor, HEADER, OPENING, Opening, Packet, PacketPages, Pairing};

use crate::Target;

/// A window of zstd's has 32 MiB; what is read and written besides has 2.
pub(crate) const TARGET: Target = Target { name: "multifd", memory: 48 << 20, body, seeds };

const PAGE: u64 = 4096;

fn blocks() -> Vec<RamBlock> {
    [("low", 12), ("high", 4)].map(|(name, pages)| RamBlock { name: name.into(), len: pages * PAGE }).to_vec()
}

fn body(input: &[u8]) {
    match input.split_first() {
        Some((kind, rest)) if kind % 2 == 0 => packets(rest),
        Some((_, rest)) => pairing(rest),
        None => {}
    }
}

fn packets(mut input: &[u8]) {
    let blocks = blocks();
    let mut decompressor = None;
    if let Some((opening, rest)) = input.split_first_chunk::<OPENING>()
        && let Ok(read) = Opening::read(opening)
    {
        assert!(read.to_bytes()[..25] == opening[..25], "an opening is written as it was read");
        input = rest;
    }
    while let Some((header, rest)) = input.split_first_chunk::<HEADER>() {
        let read = Packet::read(header, &blocks).ok();
        assert_eq!(read, naively(header, &blocks), "other than a naive reader");
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

/// `None`: it is refused.
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

fn pairing(input: &[u8]) {
    let mut pairing = Pairing::default();
    // Channels with their numbers of SYNCs; all packets; flushes.
    let (mut channels, mut packets, mut flushes) = (Vec::<(u8, u8, u64)>::new(), BTreeSet::new(), 0);
    for &[what, id, uuid, number] in input.as_chunks().0 {
        let number = u64::from(number) + if what & 0x80 == 0 { 0 } else { 200 };
        match what % 4 {
            0 => {
                let stranger = channels.iter().any(|channel| channel.0 == id || channel.1 != uuid);
                let belongs = !stranger && number < 256 && packets.insert(number);
                let joined = pairing.join(Opening { uuid: [uuid; 16], id }, number);
                assert_eq!(joined.is_ok(), belongs, "{joined:?}");
                if belongs {
                    channels.push((id, uuid, 1));
                }
            }
            // Nobody but a channel of the migration has more packets.
            1 | 2 => {
                let Some(channel) = channels.iter_mut().find(|channel| channel.0 == id) else { continue };
                let taken = pairing.add(id, number, what % 4 == 1);
                assert_eq!(taken.is_ok(), packets.insert(number), "{taken:?}");
                channel.2 += u64::from(taken.is_ok() && what % 4 == 1);
            }
            _ => {
                let all_here = packets.iter().copied().eq(0..packets.len() as u64);
                let all_there = !channels.is_empty() && channels.iter().all(|channel| channel.2 > flushes);
                let passes = flushes == 0 || (all_here && all_there);
                let passed = pairing.pass().expect("no channel was closed");
                assert_eq!(passed, passes, "flush {flushes}");
                flushes += u64::from(passed);
            }
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let opening = Opening { uuid: [7; 16], id: 1 }.to_bytes();
    let pages = |normal: &[u64], zero: &[u64]| PacketPages { block: 1, normal: normal.to_vec(), zero: zero.to_vec() };
    let raw =
        Packet { number: 1, sync: false, coding: Coding::Raw, payload: 4096, pages: pages(&[0x1000], &[0, 0x3000]) };
    // A page of zeros as a frame that is not ended: a header and a block of one byte 4096 times.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 0x50, 2, 0x80, 0, 0];
    let coded = Packet { coding: Coding::Zstd, payload: frame.len(), pages: pages(&[0x2000], &[]), ..raw.clone() };
    let sync = Packet::sync(0).to_bytes("");
    vec![
        [&[0], &opening[..], &sync, &raw.to_bytes("high"), &[9; 4096], &sync].concat(),
        [&[0], &coded.to_bytes("high")[..], &frame, &coded.to_bytes("high"), &frame[6..]].concat(),
        vec![1, 0, 0, 5, 0, 0, 1, 5, 1, 3, 0, 0, 0, 2, 0, 5, 3, 1, 0, 5, 2, 1, 1, 5, 4, 3, 0, 0, 0],
        vec![1, 3, 0, 0, 0, 0, 0, 5, 0, 1, 0, 5, 1, 3, 0, 0, 0, 0, 0, 5, 1, 0, 1, 6, 1],
    ]
}
