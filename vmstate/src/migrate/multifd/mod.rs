//! Page channels: pages are sent beside the main channel, on connections with a thread each. The library starts no thread: the
//! embedder runs a [`SendWorker`] or [`ReceiveWorker`] on one of its threads, while the migration runs on another.
//!
//! A source creates [`Senders`], connects the main channel first and then the page channels, runs a [`Senders::worker`] on each,
//! and passes the senders to [`source::run`](super::source::run). A destination creates [`Receivers`] when a source has
//! connected, runs a [`Receivers::worker`] on each [accepted page channel](crate::channel::Listener::accept_pages) until
//! [`Receivers::is_over`], and passes the receivers to [`destination::run`](super::destination::run). Both end their workers when
//! they return.

mod receive;
mod send;
pub(crate) mod zstd;

use std::io;
use std::time::Duration;

use super::wire::is_wait;
use crate::codec::PageRun;
use crate::error::{Error, Result};
use crate::ram::multifd::packet::{PacketPages, runs};

pub use crate::ram::multifd::{Compression, Receivers, Senders};
pub use receive::ReceiveWorker;
pub use send::SendWorker;

/// How often a thread that waits for its channel checks whether the migration has ended.
const SLICE: Duration = Duration::from_millis(20);

/// Calls `each` with each run of adjacent pages that are not zero, and with its part of `bytes`.
fn each_run(
    pages: &PacketPages,
    mut bytes: &mut [u8],
    mut each: impl FnMut(PageRun, &mut [u8]) -> Result<()>,
) -> Result<()> {
    for run in runs(pages.block, &pages.normal) {
        let len = usize::try_from(run.len).unwrap_or(usize::MAX);
        let Some((part, behind)) = std::mem::take(&mut bytes).split_at_mut_checked(len) else { break };
        bytes = behind;
        each(run, part)?;
    }
    Ok(())
}

/// True if the channel was merely not ready, or a signal interrupted the call.
fn is_transient(error: &io::Error) -> bool {
    is_wait(error) || error.kind() == io::ErrorKind::Interrupted
}

/// Adds the number of the channel to an error.
fn in_channel(id: u8, error: Error) -> Error {
    Error::new(error.kind(), format!("page channel {id}: {error}")).with_source(error)
}
