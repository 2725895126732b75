//! Errors of the lab: sentences for the person at the terminal, with the command that installs what is missing.

use std::io;
use std::path::{Path, PathBuf};

/// An error of the lab; its text is complete as printed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine lacks a program, file or right.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// What is missing.
        what: String,
        /// The command that installs it.
        remedy: String,
    },
    /// An operation on a file or directory failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// The operation, as a verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// `Result` with the lab's error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with this text.
    pub fn failed(sentence: impl Into<String>) -> Self {
        Self::Failed(sentence.into())
    }

    /// An error that names what is missing, and the command that installs it.
    pub fn missing(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Missing { what: what.into(), remedy: remedy.into() }
    }
}

/// Adds the file's path to an I/O error.
pub trait FileContext<T> {
    /// Adds `doing`, a verb as "read" or "write", and the file's path to the error.
    ///
    /// # Errors
    /// The I/O error, with the verb and the file.
    fn doing(self, doing: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> FileContext<T> for std::result::Result<T, E> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::File { doing, path: path.to_owned(), source: source.into() })
    }
}
