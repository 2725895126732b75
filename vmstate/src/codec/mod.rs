//! Bytes in and out: big-endian, no framing of its own.
//!
//! [`Writer`] cannot fail; [`Reader`] tells "not enough bytes yet" from "wrong bytes", and knows the stream offset.

pub(crate) mod mark;
mod name;
mod reader;
mod subsections;
mod writer;

pub(crate) use name::{as_text, put_name};
pub use reader::{Limits, Reader, Strictness};
pub(crate) use subsections::SubsectionVersions;
pub use writer::{Outcomes, Writer};
