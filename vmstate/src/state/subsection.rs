//! The subsections of a struct that is saved or loaded.

use crate::codec::{Reader, Strictness, Writer, put_subsection_header};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;

/// Appends a subsection's header. The derive has checked that the name is at most 255 bytes.
#[inline]
pub fn save_header(name: &str, version: u32, out: &mut Writer) {
    debug_assert!(name.len() <= 255, "the derive refuses longer names");
    put_subsection_header(out.buffer(), name, version);
}

/// The next subsection of `parent`: its place in `parent.subsections`, and the version it was written at. `None` if
/// something else comes. `seen` holds one flag for each subsection.
#[inline]
pub fn next(input: &mut Reader<'_>, parent: &Description, seen: &mut [bool]) -> Result<Option<(usize, u32)>> {
    match input.peek_subsection(&parent.name)? {
        None => Ok(None),
        Some(name) => take(name, input, parent, seen).map(Some),
    }
}

fn take(name: &[u8], input: &mut Reader<'_>, parent: &Description, seen: &mut [bool]) -> Result<(usize, u32)> {
    let found = parent.subsections.iter().position(|subsection| subsection.name.as_bytes() == name);
    let shown = || String::from_utf8_lossy(name);
    let (Some(index), Some(seen)) = (found, found.and_then(|index| seen.get_mut(index))) else {
        let message = format!("subsection {:?} is not known to {:?}", shown(), &*parent.name);
        return Err(Error::new(ErrorKind::Incompatible, message).at(input.offset()));
    };
    if *seen && input.strictness() == Strictness::Strict {
        return Err(input.malformed(format!("subsection {:?} comes twice", shown())));
    }
    *seen = true;
    let [_, length] = input.array()?;
    input.take(usize::from(length))?;
    let version = input.u32()?;
    Ok((index, narrowed(version, input.strictness())))
}

/// Refuses a subsection where none is expected any more: behind a section whose description has none.
#[inline]
pub(super) fn none_left(input: &mut Reader<'_>, parent: &Description) -> Result<()> {
    if parent.subsections.is_empty() && !input.rest().is_empty() {
        next(input, parent, &mut [])?;
    }
    Ok(())
}

/// QEMU keeps a subsection's version in a `uint8_t`, so 0x101 loads as 1.
pub(crate) fn narrowed(version: u32, strictness: Strictness) -> u32 {
    match strictness {
        Strictness::Strict => version,
        Strictness::QemuCompatible => version & 0xff,
    }
}
