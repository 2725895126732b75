//! Subsections on the wire: `05`, name length, name, version, fields; recognised by looking ahead.
//!
//! The format has no frame around a struct, so a reader peeks: a subsection of struct `p` starts with 5, a length
//! and a name that starts with `p` (QEMU 10.0, migration/vmstate.c, `vmstate_subsection_load`).

use crate::codec::mark::SUBSECTION;
use crate::codec::{Reader, Strictness, Writer, as_text};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;

/// Appends a subsection's header. The derive has checked that the name is at most 255 bytes.
#[inline]
pub fn save_header(name: &str, version: u32, out: &mut Writer) {
    debug_assert!(name.len() <= 255, "the derive refuses longer names");
    out.u8(SUBSECTION);
    out.u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.bytes(name.as_bytes());
    out.u32(version);
}

/// The next subsection of `parent`: its place in `parent.subsections`, and the version it was written at. `None` if
/// something else comes. `seen` holds one flag for each subsection.
#[inline]
pub fn next(input: &mut Reader<'_>, parent: &Description, seen: &mut [bool]) -> Result<Option<(usize, u32)>> {
    match input.rest() {
        [first, ..] if *first != SUBSECTION => Ok(None),
        _ => next_of(input, parent, seen),
    }
}

fn next_of(input: &mut Reader<'_>, parent: &Description, seen: &mut [bool]) -> Result<Option<(usize, u32)>> {
    let Some(name) = peek_name(input, &parent.name)? else { return Ok(None) };
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
    Ok(Some((index, narrowed(version, input.strictness()))))
}

/// Refuses a subsection where none is expected any more: behind a section whose description has none.
#[inline]
pub(super) fn none_left(input: &mut Reader<'_>, parent: &Description) -> Result<()> {
    if parent.subsections.is_empty() && input.peek(1) == Some(&[SUBSECTION]) {
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

/// The name of the subsection of `parent` that starts here, if one does. A name of which the bytes at hand already
/// differ from `parent` is none; only one that may still match asks for more.
fn peek_name<'a>(input: &Reader<'a>, parent: &str) -> Result<Option<&'a [u8]>> {
    let rest = input.rest();
    let wanted = |count| if input.is_complete() { Ok(None) } else { Err(input.incomplete(count)) };
    match rest {
        [] => wanted(1),
        [SUBSECTION] => wanted(2),
        [SUBSECTION, length, rest @ ..] => {
            let length = usize::from(*length);
            let differs = rest.iter().zip(parent.as_bytes()).any(|(got, expected)| got != expected);
            if length <= parent.len() || differs {
                return Ok(None);
            }
            match rest.get(..length) {
                Some(name) => Ok(Some(as_text(name, input.strictness()))),
                None => wanted(2 + length),
            }
        }
        _ => Ok(None),
    }
}
