//! Tests of the marks in a recorded stream.

use super::*;

/// A stream written from the documents, with a page full of bytes that look like marks. Without pings and
/// SWITCHOVER_START it is the stream of a QEMU before 9.0.
fn stream(with_pings: bool) -> (Vec<u8>, Vec<(usize, Mark)>) {
    let (mut bytes, mut marks) = (Vec::new(), Vec::new());
    let command = |number: u8, payload: &[u8]| {
        let mut bytes = vec![8, 0, number, 0, payload.len() as u8];
        bytes.extend_from_slice(payload);
        bytes
    };
    let footer = [0x7e, 0, 0, 0, 1];
    marks.push((0, Mark::Header));
    bytes.extend_from_slice(b"QEVM\0\0\0\x03\x07\0\0\0\x07microvm");
    bytes.extend(command(1, &[]));
    bytes.extend([4, 0, 0, 0, 9, 5]);
    bytes.extend_from_slice(b"early\0\0\0\0\0\0\0\x01");
    // The body of an early section contains a ping.
    bytes.extend(command(2, &[0, 0, 0, 6]));
    bytes.extend([0x7e, 0, 0, 0, 9]);
    bytes.extend_from_slice(b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04");
    bytes.extend(0x2004_u64.to_be_bytes());
    bytes.extend_from_slice(b"\x03low\0\0\0\0\0\0\x10\0\x04high\0\0\0\0\0\0\x10\0");
    bytes.extend(0x10_u64.to_be_bytes());
    bytes.extend(footer);
    bytes.extend(command(2, &[0, 0, 0, 1]));
    let page = [command(2, &[0, 0, 0, 6]), command(11, &[]), command(2, &[0, 0, 0, 5])].concat();
    let page: Vec<u8> = page.into_iter().cycle().take(4096).collect();
    for kind in [2, 3] {
        if kind == 2 {
            marks.push((bytes.len(), Mark::Pages));
        }
        bytes.extend([kind, 0, 0, 0, 1]);
        bytes.extend(0x008_u64.to_be_bytes());
        bytes.extend_from_slice(b"\x03low");
        bytes.extend_from_slice(&page);
        bytes.extend(0x1022_u64.to_be_bytes());
        bytes.push(0);
        bytes.extend(0x200_u64.to_be_bytes());
        bytes.extend(0x10_u64.to_be_bytes());
        bytes.extend(footer);
        if kind == 2 && with_pings {
            marks.push((bytes.len(), Mark::Round));
            bytes.extend(command(2, &[0, 0, 0, 6]));
        }
        if kind == 2 {
            marks.push((bytes.len(), Mark::SwitchOver));
        }
        if kind == 2 && with_pings {
            bytes.extend(command(11, &[]));
        }
    }
    bytes.extend([4, 0, 0, 0, 2, 6]);
    bytes.extend_from_slice(b"serial\0\0\0\0\0\0\0\x03");
    bytes.extend([7; 200]);
    bytes.extend([0x7e, 0, 0, 0, 2]);
    if with_pings {
        marks.push((bytes.len(), Mark::Everything));
        bytes.extend(command(2, &[0, 0, 0, 5]));
    }
    marks.push((bytes.len(), Mark::Eof));
    bytes.extend_from_slice(b"\0\x06\0\0\0\x15{\"configuration\": {}}");
    (bytes, marks)
}

/// The first ping must not be held back for more bytes, because the source sends nothing more before the answer.
#[test]
fn the_first_ping_is_not_held_back() {
    let mut bytes = b"QEVM\0\0\0\x03\x07\0\0\0\x07microvm\x08\0\x01\0\0\x08\0\x02\0\x04who?".to_vec();
    let mut forward = StreamParser::new(false);
    while let Some((len, _)) = forward.step(&bytes) {
        bytes.drain(..len);
    }
    assert_eq!(bytes.escape_ascii().to_string(), "");
}

#[test]
fn marks_are_found_at_their_offsets_and_not_in_pages() {
    for (chunk, with_pings) in [1, 7, 4096, usize::MAX].into_iter().flat_map(|chunk| [(chunk, true), (chunk, false)]) {
        let (bytes, wanted) = stream(with_pings);
        let chunk = chunk.min(bytes.len());
        let (mut forward, mut at, mut found) = (StreamParser::new(false), 0, Vec::new());
        for end in (chunk..bytes.len() + chunk).step_by(chunk) {
            while let Some((len, mark)) = forward.step(&bytes[at..end.min(bytes.len())]) {
                found.extend(mark.map(|mark| (at, mark)));
                at += len;
            }
        }
        assert_eq!(found, wanted, "in chunks of {chunk}, with pings: {with_pings}");
        assert_eq!(at, bytes.len());
    }
}

/// Post-copy, also over another connection: the package and the pages are full of bytes that look like marks.
#[test]
fn marks_of_post_copy_are_found_at_their_offsets() {
    let part = |kind: u8| {
        let page: Vec<u8> = [POSTCOPY_RUN, PACKAGED].concat().into_iter().cycle().take(4096).collect();
        let footer = b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01";
        [&[kind, 0, 0, 0, 1], &b"\0\0\0\0\0\0\0\x08\x03low"[..], &page, footer].concat()
    };
    let (first, marks) = stream(true);
    let begins = marks.iter().find(|(_, mark)| *mark == Mark::SwitchOver).unwrap().0;
    let package = [PACKAGED, &[0, 0, 0, 10], POSTCOPY_RUN, POSTCOPY_RUN].concat();
    let ping = [PING, &[PING_EVERYTHING]].concat();
    let mut pieces: Vec<(Vec<u8>, Option<Mark>)> = vec![
        (SWITCHOVER_START.to_vec(), Some(Mark::SwitchOver)),
        (b"\x08\0\x06\0\x16\0\x03low\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0".to_vec(), None),
        (package, Some(Mark::Package)),
        (ping, Some(Mark::Everything)),
        (part(2), None),
        (POSTCOPY_RUN.to_vec(), Some(Mark::Run)),
        (part(2), Some(Mark::PostcopyPages)),
        (part(3), Some(Mark::PostcopyPages)),
        (vec![0], Some(Mark::Eof)),
    ];
    pieces.insert(0, (first[..begins].to_vec(), Some(Mark::Header)));
    let again: Vec<(Vec<u8>, Option<Mark>)> = vec![
        (b"\x08\0\x0a\0\x04\x03low".to_vec(), Some(Mark::Resume)),
        (b"\x08\0\x09\0\0".to_vec(), None),
        (part(2), Some(Mark::PostcopyPages)),
        (part(3), Some(Mark::PostcopyPages)),
        (vec![0], Some(Mark::Eof)),
    ];
    for (mut forward, pieces) in [(StreamParser::new(false), pieces), (StreamParser::resumed(), again)] {
        let bytes: Vec<u8> = pieces.iter().flat_map(|(bytes, _)| bytes).copied().collect();
        let ends = pieces.iter().scan(0, |at, (bytes, _)| Some(std::mem::replace(at, *at + bytes.len())));
        let wanted: Vec<_> = ends.zip(&pieces).filter_map(|(at, (_, mark))| Some((at, (*mark)?))).collect();
        let (mut at, mut found) = (0, Vec::new());
        while let Some((len, mark)) = forward.step(&bytes[at..]) {
            found.extend(mark.filter(|mark| !matches!(mark, Mark::Pages | Mark::Round)).map(|mark| (at, mark)));
            at += len;
        }
        assert_eq!((found, at), (wanted, bytes.len()));
    }
}

/// A request for a page, and a bitmap with bytes that look like an answer.
#[test]
fn answers_end_by_their_lengths() {
    let request = b"\0\x03\0\x10\0\0\0\0\0\0\x10\0\0\0\x10\0\x03low";
    let bitmap = b"\0\x05\0\x04\x03low\0\0\0\0\0\0\0\x08\0\x01\0\x04\0\0\0\0endshere";
    let runs = b"\0\x02\0\x04runs";
    let mut bytes = [&request[..], bitmap, runs, b"\0\x06\0\x04\0\0\0\x01\0\x01\0\x04\0\0\0\0"].concat();
    let mut found = Vec::new();
    while let Some((len, mark)) = parse_reply(&bytes) {
        found.push((len, mark));
        bytes.drain(..len);
    }
    assert_eq!(found, [(20, None), (32, None), (8, Some(Mark::Runs)), (8, None), (8, Some(Mark::Shut))]);
}

#[test]
fn answers_are_distinguished() {
    let marks =
        [[0, 2, 0, 4, 0, 0, 0, 5], [0, 2, 0, 4, 0, 0, 0, 6], [0, 1, 0, 4, 0, 0, 0, 0], [0, 1, 0, 4, 0, 0, 0, 1]];
    let marks = marks.map(|bytes| parse_reply(&bytes).and_then(|(_, mark)| mark));
    assert_eq!(marks, [Some(Mark::Ready), None, Some(Mark::Shut), Some(Mark::Refusal)]);
    assert_eq!(parse_reply(&[0, 1, 0, 4, 0, 0, 0]), None);
}
