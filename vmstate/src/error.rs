//! The one public error: what went wrong, in which section and field, at which byte of the stream.
//!
//! Rank 0: imports nothing of the crate.

use std::error::Error as StdError;
use std::fmt;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault an [`Error`] is, and so what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The channel failed: closed, reset, timed out.
    Io,
    /// The bytes end before the value does. A stream decoder fetches more and tries again.
    Incomplete,
    /// The bytes are not what the format allows.
    Malformed,
    /// The bytes are well formed, but from a machine, device or version that this side does not have.
    Incompatible,
    /// A device's own check refused the values.
    Rejected,
    /// The peer reported a failure of its own.
    Peer,
    /// The embedder called the library against its contract.
    Misuse,
    /// The migration was cancelled, or gave up by its own limits.
    Cancelled,
}

/// An error with its place: section, field path, stream offset.
///
/// Its text reads `serial/0 › fcr at 0x1f4e: version 4 is newer than 3`. The text of [`source`](StdError::source)
/// is never repeated in it.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    section: Option<String>,
    /// Innermost step first: each layer on the way out pushes its own.
    path: Vec<Step>,
    offset: Option<u64>,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

enum Step {
    Field(String),
    Element(usize),
}

impl Error {
    /// An error of `kind`; `message` says what was expected, what was got, and what to do.
    #[cold]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            section: None,
            path: Vec::new(),
            offset: None,
            message: message.into(),
            source: None,
        }))
    }

    /// Adds the error that caused this one.
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same place and cause, in the words of who knows more about it.
    pub(crate) fn restated(mut self, message: impl Into<String>) -> Self {
        self.0.message = message.into();
        self
    }

    /// Notes the stream offset in bytes, unless a deeper layer already did.
    pub fn at(mut self, offset: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// Puts `field` in front of the path.
    pub fn in_field(mut self, field: impl Into<String>) -> Self {
        self.0.path.push(Step::Field(field.into()));
        self
    }

    /// Puts element `index` in front of the path; the field that holds it comes next.
    pub fn in_element(mut self, index: usize) -> Self {
        self.0.path.push(Step::Element(index));
        self
    }

    /// Notes the section, unless a deeper layer already did.
    pub fn in_section(mut self, idstr: &str, instance: u32) -> Self {
        self.0.section.get_or_insert_with(|| format!("{idstr}/{instance}"));
        self
    }

    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// True if more bytes could turn this into a success.
    pub fn is_incomplete(&self) -> bool {
        self.0.kind == ErrorKind::Incomplete
    }

    /// Section as `idstr/instance`.
    pub fn section(&self) -> Option<&str> {
        self.0.section.as_deref()
    }

    /// Field path from the section's description inwards, as `channels[1] › count`.
    pub fn path(&self) -> String {
        let mut path = String::new();
        for step in self.0.path.iter().rev() {
            match step {
                Step::Field(name) if path.is_empty() => path.push_str(name),
                Step::Field(name) => path.extend([" › ", name]),
                Step::Element(index) => path.push_str(&format!("[{index}]")),
            }
        }
        path
    }

    /// Offset in bytes from the start of the stream.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The message alone, without place.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut placed = false;
        if let Some(section) = &self.0.section {
            f.write_str(section)?;
            placed = true;
        }
        if !self.0.path.is_empty() {
            if placed {
                f.write_str(" › ")?;
            }
            f.write_str(&self.path())?;
            placed = true;
        }
        if let Some(offset) = self.0.offset {
            if placed {
                f.write_str(" ")?;
            }
            write!(f, "at {offset:#x}")?;
            placed = true;
        }
        if placed {
            f.write_str(": ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl From<std::io::Error> for Error {
    fn from(source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("channel failed: {source}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_section_path_and_offset() {
        let error = Error::new(ErrorKind::Incompatible, "version 4 is newer than 3")
            .at(0x1f4e)
            .at(7)
            .in_field("fcr")
            .in_field("state")
            .in_section("serial", 0);
        assert_eq!(error.to_string(), "serial/0 › state › fcr at 0x1f4e: version 4 is newer than 3");
        assert_eq!(error.path(), "state › fcr");
    }

    #[test]
    fn an_element_is_written_behind_its_field() {
        let error = Error::new(ErrorKind::Malformed, "no").in_field("count").in_element(1).in_field("channels");
        assert_eq!(error.path(), "channels[1] › count");
    }

    #[test]
    fn text_without_place_is_the_message() {
        assert_eq!(Error::new(ErrorKind::Peer, "peer said no").to_string(), "peer said no");
    }
}
