//! The one public error type: the fault, its section and field, and its offset in the stream.
//!
//! Rank 0: imports nothing of the crate.

use std::error::Error as StdError;
use std::fmt::{self, Write as _};

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of an [`Error`], which decides what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The channel failed: closed, reset, timed out.
    Io,
    /// The bytes end before the value does. A stream decoder fetches more bytes and retries.
    Incomplete,
    /// The bytes violate the format.
    Malformed,
    /// The bytes are well formed, but come from a machine, device or version that this side does not have.
    Incompatible,
    /// A device's own check refused the values.
    Rejected,
    /// The peer reported a failure of its own.
    Peer,
    /// The embedder violated the library's contract.
    Misuse,
    /// The migration was cancelled, or stopped because it exceeded its limits.
    Cancelled,
}

/// An error with its place: section, field path, stream offset.
///
/// Its text reads `serial/0 › fcr at 0x1f4e: version 4 is newer than 3`. The text of [`source`](StdError::source) is never
/// repeated in it. Names and texts that a peer supplied are escaped by [`Printable`]; [`section`](Self::section),
/// [`path`](Self::path) and [`message`](Self::message) return them unescaped.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    section: Option<String>,
    /// Innermost step first: each outer layer pushes its own step.
    path: Vec<PathStep>,
    offset: Option<u64>,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

enum PathStep {
    Field(String),
    Element(usize),
}

impl Error {
    /// An error of `kind`; `message` states what was expected, what was found, and what to do.
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

    /// Replaces the message by a more specific one from a caller; place and cause stay.
    pub(crate) fn restated(mut self, message: impl Into<String>) -> Self {
        self.0.message = message.into();
        self
    }

    /// Sets the stream offset in bytes, unless a deeper layer has set it.
    pub fn at(mut self, offset: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// Puts `field` in front of the path.
    pub fn in_field(mut self, field: impl Into<String>) -> Self {
        self.0.path.push(PathStep::Field(field.into()));
        self
    }

    /// Puts element `index` in front of the path; the caller then adds the field that holds the element.
    pub fn in_element(mut self, index: usize) -> Self {
        self.0.path.push(PathStep::Element(index));
        self
    }

    /// Sets the section, unless a deeper layer has set it.
    pub fn in_section(mut self, idstr: &str, instance: u32) -> Self {
        self.0.section.get_or_insert_with(|| format!("{idstr}/{instance}"));
        self
    }

    /// The cause of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// True if more bytes could turn this into a success.
    pub fn is_incomplete(&self) -> bool {
        self.0.kind == ErrorKind::Incomplete
    }

    /// The section, as `idstr/instance`.
    pub fn section(&self) -> Option<&str> {
        self.0.section.as_deref()
    }

    /// Field path from the section's description inwards, as `channels[1] › count`.
    pub fn path(&self) -> String {
        let mut path = String::new();
        for step in self.0.path.iter().rev() {
            match step {
                PathStep::Field(name) if path.is_empty() => path.push_str(name),
                PathStep::Field(name) => path.extend([" › ", name]),
                PathStep::Element(index) => path.push_str(&format!("[{index}]")),
            }
        }
        path
    }

    /// Offset in bytes from the start of the stream.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The message alone, without the place.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

/// Text that a peer or a file may have supplied, as one line without terminal control: control and format characters, line
/// separators and lone combining marks are escaped, as `\n` or `\u{202e}`. Printable characters stay, backslashes included, so
/// nothing is escaped twice.
#[derive(Clone, Copy, Debug)]
pub struct Printable<T>(pub T);

impl<T: fmt::Display> fmt::Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

/// A writer that escapes its input before passing it on to the formatter.
struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| {
            if is_printable(c) { self.0.write_char(c) } else { write!(self.0, "{}", c.escape_debug()) }
        })
    }
}

fn is_printable(c: char) -> bool {
    // `escape_debug` also escapes quotes and backslashes.
    matches!(c, '\'' | '"' | '\\') || c.escape_debug().eq([c])
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(&mut Escaping(f))
    }
}

