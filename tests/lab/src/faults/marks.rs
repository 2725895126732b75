//! Detects the progress of a migration from the bytes of both directions (`docs/wire-format-stream.md`).
//!
//! RAM is parsed record by record, because a guest's pages may contain any bytes, also those of a mark. Devices have no
//! lengths, so the parser searches for the message that follows them.

use super::disk_content;

/// The points of a migration that are detected, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// The first byte of the stream.
    Header,
    /// The first part of RAM after the list of its blocks.
    Pages,
    /// `PING 6`: the end of the first round. A QEMU sends none.
    Round,
    /// The first part of the content of a disk that is copied.
    Disk,
    /// The guest is paused: `SWITCHOVER_START`, or the last part of RAM for a destination without that command.
    SwitchOver,
    /// `PACKAGED`, in post-copy: the devices follow, while some pages are missing.
    Package,
    /// `PING 5`: the source has sent everything.
    Everything,
    /// `PONG 5`: the destination has loaded everything.
    Ready,
    /// `POSTCOPY_RUN`: the source has released its disks, and the destination shall run the guest.
    Run,
    /// `PONG "runs"`, in post-copy: the destination has taken over.
    Runs,
    /// The first part of RAM after `POSTCOPY_RUN`, or over another connection.
    PostcopyPages,
    /// `RECV_BITMAP`: the source resumes over another connection.
    Resume,
    /// EOF: the source has released its disks; in post-copy, it has sent all pages.
    Eof,
    /// `SHUT 0`: the destination has taken over; in post-copy, it has all pages.
    Shut,
    /// `SHUT` with another number: the destination has failed.
    Refusal,
}

/// Magic and version.
const HEADER_LEN: usize = 8;
/// START of section 1, `ram`, instance 0, version 4.
const RAM_START: &[u8] = b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04";
/// Number of that section.
const RAM_NUMBER: [u8; 4] = [0, 0, 0, 1];
/// The source's first PING, which asks for the kind of the destination.
const IDENTIFY: &[u8] = &[8, 0, 2, 0, 4, b'w', b'h', b'o', b'?'];
/// A PING without the last byte of its number.
const PING: &[u8] = &[8, 0, 2, 0, 4, 0, 0, 0];
const PING_ROUND: u8 = 6;
const PING_EVERYTHING: u8 = 5;
const SWITCHOVER_START: &[u8] = &[8, 0, 11, 0, 0];
const POSTCOPY_RUN: &[u8] = &[8, 0, 5, 0, 0];
/// `PACKAGED` without the length of the package, 32 bits.
const PACKAGED: &[u8] = &[8, 0, 7, 0, 4];
/// `RECV_BITMAP` without the name of a block.
const RECV_BITMAP: &[u8] = &[8, 0, 10];
/// EOF and the type of the next element, which is followed by a length of 32 bits and the self-description, which
/// begins with this text.
const EOF_AND_TYPE: &[u8] = &[0, 6];
const DESCRIPTION: &[u8] = b"{\"configuration\"";
/// Length of the start of a section's part, or of a footer: a byte, and the section's number.
pub(super) const SECTION_LEN: usize = 5;
const PAGE_LEN: usize = 4096;
/// Type and length of an answer of the destination.
const ANSWER_HEAD: usize = 4;
/// The type of an answer that is followed by a bitmap: its length of 64 bits, the bitmap, and 64 bits that end it.
const BITMAP: u16 = 5;
/// Upper bound for the length of a pattern that is searched for, and of its changes.
const LOOK_BACK: usize = 64;

/// The part of the stream that the source sends next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamPart {
    Header,
    /// Configuration and early sections, up to the START of RAM.
    Handshake,
    /// Records of RAM up to the end of a section, with the section that ends: the last of RAM or another.
    Records {
        last: bool,
    },
    /// Between two sections.
    Sections,
    /// Records of a copied disk up to the end of a section.
    DiskContent {
        last: bool,
    },
    /// The devices in a package of this many bytes, in post-copy.
    Package(usize),
    /// The devices, up to the ping after them.
    Devices,
    Eof,
    Rest,
}

/// Parses the source's stream as far as needed.
#[derive(Debug)]
pub(super) struct StreamParser {
    part: StreamPart,
    /// The first part of RAM has begun.
    pages: bool,
    /// `SWITCHOVER_START` has come.
    paused: bool,
    /// `POSTCOPY_RUN` has come, in post-copy.
    postcopy: bool,
    /// Number of copied disks of which the end has not come.
    disks: usize,
    /// The last part of RAM has come.
    ram_over: bool,
    /// The list of RAM blocks has addresses, as with QEMU's capability `x-ignore-shared`.
    in_place: bool,
}

