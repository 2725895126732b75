//! XBZRLE: sends only the changed bytes of a page that the destination has (QEMU's capability `xbzrle`).

mod cache;
mod decode;
mod encode;
mod source;

pub use cache::PageCache;
pub use decode::decode;
pub use encode::{Encoded, Encoder, changed_bytes};
pub use source::{Delta, XbzrleCount, XbzrleSource};

use super::PAGE;

/// A page's bytes.
pub type Page = [u8; PAGE];
/// The bytes in which two pages differ: bit `n % 64` of word `n / 64` is set if byte `n` does.
pub type ChangedBytes = [u64; PAGE / 64];

/// Size of the part of a record before the runs: [`ENCODING`], and the length of the runs in two bytes (`save_xbzrle_page`,
/// migration/ram.c).
pub(super) const HEAD: usize = 3;
/// The only encoding, `ENCODING_FLAG_XBZRLE`.
pub(super) const ENCODING: u8 = 1;
/// The most bytes of runs with which a record is shorter than that of the whole page.
const LONGEST: usize = PAGE - HEAD - 1;
