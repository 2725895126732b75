//! Page channels: pages go beside the main channel, on connections with a thread each. The library starts no thread: a
//! [`SendWorker`] or [`ReceiveWorker`] is run by the embedder on one of his, while the migration runs on another.
//!
//! A source makes [`Senders`], connects the main channel first and then as many channels, runs a [`Senders::worker`] on each and
//! gives the senders to [`source::run`](super::source::run). A destination makes [`Receivers`] when a source has come, runs a
//! [`Receivers::worker`] on each [page channel that comes](crate::channel::Listener::accept_pages) until
//! [`Receivers::is_over`], and gives the receivers to [`destination::run`](super::destination::run). Both end their workers when
//! they return.

mod receive;
mod send;
pub(crate) mod zstd;

use std::time::Duration;

pub use crate::ram::multifd::{Compression, Receivers, Senders};
pub use receive::ReceiveWorker;
pub use send::SendWorker;

/// How often a thread that waits for its channel looks whether the migration is over.
const SLICE: Duration = Duration::from_millis(20);

/// Bytes of a page.
const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == crate::ram::PAGE_SIZE, "one size of a page");
