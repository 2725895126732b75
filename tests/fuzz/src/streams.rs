//! Streams that QEMU wrote, whole and in sections: the seeds of the targets.

use std::ops::Range;

use vmstate::dump::{Dump, Part};
use vmstate::raw::stream::SectionHeader;

/// `microvm` before its first instruction, with all of its 16 MiB sent.
pub const RESET: &[u8] = include_bytes!("../../fixtures/streams/microvm-reset-16m.bin");
/// `microvm` under KVM, Linux at work.
pub const KVM: &[u8] = include_bytes!("../../fixtures/streams/microvm-linux-kvm.bin");
/// The same under TCG.
pub const TCG: &[u8] = include_bytes!("../../fixtures/streams/microvm-linux-tcg.bin");

/// Bytes of a section's footer.
const FOOTER: usize = 5;
/// The mark that ends a RAM section's body (`RAM_SAVE_FLAG_EOS`).
const END_OF_PAGES: &[u8] = b"\0\0\0\0\0\0\0\x10";

/// A section of a stream, by its offsets.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    /// Whether it is a whole section or a part of one.
    pub part: Part,
    /// The section's header.
    pub header: SectionHeader<'a>,
    /// The section from its type byte to the end of its footer.
    pub whole: Range<usize>,
    /// The section without header and footer.
    pub body: Range<usize>,
}

/// All sections of a stream.
///
/// # Panics
/// When the stream is damaged.
pub fn sections(stream: &[u8]) -> Vec<Found<'_>> {
    let dump = Dump::read(stream);
    assert!(dump.damage.is_none(), "{:?}", dump.damage);
    let place = |offset: u64| usize::try_from(offset).expect("a place in memory");
    let found = dump.sections().map(|section| {
        let body = place(section.body)..place(section.body + section.size);
        let (part, header) = (section.part, section.header.clone());
        Found { part, header, whole: place(section.offset)..body.end + FOOTER, body }
    });
    found.collect()
}

/// A short stream that loads: the header, RAM's list and a few pages of [`RESET`]; then from `stream` the sections
/// whose names are in `known`, the end and the self-description.
///
/// # Panics
/// When the stream is damaged.
pub fn loadable(stream: &[u8], known: &[&str]) -> Vec<u8> {
    let mut short = Vec::new();
    let mut at = 0;
    for found in sections(RESET).iter().filter(|found| found.part != Part::Full) {
        short.extend(&RESET[at..found.body.start]);
        let body = &RESET[found.body.clone()];
        match found.part {
            // The first page with its block's name, and three more records of 9 bytes: an offset with flags, and the
            // fill byte.
            Part::Part => short.extend([&body[..8 + 1 + "microvm.ram".len() + 1 + 3 * 9], END_OF_PAGES].concat()),
            _ => short.extend(body),
        }
        at = found.whole.end;
        short.extend(&RESET[found.body.end..at]);
    }
    let mut end = 0;
    for found in sections(stream).iter().filter(|found| found.part == Part::Full) {
        end = found.whole.end;
        if known.contains(&&*found.header.idstr) {
            short.extend(&stream[found.whole.clone()]);
        }
    }
    short.extend(&stream[end..]);
    short
}
