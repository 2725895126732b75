//! Migratable virtual-machine device state: a derive macro, QEMU's stream format, and a live-migration engine.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub mod channel;
pub mod codec;
pub mod compat;
pub mod dump;
pub mod error;
pub mod inspect;
pub mod migrate;
pub mod ownership;
pub mod ram;
pub mod schema;
pub mod section;
pub mod state;
pub mod stream;
pub mod testing;

pub use error::{Error, ErrorKind, Result};
pub use section::Section;
pub use state::{SectionRules, Temporary, Timer, Unused, VmState, Wire};
pub use vmstate_derive::VmState;

/// What derived code names. Not for anyone else: it changes with the derive.
#[doc(hidden)]
pub mod __private {
    pub use crate::section::Section;
    pub use crate::state::support::*;
}

/// The prose of README and `docs/`, whose examples run as tests.
#[cfg(doctest)]
mod docs {
    #[doc = include_str!("../../README.md")]
    mod readme {}
    #[doc = include_str!("../../docs/derive.md")]
    mod derive {}
    #[doc = include_str!("../../docs/compatibility.md")]
    mod compatibility {}
}
