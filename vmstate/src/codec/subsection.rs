//! Subsections on the wire: `05`, a name, a version of 4 bytes, then fields. A struct has no length and no end marker, so a
//! reader looks ahead for a subsection after its fields (QEMU 10.0, migration/vmstate.c, `vmstate_subsection_load`).

use super::mark::SUBSECTION;
use super::{Reader, as_text, put_name};
use crate::error::{Error, ErrorKind, Result};

/// True if a reader takes `name` for a subsection of `parent`: the name begins with the parent's and is longer.
pub(crate) fn is_subsection_of(parent: &str, name: &[u8]) -> bool {
    name.len() > parent.len() && name.starts_with(parent.as_bytes())
}

/// The bytes of a header. `N` is the length of the name, at most 255, plus six.
#[expect(clippy::cast_possible_truncation, reason = "the length is checked")]
pub(crate) const fn subsection_header<const N: usize>(name: &str, version: u32) -> [u8; N] {
    assert!(name.len() <= 255 && name.len() + 6 == N);
    let mut header = [0; N];
    if let Some((start, rest)) = header.split_first_chunk_mut()
        && let Some((text, end)) = rest.split_last_chunk_mut()
    {
        *start = [SUBSECTION, name.len() as u8];
        text.copy_from_slice(name.as_bytes());
        *end = version.to_be_bytes();
    }
    header
}

/// Appends a header. The description's checks limit the name to 255 bytes.
#[inline]
pub(crate) fn put_subsection_header(out: &mut Vec<u8>, name: &str, version: u32) {
    out.push(SUBSECTION);
    put_name(out, name);
    out.extend_from_slice(&version.to_be_bytes());
}

impl<'a> Reader<'a> {
    /// The name of the subsection of `parent` that starts here, if one does; nothing is consumed. A name whose first bytes
    /// already differ from `parent` is rejected at once; only a name that may still match needs more bytes.
    ///
    /// # Errors
    /// `Incomplete` if the answer depends on bytes that are still to come.
    #[inline]
    pub(crate) fn peek_subsection(&self, parent: &str) -> Result<Option<&'a [u8]>> {
        match self.rest() {
            [first, ..] if *first != SUBSECTION => Ok(None),
            rest => self.peek_name_of(parent, rest),
        }
    }

    fn peek_name_of(&self, parent: &str, rest: &'a [u8]) -> Result<Option<&'a [u8]>> {
        let wanted = |count| if self.is_complete() { Ok(None) } else { Err(self.incomplete(count)) };
        let [_, length, rest @ ..] = rest else { return wanted(rest.len() + 1) };
        let length = usize::from(*length);
        if let Some(name) = rest.get(..length) {
            return Ok(is_subsection_of(parent, name).then(|| as_text(name, self.strictness())));
        }
        let differs = rest.iter().zip(parent.as_bytes()).any(|(got, expected)| got != expected);
        if length <= parent.len() || differs { Ok(None) } else { wanted(2 + length) }
    }

    /// Reads the name and version of a subsection that must start here; `expected` names it in errors.
    ///
    /// # Errors
    /// `Malformed` if none starts here; as for [`name`](Self::name).
    pub(crate) fn subsection_header(&mut self, expected: &str) -> Result<(&'a str, u32)> {
        let offset = self.offset();
        match self.u8()? {
            SUBSECTION => Ok((self.name()?, self.u32()?)),
            mark => {
                let message = format!("subsection {expected} ({SUBSECTION:#04x}) expected, got {mark:#04x}");
                Err(Error::new(ErrorKind::Malformed, message).at(offset))
            }
        }
    }
}
