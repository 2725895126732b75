//! The grammar of the stream, identical to QEMU's version 3: header, configuration, sections, commands, end, self-description,
//! and the answers on the return path. `docs/wire-format-stream.md` has the tables.
//!
//! ```text
//! header configuration ( command | START | PART | END | FULL )* EOF [ self-description ]
//! ```
//!
//! This module only encodes and decodes; [`migrate`](crate::migrate) decides who sends what and when.

mod command;
mod configuration;
mod description;
mod element;
mod postcopy;
mod reply;

pub use command::Command;
pub use configuration::{Configuration, Terms, put_configuration};
pub(crate) use configuration::{IGNORE_SHARED, MAPPED_RAM};
pub use description::{MAX_DESCRIPTION, SelfDescription, read_description_length};
pub use element::{Element, SectionHeader, put_footer, put_header, read_footer, read_header};
pub use postcopy::{Discard, PageRequest, PageSizes, Stretch};
pub use reply::{Reply, Returned, put_reason, put_times, read_reason, read_times};
