//! Inputs that reach the main branches of the target: what a source sends, and what it must not send.

use minivmm::devices::virtio::blk::{GRANULE, SECTOR};

use super::disk::change;
use super::{BITMAPS, DISK, IN_TRANSIT};

pub(super) fn all() -> Vec<Vec<u8>> {
    [bitmaps(), disk(), in_transit()].concat()
}

/// A body of any section, behind its length.
fn sized(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u16).to_le_bytes(), body].concat()
}

fn bitmaps() -> Vec<Vec<u8>> {
    let name = |flags: u8, names: &[&str]| {
        let names = names.iter().flat_map(|name| [&[name.len() as u8], name.as_bytes()].concat());
        [&[flags][..], &names.collect::<Vec<_>>()].concat()
    };
    let begin =
        |flags, names: &[&str], granularity: u32| [&name(flags, names), &granularity.to_be_bytes()[..], &[1]].concat();
    let bits = |names: &[&str], start: u64, sectors: u32, words: &[u64]| {
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let range = [&start.to_be_bytes()[..], &sectors.to_be_bytes(), &(words.len() as u64).to_be_bytes()].concat();
        [name(0x4c, names), range, words].concat()
    };
    let start = sized(
        &[
            begin(0x1c, &["virtio0", "a"], 4096),
            begin(0x14, &["b"], 512),
            begin(0x1c, &["virtio1", "a"], 65536),
            vec![1],
        ]
        .concat(),
    );
    let first = bits(&["virtio0", "a"], 0, 512, &[0xf0f0]);
    let last = bits(&["virtio0", "b"], 2048, 9, &[0x1ff, 0, 0, 0]);
    let zeros = [name(0x4e, &["virtio1", "a"]), 0_u64.to_be_bytes().to_vec(), 256_u32.to_be_bytes().to_vec()].concat();
    let part = sized(&[&first, &last, &zeros, &[1][..]].concat());
    let complete = [name(0x2c, &["virtio0", "a"]), name(0x24, &["b"]), name(0x2c, &["virtio1", "a"]), vec![1]].concat();
    let end = sized(&complete);
    let write = [&[4, 0][..], &5000_u32.to_le_bytes(), &512_u16.to_le_bytes()].concat();
    let program = |steps: &[&[u8]]| [&[BITMAPS], &start[..], &steps.concat()].concat();
    vec![
        program(&[&[0], &part, &write, &[3], &end, &[5]]),
        // In post-copy.
        program(&[&[5], &write, &[0], &part, &[3], &end, &write]),
        program(&[&[0], &part, &[5, 6, 0], &part, &[3], &end]),
        program(&[&[3], &sized(&[1])]),
        program(&[&[0], &sized(&bits(&["virtio0", "own"], 0, 512, &[1]))]),
    ]
}

fn disk() -> Vec<Vec<u8>> {
    let own = |steps: &[u8]| [&[DISK, 0][..], steps].concat();
    let raw = |record: &[u8]| own(&[&[2][..], &sized(record)].concat());
    vec![
        // Sectors 1 to 8, part of the second granule, a hole over both, the end.
        own(&[0, 1, 0, 8, 0, 7, 4, 0, 128, 0, 3, 0, 9, 1, 2, 0, 129, 0, 5, 6]),
        own(&[0, 126, 0, 4, 0, 7]),
        own(&[0, 1, 0, 1, 1, 7]),
        own(&[1, 8, 1, 2, 0, 5, 0x16]),
        raw(&change(1, SECTOR, SECTOR, &[5; SECTOR as usize])),
        raw(&change(2, u64::MAX - 511, SECTOR, &[])),
        [&[DISK, 1][..], &(2 * GRANULE + 0x1200).to_be_bytes(), &u64::MAX.to_be_bytes()].concat(),
    ]
}

fn in_transit() -> Vec<Vec<u8>> {
    let framed = |len: usize| [&(len as u32).to_be_bytes()[..], &vec![9; len]].concat();
    let bytes = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat();
    let input = |socket: u64, received: &[u8], unsent: &[u8], waiting: &[u8], from_peer: &[u8]| {
        let card = [&socket.to_be_bytes()[..], &bytes(received), &bytes(unsent), &bytes(waiting)].concat();
        let section = [&bytes(b"ab")[..], &bytes(b"c"), &[1], &card].concat();
        [&[IN_TRANSIT], &(section.len() as u32).to_be_bytes()[1..], &section, from_peer].concat()
    };
    let (frame, rest) = (framed(60), framed(100));
    vec![
        input(1, &[&frame[..], &rest[..50]].concat(), &framed(1500)[700..], &[0; 72], &rest[50..]),
        input(0, &frame, &frame, &[], &[]),
        input(1, &framed(13), &[], &[], &frame),
        input(1, &framed(65555), &[3; 1 << 20], &[], &[]),
        input(1, &[], &[3; 2 << 20], &[], &[]),
    ]
}
