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

use std::io;
use std::time::Duration;

use super::wire::is_wait;
use crate::codec::PageRun;
use crate::error::{Error, Result};
use crate::ram::multifd::packet::{PacketPages, runs};

pub use crate::ram::multifd::{Compression, Receivers, Senders};
pub use receive::ReceiveWorker;
pub use send::SendWorker;

/// How often a thread that waits for its channel looks whether the migration is over.
const SLICE: Duration = Duration::from_millis(20);

/// Gives each run of the pages that are not zero to `each`, with its part of `bytes`, where these pages follow each other.
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

/// True if the channel was merely not ready, or a signal came.
fn is_transient(error: &io::Error) -> bool {
    is_wait(error) || error.kind() == io::ErrorKind::Interrupted
}

/// Where it went wrong.
fn in_channel(id: u8, error: Error) -> Error {
    Error::new(error.kind(), format!("page channel {id}: {error}")).with_source(error)
}
