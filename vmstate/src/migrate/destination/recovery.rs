//! Post-copy over another connection, after one has broken: the source learns which pages have arrived, and sends the others.

use std::time::Duration;

use super::{Destination, event_of, publish_phase};
use crate::channel::Clock;
use crate::codec::Outbox;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::Machine;
use crate::migrate::control::Control;
use crate::migrate::load::Loader;
use crate::migrate::postcopy_ram::PostcopyRam;
use crate::migrate::protocol::{DestinationAction, DestinationEvent, DestinationProtocol, Timing};
use crate::migrate::wire::Timeout;
use crate::ram::received::put_received;
use crate::stream::{Command, Element, Returned};

/// The parts of a destination that are used while the machine takes over.
pub(super) struct Recovery<'r, 'a, 's> {
    protocol: &'r mut DestinationProtocol,
    loader: &'r mut Loader<'a, 's>,
    memory: &'a PostcopyRam<'a>,
    clock: &'a dyn Clock,
    control: &'a Control,
    span: &'r tracing::Span,
    timing: &'r Timing,
    /// The first error.
    reason: &'r mut Option<Error>,
}

impl<'a, 's> Destination<'a, 's> {
    /// The machine, and the parts that are used together with it.
    pub(super) fn recovery(&mut self) -> (&mut dyn Machine, Recovery<'_, 'a, 's>) {
        let recovery = Recovery {
            protocol: &mut self.protocol,
            loader: &mut self.loader,
            memory: self.memory,
            clock: self.clock,
            control: self.control,
            span: &self.span,
            timing: &self.timing,
            reason: &mut self.reason,
        };
        (self.machine, recovery)
    }
}

impl Recovery<'_, '_, '_> {
    /// As for [`Loader::serve`], while the machine starts the guest. A broken connection is replaced, which may take any time.
    pub(super) fn serve(&mut self) -> Result<()> {
        let Err(error) = self.loader.serve() else { return Ok(()) };
        let mut event = self.lost(error);
        while event != DestinationEvent::Refused {
            let before = self.protocol.phase();
            let action = self.protocol.handle(event, self.clock.now(), self.timing);
            let now = self.protocol.phase();
            if now != before {
                publish_phase(now, self.span, self.control);
            }
            event = match action {
                DestinationAction::Reconnect => self.reconnect(),
                DestinationAction::Recover(until) => {
                    self.recover(until).map_or_else(|error| self.lost(error), |()| DestinationEvent::Done)
                }
                DestinationAction::Resume => return Ok(()),
                _ => DestinationEvent::Refused,
            };
        }
        Err(self.reason.take().unwrap_or_else(broken))
    }

    /// Keeps the first error of a connection, and returns the event for the protocol.
    fn lost(&mut self, error: Error) -> DestinationEvent {
        let event = event_of(&error);
        self.reason.get_or_insert(error);
        event
    }

    /// Waits for another connection. The error of the previous one is dropped once there is another.
    pub(super) fn reconnect(&mut self) -> DestinationEvent {
        let why = self.reason.take().unwrap_or_else(broken);
        match self.loader.wire.reconnect(&why) {
            Ok(()) => DestinationEvent::Done,
            Err(_) => {
                *self.reason = Some(why);
                DestinationEvent::Refused
            }
        }
    }

    /// Sends the bitmaps of received pages, until the source resumes (`loadvm_postcopy_handle_resume`, migration/savevm.c).
    pub(super) fn recover(&mut self, until: Duration) -> Result<()> {
        let timeout = Timeout::Until(until);
        loop {
            let offset = self.loader.wire.offset();
            let mut answer = Outbox::new();
            match self.loader.wire.decode(timeout, |input| Element::read(input).map(Element::into_owned))? {
                Element::Command(Command::RecvBitmap(block)) => {
                    let received = self.memory.received(&block).map_err(|error| error.at(offset))?;
                    Returned::Bitmap(block).write(answer.bytes_mut());
                    put_received(&received, answer.bytes_mut());
                    self.loader.wire.send(&mut answer, timeout)?;
                }
                Element::Command(Command::PostcopyResume) => {
                    Returned::ResumeAck.write(answer.bytes_mut());
                    self.loader.wire.send(&mut answer, timeout)?;
                    self.loader.resume();
                    return self.loader.wire.ask_again();
                }
                _ => {
                    let message = "post-copy over another connection begins with something else than a request for received pages";
                    return Err(Error::new(ErrorKind::Malformed, message).at(offset));
                }
            }
        }
    }
}

fn broken() -> Error {
    Error::new(ErrorKind::Io, "the connection broke")
}
