//! Damages a section: changes a few values in it, as a hostile peer would.

use std::ops::Range;

use vmstate_lab::random::Random;

/// Values that break checks and sums; their low bytes are used.
const EXTREMES: [u64; 8] = [0, 1, u64::MAX, u64::MAX - 1, 1 << 63, i64::MAX as u64, 0x8080_8080_8080_8080, 0x1000];
/// Most values that are changed in one stream.
const CHANGES_MAX: u64 = 2;

/// Changes one to [`CHANGES_MAX`] values in `body` of `stream`; returns the new stream and the changes.
pub(crate) fn damaged(stream: &[u8], body: Range<usize>, random: &mut Random) -> (Vec<u8>, String) {
    let mut bytes = stream.to_vec();
    let mut changed = Vec::new();
    for _ in 0..1 + random.below(CHANGES_MAX) {
        // Fields on the wire are big-endian, of one to eight bytes.
        let length = (1 << random.below(4)).min(body.len());
        let at = body.start + random.below((body.len() - length + 1) as u64) as usize;
        let field = &mut bytes[at..at + length];
        match random.below(3) {
            0 => field[random.below(length as u64) as usize] ^= 1 << random.below(8),
            1 => field.copy_from_slice(&random.number().to_be_bytes()[8 - length..]),
            _ => {
                let extreme = EXTREMES[random.below(EXTREMES.len() as u64) as usize];
                field.copy_from_slice(&extreme.to_be_bytes()[8 - length..]);
            }
        }
        changed.push(format!("{:#x} of the section is {:02x?}", at - body.start, &bytes[at..at + length]));
    }
    (bytes, changed.join(", "))
}
