//! Encoding and decoding of bytes: big-endian, without framing.
//!
//! [`Writer`] cannot fail; [`Reader`] distinguishes missing bytes from wrong ones, and counts the stream offset.

pub(crate) mod mark;
mod name;
#[cfg(feature = "engine")]
mod outbox;
mod reader;
mod subsection;
mod subsection_versions;
pub(crate) mod writer;

pub(crate) use name::{as_text, put_name};
#[cfg(feature = "engine")]
pub use outbox::{Outbox, PageRun, Piece};
pub use reader::{Limits, Reader, Strictness};
pub(crate) use subsection::{is_subsection_of, put_subsection_header, subsection_header};
pub(crate) use subsection_versions::SubsectionVersions;
pub(crate) use writer::Outcomes;
pub use writer::Writer;
