//! Post-copy: the guest runs here while some of its pages are still at the source, and the destination requests the pages that
//! the guest waits for.

use super::{Destination, FINAL_ANSWER, Package, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::protocol::{DestinationEvent, ping};
use crate::migrate::wire::Timeout;
use crate::stream::{Command, Reply};

impl Destination<'_, '_> {
    /// Executes the source's command of post-copy, and returns the event for the protocol.
    pub(super) fn postcopy(&mut self, command: &Command, timeout: Timeout) -> Result<Option<DestinationEvent>> {
        match command {
            Command::PostcopyAdvise(sizes) if self.stream == Stream::Opened => self.memory.advise(*sizes)?,
            Command::PostcopyRamDiscard(discard) => self.memory.discard(discard)?,
            Command::Packaged(length) if self.package == Package::None && self.stream == Stream::HandshakeComplete => {
                if self.loader.wire.has_page_channel_data() {
                    return Err(malformed("post-copy with page channels"));
                }
                let begins = self.loader.wire.offset();
                self.loader.wire.gather(*length, timeout)?;
                self.package = Package::UpTo(begins.saturating_add(u64::from(*length)));
                if !std::mem::replace(&mut self.stopped, true) {
                    return Ok(Some(DestinationEvent::Stopped));
                }
            }
            Command::PostcopyListen if matches!(self.package, Package::UpTo(_)) && self.answers => {
                self.memory.listen()?
            }
            Command::PostcopyRun if self.package != Package::None && self.memory.listens() => {
                // The package must be empty now; otherwise the next check refuses it.
                self.check_package()?;
                return Ok(Some(DestinationEvent::Run));
            }
            _ if command.is_postcopy() => return Err(malformed("a post-copy command that is not allowed here")),
            _ => return Err(command.unsupported()),
        }
        Ok(None)
    }

    /// Checks that the elements of a package end where the package does.
    pub(super) fn check_package(&mut self) -> Result<()> {
        let Package::UpTo(end) = self.package else { return Ok(()) };
        let offset = self.loader.wire.offset();
        if offset > end {
            return Err(malformed("an element exceeds the end of its package").at(end));
        }
        if offset == end {
            self.package = Package::Loaded;
        }
        Ok(())
    }

    /// Passes the loaded state to the machine. In post-copy the machine may access missing pages.
    pub(super) fn load_machine(&mut self) -> Result<()> {
        if self.package == Package::None {
            return self.machine.loaded();
        }
        let (loader, memory) = (&mut self.loader, self.memory);
        // The package had all devices; their state is handed to the machine from now on.
        loader.accept_only_pages();
        self.machine.loaded_in_postcopy(&mut || loader.serve().inspect_err(|_| memory.give_up()))
    }

    /// As for [`load_machine`](Self::load_machine): runs the guest.
    pub(super) fn resume_machine(&mut self) -> Result<()> {
        match self.package {
            Package::None => self.machine.resume(),
            _ => {
                let (machine, mut recovery) = self.recovery();
                machine.resume_in_postcopy(&mut || recovery.serve())
            }
        }
    }

    /// Reports to the source that the guest is about to run here. A source that does not receive it finds the exclusive resources
    /// taken.
    pub(super) fn confirm_run(&mut self) -> Result<()> {
        let until = Timeout::Until(self.clock.now().saturating_add(FINAL_ANSWER));
        self.answer(Reply::Pong(ping::RUNS), until)
    }

    /// Receives pages up to the end of the stream, or to a ping.
    pub(super) fn take_pages(&mut self) -> Result<DestinationEvent> {
        let event = self.receive(self.silence)?;
        if event == DestinationEvent::Ended {
            self.loader.check_complete()?;
            self.loader.wire.await_urgent(self.silence)?;
            self.memory.end()?;
            if self.protocol.runs() {
                self.machine.arrived();
            }
        }
        Ok(event)
    }
}

fn malformed(message: &str) -> Error {
    Error::new(ErrorKind::Malformed, message)
}
