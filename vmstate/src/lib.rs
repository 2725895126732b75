//! Migratable virtual-machine device state: a derive macro, QEMU's stream format, and a live-migration engine.
#![forbid(unsafe_code)]

pub mod channel;
pub mod codec;
pub mod error;
pub mod migrate;
pub mod ram;
pub mod schema;
pub mod section;
pub mod state;
pub mod stream;

pub use error::{Error, ErrorKind, Result};
pub use section::Section;
pub use state::{VmState, Wire};
