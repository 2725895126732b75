//! RAM records, version 4: `u64 offset | flags`, then what the flags say (migration/ram.c).

use super::PAGE_SIZE;

/// Name of the RAM section.
pub const RAM_IDSTR: &str = "ram";
/// Version of the RAM section, and of these records.
pub const RAM_VERSION: u32 = 4;

/// `RAM_SAVE_FLAG_*`, migration/ram.h. They sit in the low bits of a page-aligned offset.
pub(super) mod flag {
    pub(crate) const FULL: u64 = 0x001;
    pub(crate) const ZERO: u64 = 0x002;
    pub(crate) const MEM_SIZE: u64 = 0x004;
    pub(crate) const PAGE: u64 = 0x008;
    pub(crate) const EOS: u64 = 0x010;
    pub(crate) const CONTINUE: u64 = 0x020;
    pub(crate) const XBZRLE: u64 = 0x040;
    pub(crate) const HOOK: u64 = 0x080;
    pub(crate) const COMPRESS_PAGE: u64 = 0x100;
    pub(crate) const MULTIFD_FLUSH: u64 = 0x200;
}

/// Bytes of the record of a page sent whole, and of one sent as zero, when the record before it was of the same block.
pub const NORMAL_RECORD: u64 = 8 + PAGE_SIZE;
/// See [`NORMAL_RECORD`].
pub const ZERO_RECORD: u64 = 8 + 1;

/// The bits of a record's first word that are flags.
pub(super) const FLAGS: u64 = PAGE_SIZE - 1;

/// The record kinds that exist and are not supported, with what to do about them.
pub(super) fn unsupported(flags: u64) -> Option<&'static str> {
    const UNSUPPORTED: [(u64, &str); 5] = [
        (flag::XBZRLE, "XBZRLE: turn capability xbzrle off at the source"),
        (flag::MULTIFD_FLUSH, "MULTIFD_FLUSH: turn capability multifd off at the source"),
        (flag::HOOK, "HOOK: migrate over tcp or unix, not rdma"),
        (flag::COMPRESS_PAGE, "COMPRESS_PAGE: turn capability compress off at the source"),
        (flag::FULL, "FULL, which no version-4 source sends"),
    ];
    UNSUPPORTED.iter().find(|(bit, _)| flags & bit != 0).map(|&(_, name)| name)
}

/// Appends the end of a RAM section's body.
pub fn put_end_of_section(out: &mut Vec<u8>) {
    out.extend_from_slice(&flag::EOS.to_be_bytes());
}
