//! Names on the wire: the length in one byte, then the bytes (`qemu_get_counted_string`, migration/qemu-file.c).

use super::{Reader, Strictness};
use crate::error::Result;

impl<'a> Reader<'a> {
    /// Reads a name of 1 to 255 bytes, preceded by its length.
    ///
    /// # Errors
    /// As for [`take`](Self::take); `Malformed` if the name is empty or not UTF-8.
    pub fn name(&mut self) -> Result<&'a str> {
        let length = self.u8()?;
        let bytes = self.take(usize::from(length))?;
        match str::from_utf8(as_text(bytes, self.strictness())) {
            Ok(text) if !text.is_empty() => Ok(text),
            Ok(_) => Err(self.malformed("the name that ends here is empty")),
            Err(_) => Err(self.malformed("the name that ends here is not UTF-8")),
        }
    }
}

/// The part of a name that is compared: QEMU works with C strings, and ignores everything after a NUL.
pub(crate) fn as_text(bytes: &[u8], strictness: Strictness) -> &[u8] {
    match strictness {
        Strictness::Strict => bytes,
        Strictness::QemuCompatible => bytes.split(|byte| *byte == 0).next().unwrap_or(bytes),
    }
}

/// Appends a name. Registration has checked that a name has at most 255 bytes.
#[inline]
pub(crate) fn put_name(out: &mut Vec<u8>, name: &str) {
    out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(name.as_bytes());
}