impl StreamParser {
    pub(super) fn new(in_place: bool) -> Self {
        Self {
            part: StreamPart::Header,
            pages: false,
            paused: false,
            postcopy: false,
            disks: 0,
            ram_over: false,
            in_place,
        }
    }

    /// A parser for a source that resumes in post-copy over another connection.
    pub(super) fn resumed() -> Self {
        Self { part: StreamPart::Sections, postcopy: true, ..Self::new(false) }
    }

    /// Whether marks are searched for at this point; otherwise the bytes are pages, or irrelevant.
    pub(super) fn is_searched(&self) -> bool {
        use StreamPart::{Devices, Handshake, Header, Package};
        matches!(self.part, Header | Handshake | Package(_) | Devices)
    }

    /// Length of the next piece of `bytes`, and its mark, if it is one; `None` until more bytes have come.
    pub(super) fn step(&mut self, bytes: &[u8]) -> Option<(usize, Option<Mark>)> {
        if bytes.is_empty() {
            return None;
        }
        match self.part {
            StreamPart::Header => {
                bytes.get(..HEADER_LEN)?;
                self.part = StreamPart::Handshake;
                Some((HEADER_LEN, Some(Mark::Header)))
            }
            StreamPart::Handshake => match (find(bytes, RAM_START), find(bytes, IDENTIFY)) {
                (Some(at), _) => {
                    self.part = StreamPart::Records { last: false };
                    Some((at + RAM_START.len(), None))
                }
                // The source sends nothing more before the answer.
                (None, Some(at)) => Some((at + IDENTIFY.len(), None)),
                (None, None) => all_but_the_end(bytes),
            },
            StreamPart::Records { last } => {
                let (len, ends) = record(bytes, self.in_place)?;
                bytes.get(..len)?;
                if ends {
                    self.ram_over |= last;
                    self.part = self.after_section();
                }
                Some((len, None))
            }
            StreamPart::DiskContent { last } => {
                let (len, ends) = disk_content::record(bytes, last)?;
                bytes.get(..len)?;
                if ends {
                    self.disks -= usize::from(last);
                    self.part = self.after_section();
                }
                Some((len, None))
            }
            StreamPart::Sections => self.between_sections(bytes),
            StreamPart::Package(len) => {
                // Wait for the whole package, because a test may change any byte of it.
                bytes.get(..len)?;
                self.part = StreamPart::Sections;
                Some((len, None))
            }
            StreamPart::Devices => {
                let ping = [PING, &[PING_EVERYTHING]].concat();
                match (find(bytes, &ping), find_eof(bytes)) {
                    (Some(0), _) => {
                        self.part = StreamPart::Eof;
                        Some((ping.len(), Some(Mark::Everything)))
                    }
                    // A QEMU sends no ping here.
                    (None, Some(0)) => {
                        self.part = StreamPart::Rest;
                        Some((1, Some(Mark::Eof)))
                    }
                    (Some(at), _) | (None, Some(at)) => Some((at, None)),
                    (None, None) => all_but_the_end(bytes),
                }
            }
            StreamPart::Eof => {
                self.part = StreamPart::Rest;
                Some((1, Some(Mark::Eof)))
            }
            StreamPart::Rest => Some((bytes.len(), None)),
        }
    }

    /// What follows a section in parts: another one, until each has ended.
    fn after_section(&self) -> StreamPart {
        match (self.ram_over && self.disks == 0, self.postcopy) {
            (false, _) => StreamPart::Sections,
            (true, true) => StreamPart::Eof,
            (true, false) => StreamPart::Devices,
        }
    }

