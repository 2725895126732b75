//! Post-copy over another connection, after one has broken: determines which pages the destination has, and resumes sending the
//! others.

use std::time::Duration;

use super::{Source, unexpected};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::protocol::SourceEvent;
use crate::migrate::wire::Timeout;
use crate::ram::PAGE_SIZE;
use crate::ram::page_set::PageSet;
use crate::ram::received::read_received;
use crate::stream::{Command, Element, Returned};

impl Source<'_, '_> {
    /// Waits for another connection. The error of the previous one is dropped once there is another.
    pub(super) fn reconnect(&mut self) -> SourceEvent {
        let why = self.reason.take().unwrap_or_else(|| Error::new(ErrorKind::Io, "the connection broke"));
        self.publish();
        match self.wire.reconnect(&why) {
            Ok(()) => {
                self.buffer.clear();
                self.answered = None;
                SourceEvent::Done
            }
            Err(_) => {
                self.reason = Some(why);
                SourceEvent::Refused
            }
        }
    }

    /// Requests the bitmap of received pages of each block, makes the other pages pending, and waits for the destination to
    /// resume (`postcopy_do_resume`, migration/migration.c).
    pub(super) fn recover(&mut self, until: Duration) -> Result<()> {
        let timeout = Timeout::Until(until);
        let blocks = self.blocks;
        let lacking = blocks.iter().map(|block| {
            self.send_command(Command::RecvBitmap(block.name.clone()), timeout)?;
            match self.next_of_recovery(timeout)? {
                Returned::Bitmap(name) if name == block.name => {}
                other => return Err(unexpected_message(other)),
            }
            self.wire.decode(timeout, |input| read_received(input, block.len / PAGE_SIZE))
        });
        let lacking =
            lacking.map(|received| received.map(|pages| pages.complement())).collect::<Result<Vec<PageSet>>>()?;
        self.connect_urgent()?;
        self.send_command(Command::PostcopyResume, timeout)?;
        match self.next_of_recovery(timeout)? {
            Returned::ResumeAck => {}
            other => return Err(unexpected_message(other)),
        }
        self.pages.resume(lacking);
        self.saver.resume();
        self.named = None;
        Ok(())
    }

    fn send_command(&mut self, command: Command, timeout: Timeout) -> Result<()> {
        Element::Command(command).write(self.buffer.bytes_mut());
        let sent = self.wire.send(&mut self.buffer, timeout);
        self.buffer.clear();
        sent
    }

    /// Reads the next message. Earlier requests for pages will be repeated.
    fn next_of_recovery(&mut self, timeout: Timeout) -> Result<Returned> {
        loop {
            match self.wire.decode(timeout, Returned::read)? {
                Returned::Pages(_) => {}
                other => return Ok(other),
            }
        }
    }
}

pub(super) fn unexpected_message(returned: Returned) -> Error {
    match returned {
        Returned::Reply(reply) => unexpected(reply),
        other => Error::new(
            ErrorKind::Malformed,
            format!("the destination sent {other:?}, which the source has not requested"),
        ),
    }
}
