//! The bounded cursor of a load: every read is checked, every error carries the stream offset.

use crate::error::{Error, ErrorKind, Result};

/// How strictly a load checks the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strictness {
    /// Every required section exactly once, exact names, full 32-bit versions, booleans 0 or 1.
    #[default]
    Strict,
    /// What QEMU 10.0 accepts, where that is safe.
    QemuCompatible,
}

/// Limits on the cost of one load, independent of what the peer claims.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes that the fields of one section may allocate in total.
    pub allocation: usize,
}

impl Limits {
    /// Allows at most `allocation` bytes for the fields of one section.
    pub const fn new(allocation: usize) -> Self {
        Self { allocation }
    }
}

impl Default for Limits {
    /// 64 MiB.
    fn default() -> Self {
        Self::new(64 << 20)
    }
}

/// A cursor over the bytes received so far.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    /// Number of bytes that `rest` had at first.
    at_hand: usize,
    /// Stream offset of the first byte.
    base: u64,
    strictness: Strictness,
    allocation_left: usize,
    complete: bool,
}

impl<'a> Reader<'a> {
    /// Creates a reader whose first byte is at stream offset `base`. More bytes may follow later: where a look-ahead runs out of
    /// bytes, the load is [`ErrorKind::Incomplete`].
    pub fn new(bytes: &'a [u8], base: u64, strictness: Strictness, limits: Limits) -> Self {
        let (at_hand, allocation_left) = (bytes.len(), limits.allocation);
        Self { rest: bytes, at_hand, base, strictness, allocation_left, complete: false }
    }

    /// Declares that no bytes follow. A look-ahead for a subsection that runs out of bytes then finds none, so that state can end
    /// where the buffer ends; inside a stream, a section's footer always follows.
    pub fn complete(mut self) -> Self {
        self.complete = true;
        self
    }

    /// A strict, [complete](Self::complete) reader from offset 0, with default limits.
    pub fn strict(bytes: &'a [u8]) -> Self {
        Self::new(bytes, 0, Strictness::Strict, Limits::default()).complete()
    }

    /// True if no bytes follow those received so far.
    #[inline]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The strictness of this load.
    #[inline]
    pub fn strictness(&self) -> Strictness {
        self.strictness
    }

    /// The stream offset of the next byte.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.base.saturating_add(self.consumed() as u64)
    }

    /// Number of bytes consumed since this reader was created.
    #[inline]
    pub fn consumed(&self) -> usize {
        self.at_hand - self.rest.len()
    }

    /// Returns to the position at which [`rest`](Self::rest) was this slice. Charges are not refunded.
    pub(crate) fn go_back(&mut self, rest: &'a [u8]) {
        self.rest = rest;
    }

    /// The bytes not yet consumed.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Consumes the next `count` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] if fewer are left.
    #[inline]
    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        match self.bytes_at_hand(count) {
            Some(taken) => Ok(taken),
            None => Err(self.incomplete(count)),
        }
    }

    /// Consumes the next `count` bytes, if there are that many.
    #[inline]
    pub(crate) fn bytes_at_hand(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    /// Consumes the next `N` bytes as an array.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] if fewer are left.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.chunk() {
            Some(taken) => Ok(*taken),
            None => Err(self.incomplete(N)),
        }
    }

    /// Consumes the next `N` bytes, if there are that many.
    #[inline]
    pub(crate) fn chunk<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(taken)
    }

    /// The next `count` bytes, without consuming them; `None` if fewer are left.
    #[inline]
    pub fn peek(&self, count: usize) -> Option<&'a [u8]> {
        self.rest.get(..count)
    }

    /// Consumes one byte. Errors as for [`take`](Self::take).
    #[inline]
    pub fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Consumes two bytes, big-endian. Errors as for [`take`](Self::take).
    #[inline]
    pub fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Consumes four bytes, big-endian. Errors as for [`take`](Self::take).
    #[inline]
    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Consumes eight bytes, big-endian. Errors as for [`take`](Self::take).
    #[inline]
    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Charges `bytes` to the allocation budget, before anything is allocated on the peer's behalf.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] once the budget is used up.
    #[inline]
    pub fn charge(&mut self, bytes: usize) -> Result<()> {
        match self.allocation_left.checked_sub(bytes) {
            Some(left) => {
                self.allocation_left = left;
                Ok(())
            }
            None => Err(self.malformed(format!(
                "needs {bytes} bytes of memory, {} are left of this section's limit",
                self.allocation_left
            ))),
        }
    }

    /// An error of kind `Malformed` at the current offset.
    #[cold]
    pub fn malformed(&self, message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Malformed, message).at(self.offset())
    }

    /// An error of kind `Incomplete` at the current offset: `wanted` bytes are needed.
    #[cold]
    pub fn incomplete(&self, wanted: usize) -> Error {
        let left = self.rest.len();
        Error::new(ErrorKind::Incomplete, format!("{wanted} bytes expected, {left} left")).at(self.offset())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_big_endian_and_names_the_offset_where_bytes_ran_out() {
        let mut reader = Reader::new(&[1, 2, 3, 4, 5, 6, 7], 0x10, Strictness::Strict, Limits::default());
        assert_eq!(reader.u16().unwrap(), 0x0102);
        assert_eq!(reader.u32().unwrap(), 0x0304_0506);
        let error = reader.u16().unwrap_err();
        assert!(error.is_incomplete());
        assert_eq!(error.to_string(), "at 0x16: 2 bytes expected, 1 left");
        assert_eq!(reader.u8().unwrap(), 7, "a failed take consumes nothing");
    }

    #[test]
    fn budget_is_charged_once_and_then_refuses() {
        let mut reader = Reader::new(&[], 0, Strictness::Strict, Limits { allocation: 10 });
        reader.charge(6).unwrap();
        assert_eq!(reader.charge(5).unwrap_err().kind(), ErrorKind::Malformed);
        reader.charge(4).unwrap();
    }
}
