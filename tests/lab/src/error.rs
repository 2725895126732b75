//! Errors of the lab: sentences for the person at the terminal, with the command that mends what is missing.

use std::io;
use std::path::{Path, PathBuf};

/// What went wrong, ready to be printed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine lacks something.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// The thing.
        what: String,
        /// The command that brings it.
        remedy: String,
    },
    /// A file or directory refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// The verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// `Result` with the lab's error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error from a sentence.
    pub fn failed(sentence: impl Into<String>) -> Self {
        Self::Failed(sentence.into())
    }

    /// Something missing, and what brings it.
    pub fn missing(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Missing { what: what.into(), remedy: remedy.into() }
    }
}

/// Names the file in an I/O error.
pub trait FileContext<T> {
    /// `doing` is a verb: "read", "write".
    ///
    /// # Errors
    /// The same, with the verb and the file.
    fn doing(self, doing: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> FileContext<T> for std::result::Result<T, E> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::File { doing, path: path.to_owned(), source: source.into() })
    }
}
