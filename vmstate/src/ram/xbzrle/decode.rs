//! The XBZRLE decoder, which works on a copy of the page: every run is checked, and none can exceed the page.

use super::{PAGE, Page};
use crate::error::{Error, ErrorKind, Result};

/// Changes `page`, a copy of the guest's, into the source's page; after an error the copy must be discarded. `offset` is the
/// stream offset of the runs, for errors. Accepts and refuses the same input as QEMU's `xbzrle_decode_buffer`: it refuses an
/// empty run (except an equal one at the beginning), a length of more than two bytes, and an end beyond the page or the runs.
///
/// # Errors
/// `Malformed`.
pub fn decode(runs: &[u8], page: &mut Page, offset: u64) -> Result<()> {
    let mut rest = runs;
    let mut at = 0_usize;
    while !rest.is_empty() {
        let here = offset + (runs.len() - rest.len()) as u64;
        let malformed = |what: &str| Error::new(ErrorKind::Malformed, format!("XBZRLE page: {what}")).at(here);
        let equal = take_length(&mut rest)
            .ok_or_else(|| malformed("the length of a run is cut off or has more than 14 bits"))?;
        if equal == 0 && at > 0 {
            return Err(malformed("two runs of changed bytes follow one another"));
        }
        let changed = take_length(&mut rest).ok_or_else(|| malformed("a run of changed bytes has no length"))?;
        if changed == 0 {
            return Err(malformed("a run of changed bytes is empty"));
        }
        let start = at + equal;
        at = start + changed;
        let Some(place) = page.get_mut(start..at) else {
            return Err(malformed(&format!("a run ends at byte {at} of {PAGE}")));
        };
        let Some((bytes, behind)) = rest.split_at_checked(changed) else {
            return Err(malformed(&format!("{} of {changed} changed bytes are there", rest.len())));
        };
        place.copy_from_slice(bytes);
        rest = behind;
    }
    Ok(())
}

/// An ULEB128 number of at most two bytes.
fn take_length(rest: &mut &[u8]) -> Option<usize> {
    let (&low, behind) = rest.split_first()?;
    *rest = behind;
    if low & 0x80 == 0 {
        return Some(low.into());
    }
    let (&high, behind) = rest.split_first()?;
    *rest = behind;
    (high & 0x80 == 0).then(|| usize::from(high) << 7 | usize::from(low & 0x7f))
}