    fn between_sections(&mut self, bytes: &[u8]) -> Option<(usize, Option<Mark>)> {
        let section = bytes.first_chunk::<SECTION_LEN>()?;
        match bytes[0] {
            1 => {
                let len = disk_content::start(bytes)?;
                bytes.get(..len)?;
                self.disks += 1;
                Some((len, None))
            }
            2 | 3 if section[1..] != RAM_NUMBER => {
                self.part = StreamPart::DiskContent { last: bytes[0] == 3 };
                Some((SECTION_LEN, Some(Mark::Disk)))
            }
            2 | 3 => {
                let last = bytes[0] == 3;
                self.part = StreamPart::Records { last };
                let mark = match (last, self.pages, self.paused) {
                    _ if self.postcopy => Some(Mark::PostcopyPages),
                    (false, false, _) => Some(Mark::Pages),
                    (true, _, false) => Some(Mark::SwitchOver),
                    _ => None,
                };
                self.pages = true;
                Some((SECTION_LEN, mark))
            }
            8 => {
                let len = SECTION_LEN + usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
                let command = bytes.get(..len)?;
                let mark = match (command.strip_prefix(PING), command.strip_prefix(PACKAGED)) {
                    (Some(&[PING_ROUND]), _) => Some(Mark::Round),
                    (Some(&[PING_EVERYTHING]), _) => Some(Mark::Everything),
                    (_, Some(&[a, b, c, d])) => {
                        let len = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                        self.part = StreamPart::Package(len);
                        Some(Mark::Package)
                    }
                    _ if command == SWITCHOVER_START => Some(Mark::SwitchOver),
                    _ if command == POSTCOPY_RUN => Some(Mark::Run),
                    _ if command.starts_with(RECV_BITMAP) => Some(Mark::Resume),
                    _ => None,
                };
                self.paused |= mark == Some(Mark::SwitchOver);
                self.postcopy |= mark == Some(Mark::Run);
                Some((len, mark))
            }
            // A byte that the documents do not allow here: the rest is not parsed.
            _ => {
                self.part = StreamPart::Rest;
                Some((bytes.len(), None))
            }
        }
    }
}

/// Length of a record, which may be incomplete yet, and whether it ends the section.
fn record(bytes: &[u8], in_place: bool) -> Option<(usize, bool)> {
    let number =
        |at: usize| bytes.get(at..at + 8).map(|bytes| u64::from_be_bytes(bytes.try_into().unwrap_or_default()));
    let word = number(0)?;
    let flags = word & 0xfff;
    let block = || if flags & 0x20 == 0 { Some(1 + usize::from(*bytes.get(8)?)) } else { Some(0) };
    if flags & 0x4 != 0 {
        let (mut len, mut sum) = (8, 0);
        while sum < word - flags {
            let name = 1 + usize::from(*bytes.get(len)?);
            sum += number(len + name)?;
            len += name + 8 + if in_place { 8 } else { 0 };
        }
        return Some((len, false));
    }
    if flags & 0x2 != 0 {
        return Some((8 + block()? + 1, false));
    }
    if flags & 0x8 != 0 {
        return Some((8 + block()? + PAGE_LEN, false));
    }
    // `MULTIFD_FLUSH`: the destination waits for the page channels here.
    if flags & 0x200 != 0 {
        return Some((8, false));
    }
    // The end of the section, with its footer.
    Some((8 + SECTION_LEN, true))
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

/// Offset of EOF, before a self-description.
fn find_eof(bytes: &[u8]) -> Option<usize> {
    let at = find(bytes, DESCRIPTION)?.checked_sub(EOF_AND_TYPE.len() + 4)?;
    bytes[at..].starts_with(EOF_AND_TYPE).then_some(at)
}

/// Leaves the last bytes, in which a pattern may begin.
fn all_but_the_end(bytes: &[u8]) -> Option<(usize, Option<Mark>)> {
    (bytes.len() > LOOK_BACK).then(|| (bytes.len() - LOOK_BACK, None))
}

/// As [`StreamParser::step`] for the destination's answers: type and length, 16 bits each, and the data.
pub(super) fn parse_reply(bytes: &[u8]) -> Option<(usize, Option<Mark>)> {
    let &[kind, kind_low, len, len_low] = bytes.first_chunk::<ANSWER_HEAD>()?;
    let mut len = ANSWER_HEAD + usize::from(u16::from_be_bytes([len, len_low]));
    let whole = bytes.get(..len)?;
    if u16::from_be_bytes([kind, kind_low]) == BITMAP {
        let bitmap = u64::from_be_bytes(bytes.get(len..)?.first_chunk().copied()?);
        len += 8 + usize::try_from(bitmap).ok()? + 8;
        bytes.get(..len)?;
    }
    let mark = match whole {
        [0, 2, 0, 4, 0, 0, 0, PING_EVERYTHING] => Some(Mark::Ready),
        [0, 2, 0, 4, b'r', b'u', b'n', b's'] => Some(Mark::Runs),
        [0, 1, 0, 4, 0, 0, 0, 0] => Some(Mark::Shut),
        [0, 1, 0, 4, ..] => Some(Mark::Refusal),
        _ => None,
    };
    Some((len, mark))
}

#[cfg(test)]
mod tests;
