//! A position in the stream: every failed read reports the offset, the expectation and the bytes found.

use std::fmt;

/// The stream violates the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Offset in bytes from the start of the stream.
    pub offset: usize,
    /// The expectation of the format.
    pub expected: String,
    /// The value found.
    pub got: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:#x}: expected {}, got {}", self.offset, self.expected, self.got)
    }
}

impl std::error::Error for ParseError {}

pub(super) type Result<T> = std::result::Result<T, ParseError>;

/// An error at `offset`.
pub(super) fn error<T>(offset: usize, expected: impl Into<String>, got: impl fmt::Display) -> Result<T> {
    Err(ParseError { offset, expected: expected.into(), got: got.to_string() })
}

/// Reads consecutive big-endian values.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        if len > left {
            return error(self.at, format!("{len} bytes of {what}"), format!("{left} bytes to the end"));
        }
        self.at += len;
        Ok(&self.bytes[self.at - len..self.at])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        self.take(N, what).map(|bytes| bytes.try_into().expect("take returns as many bytes as requested"))
    }

    pub(super) fn u8(&mut self, what: &str) -> Result<u8> {
        self.array(what).map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self, what: &str) -> Result<u16> {
        self.array(what).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_be_bytes)
    }

    /// A name of known length.
    pub(super) fn text(&mut self, len: usize, what: &str) -> Result<String> {
        let at = self.at;
        let bytes = self.take(len, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_string()),
            Err(_) => error(at, format!("{what} in UTF-8"), bytes.escape_ascii()),
        }
    }

    /// A name preceded by its length in one byte.
    pub(super) fn counted_text(&mut self, what: &str) -> Result<String> {
        let len = self.u8(&format!("length of {what}"))?;
        self.text(len.into(), what)
    }

    /// A value that can only be `wanted`.
    pub(super) fn exactly<T: PartialEq + fmt::Debug>(
        &mut self,
        read: fn(&mut Self, &str) -> Result<T>,
        wanted: &T,
        what: &str,
    ) -> Result<()> {
        let at = self.at;
        let got = read(self, what)?;
        if got == *wanted { Ok(()) } else { error(at, format!("{what} {wanted:?}"), format!("{got:?}")) }
    }
}
