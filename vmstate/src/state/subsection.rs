//! Saving and loading of a struct's subsections.

use crate::codec::mark::SUBSECTION;
use crate::codec::{Reader, Strictness, Writer, put_subsection_header, subsection_header};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;

/// Appends the header of a subsection with the given newest and oldest version, and returns the version at which its body is to
/// be saved. `header` is that of the newest version.
#[inline]
pub fn begin<const N: usize>(header: &[u8; N], name: &str, newest: u32, oldest: u32, out: &mut Writer) -> u32 {
    out.outcome(1);
    if out.limits_subsections() {
        return begin_older(name, newest, oldest, out);
    }
    out.bytes(header);
    newest
}

/// The header of a subsection. `N` is the length of the name plus six; the derive refuses names of more than 255 bytes.
pub const fn header<const N: usize>(name: &str, version: u32) -> [u8; N] {
    subsection_header(name, version)
}

#[cold]
fn begin_older(name: &str, newest: u32, oldest: u32, out: &mut Writer) -> u32 {
    let version = out.subsection_version(name, newest, oldest);
    put_subsection_header(out.buffer(), name, version);
    version
}

/// The next subsection of `parent`: its index in `parent.subsections`, and its version. `None` if other data follows. `seen`
/// holds one flag for each subsection.
#[inline]
pub fn next(input: &mut Reader<'_>, parent: &Description, seen: &mut [bool]) -> Result<Option<(usize, u32)>> {
    match input.rest() {
        // Most devices have no subsections: the check costs one comparison.
        [first, ..] if *first != SUBSECTION => Ok(None),
        _ => next_of(input, parent, seen),
    }
}

fn next_of(input: &mut Reader<'_>, parent: &Description, seen: &mut [bool]) -> Result<Option<(usize, u32)>> {
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

/// Refuses a subsection after a section whose description has none.
#[inline]
pub(super) fn none_left(input: &mut Reader<'_>, parent: &Description) -> Result<()> {
    if parent.subsections.is_empty() && !input.rest().is_empty() {
        next(input, parent, &mut [])?;
    }
    Ok(())
}

/// QEMU stores a subsection's version in a `uint8_t`, so 0x101 loads as 1.
pub(crate) fn narrowed(version: u32, strictness: Strictness) -> u32 {
    match strictness {
        Strictness::Strict => version,
        Strictness::QemuCompatible => version & 0xff,
    }
}
