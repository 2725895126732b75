//! Replies of the destination: the awaited one, a refusal with its reason, and requests for pages in between.

use std::time::Duration;

use super::{REASON_TIMEOUT, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::wire::{Timeout, is_timeout};
use crate::stream::{Reply, Returned, read_reason};

impl Source<'_, '_> {
    /// The destination's refusal, if it sent one before the connection broke; else `broken`.
    pub(super) fn refusal_or(&mut self, broken: Error) -> Error {
        if is_timeout(&broken) || broken.kind() != ErrorKind::Io {
            return broken;
        }
        let timeout = Timeout::Until(self.clock.now().saturating_add(REASON_TIMEOUT));
        match self.await_reply(timeout) {
            Err(refused) if refused.kind() == ErrorKind::Peer => refused,
            _ => broken,
        }
    }

    pub(super) fn await_reply(&mut self, timeout: Timeout) -> Result<Reply> {
        let reply = self.next_reply(timeout)?;
        let until = self.clock.now().saturating_add(REASON_TIMEOUT);
        self.taken(reply, if let Timeout::Until(moment) = timeout { moment.min(until) } else { until })
    }

    /// Returns the reply, or the error of a refusal. A destination that sends a reason does so at once; it has until `until`.
    pub(super) fn taken(&mut self, reply: Reply, until: Duration) -> Result<Reply> {
        let Reply::Shut(status @ 1..) = reply else { return Ok(reply) };
        let message = match self.wire.decode(Timeout::Until(until), read_reason) {
            Ok(reason) => format!("the destination refused the guest: {reason}"),
            Err(_) => format!("the destination refused the guest (status {status}): its own log says why"),
        };
        Err(Error::new(ErrorKind::Peer, message))
    }

    /// Reads the next reply. A destination whose guest may already run requests pages in between, which are sent.
    fn next_reply(&mut self, timeout: Timeout) -> Result<Reply> {
        if !self.is_postcopy {
            return self.wire.decode(timeout, Reply::read);
        }
        loop {
            match self.wire.decode(timeout, Returned::read)? {
                Returned::Reply(reply) => return Ok(reply),
                Returned::Pages(request) => {
                    self.note(&request)?;
                    self.send_asked(timeout)?;
                }
                other => return Err(super::recovery::unexpected_message(other)),
            }
        }
    }
}

pub(super) fn unexpected(reply: Reply) -> Error {
    Error::new(ErrorKind::Malformed, format!("the destination answered {reply:?}, which the source has not requested"))
}