impl Error {
    fn write(&self, f: &mut impl fmt::Write) -> fmt::Result {
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
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        // Only a channel to a file fails in this way.
        let remedy = if matches!(source.kind(), StorageFull | QuotaExceeded) {
            "; make room there, or name a file on another file system"
        } else {
            ""
        };
        Self::new(ErrorKind::Io, format!("channel failed: {source}{remedy}"))
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
    fn a_full_file_system_comes_with_a_remedy() {
        let text = |errno| Error::from(std::io::Error::from_raw_os_error(errno)).to_string();
        let remedy = "; make room there, or name a file on another file system";
        assert_eq!(text(28), format!("channel failed: No space left on device (os error 28){remedy}"));
        assert_eq!(text(122), format!("channel failed: Disk quota exceeded (os error 122){remedy}"));
        assert_eq!(text(104), "channel failed: Connection reset by peer (os error 104)");
    }

    #[test]
    fn an_element_is_written_after_its_field() {
        let error = Error::new(ErrorKind::Malformed, "no").in_field("count").in_element(1).in_field("channels");
        assert_eq!(error.path(), "channels[1] › count");
    }

    #[test]
    fn text_without_place_is_the_message() {
        assert_eq!(Error::new(ErrorKind::Peer, "peer said no").to_string(), "peer said no");
    }

    /// Characters that a terminal or a browser interprets, by the general categories of Unicode 16 (DerivedGeneralCategory.txt):
    /// Cc, Cf, Zl and Zp, first and last of each range.
    const STEERING: &[(u32, u32)] = &[
        (0x00, 0x1f),
        (0x7f, 0x9f),
        (0xad, 0xad),
        (0x600, 0x605),
        (0x61c, 0x61c),
        (0x6dd, 0x6dd),
        (0x70f, 0x70f),
        (0x890, 0x891),
        (0x8e2, 0x8e2),
        (0x180e, 0x180e),
        (0x200b, 0x200f),
        (0x2028, 0x202e),
        (0x2060, 0x2064),
        (0x2066, 0x206f),
        (0xfeff, 0xfeff),
        (0xfff9, 0xfffb),
        (0x110bd, 0x110bd),
        (0x110cd, 0x110cd),
        (0x13430, 0x1343f),
        (0x1bca0, 0x1bca3),
        (0x1d173, 0x1d17a),
        (0xe0001, 0xe0001),
        (0xe0020, 0xe007f),
    ];

    fn steers(c: char) -> bool {
        STEERING.iter().any(|&(first, last)| (first..=last).contains(&u32::from(c)))
    }

    #[test]
    fn characters_that_control_a_terminal_are_escaped() {
        for c in STEERING.iter().flat_map(|&(first, last)| first..=last).filter_map(char::from_u32) {
            let shown = Printable(format!("a{c}b")).to_string();
            assert!(!shown.contains(steers) && shown.starts_with("a\\") && shown.ends_with('b'), "{c:?}: {shown:?}");
        }
        assert_eq!(Printable("\x1b[2J\r\n\u{9b}m\u{202e}").to_string(), r"\u{1b}[2J\r\n\u{9b}m\u{202e}");
    }

    #[test]
    fn printable_characters_stay_and_nothing_is_escaped_twice() {
        let plain = r#"serial/0 › "state" at C:\n'é漢'–…"#;
        assert_eq!(Printable(plain).to_string(), plain);
        let once = Printable("\x1b\u{2066}").to_string();
        assert_eq!(Printable(&once).to_string(), once);
    }

    #[test]
    fn each_part_of_an_error_is_one_line_of_printable_text() {
        let hostile = "a\n\x1b[2J\u{202e}\u{9b}b";
        let error = Error::new(ErrorKind::Malformed, hostile).in_field(hostile).in_section(hostile, 0);
        for text in [error.to_string(), format!("{error:?}")] {
            assert!(!text.contains(steers), "{text:?}");
            assert_eq!(text.matches(r"a\n\u{1b}[2J\u{202e}\u{9b}b").count(), 3, "{text}");
        }
    }
}
