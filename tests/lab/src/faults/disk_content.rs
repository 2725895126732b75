//! Parses the section of a copied disk (`docs/minivmm-devices.md`), whose content may have any bytes, also those of a mark.

use super::marks::SECTION_LEN;

/// Length of the body of START: two numbers of 64 bits.
const START_BODY: usize = 16;
/// Length of a record without its data: kind, offset, length and checksum.
const RECORD: usize = 1 + 8 + 8 + 4;

/// Length of START with its footer: the section's number, its name behind a byte with the length, instance and version.
pub(super) fn start(bytes: &[u8]) -> Option<usize> {
    let name = usize::from(*bytes.get(SECTION_LEN)?);
    Some(SECTION_LEN + 1 + name + 4 + 4 + START_BODY + SECTION_LEN)
}

/// Length of a record, which may be incomplete yet, and whether it ends the section; with the footer then, and before it in
/// the `last` part the number of records.
pub(super) fn record(bytes: &[u8], last: bool) -> Option<(usize, bool)> {
    Some(match bytes.first()? {
        0 => (1 + if last { 8 } else { 0 } + SECTION_LEN, true),
        1 => {
            let len = bytes.get(9..17)?.try_into().ok()?;
            (RECORD + usize::try_from(u64::from_be_bytes(len)).ok()?, false)
        }
        2 => (RECORD, false),
        _ => (1, false),
    })
}

#[cfg(test)]
mod tests {
    use super::super::marks::{Mark, StreamParser};

    /// The content of both disks is full of bytes that look like marks. The parts of the disks follow those of RAM.
    #[test]
    fn marks_are_not_found_in_the_content_of_disks() {
        let mark = b"\x08\0\x0b\0\0\x08\0\x02\0\x04\0\0\0\x05";
        let data: Vec<u8> = mark.iter().copied().cycle().take(512).collect();
        let footer = |number: u8| vec![0x7e, 0, 0, 0, number];
        let record = |kind: u8, data: &[u8]| [&[kind][..], &[0; 8], &512_u64.to_be_bytes(), b"crc!", data].concat();
        let content = |kind: u8, number: u8| {
            let count = if kind == 3 { &[0, 0, 0, 0, 0, 0, 0, 8][..] } else { &[] };
            let records = [record(1, &data), record(2, &[]), vec![3], record(1, &data)].concat();
            [&[kind, 0, 0, 0, number][..], &records, &[0], count, &footer(number)].concat()
        };
        let start = |number: u8| {
            let head = [&[1, 0, 0, 0, number, 12][..], b"minivmm/disk\0\0\0\0\0\0\0\x01"].concat();
            [&head[..], &mark[..8], &mark[..8], &footer(number)].concat()
        };
        let ram = |kind: u8| [&[kind, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x10][..], &footer(1)].concat();
        let pieces: Vec<(Vec<u8>, Option<Mark>)> = vec![
            (b"QEVM\0\0\0\x03".to_vec(), Some(Mark::Header)),
            (b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04".to_vec(), None),
            ([&0x10_u64.to_be_bytes()[..], &footer(1)].concat(), None),
            (start(2), None),
            (start(3), None),
            (ram(2), Some(Mark::Pages)),
            (content(2, 2), Some(Mark::Disk)),
            (content(2, 3), Some(Mark::Disk)),
            (b"\x08\0\x0b\0\0".to_vec(), Some(Mark::SwitchOver)),
            (ram(3), None),
            (content(3, 2), Some(Mark::Disk)),
            (content(3, 3), Some(Mark::Disk)),
            (b"\x08\0\x02\0\x04\0\0\0\x05".to_vec(), Some(Mark::Everything)),
            (vec![0], Some(Mark::Eof)),
        ];
        let bytes: Vec<u8> = pieces.iter().flat_map(|(bytes, _)| bytes).copied().collect();
        let begins = pieces.iter().scan(0, |at, (bytes, _)| Some(std::mem::replace(at, *at + bytes.len())));
        let wanted: Vec<_> = begins.zip(&pieces).filter_map(|(at, (_, mark))| Some((at, (*mark)?))).collect();
        for chunk in [1, 7, bytes.len()] {
            let (mut forward, mut at, mut found) = (StreamParser::new(false), 0, Vec::new());
            for end in (chunk..bytes.len() + chunk).step_by(chunk) {
                while let Some((len, mark)) = forward.step(&bytes[at..end.min(bytes.len())]) {
                    found.extend(mark.map(|mark| (at, mark)));
                    at += len;
                }
            }
            assert_eq!((found, at), (wanted.clone(), bytes.len()), "in chunks of {chunk}");
        }
    }
}
