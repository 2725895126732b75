//! The switch-over and the commit: the guest stands still, and goes over whole or not at all.

use std::time::Duration;

use super::{CHUNK, READY, Source, unexpected};
use crate::error::Result;
use crate::migrate::phase::SourcePhase;
use crate::migrate::report::Downtime;
use crate::migrate::save::{self, Turn};
use crate::stream::{Command, Element, Reply};

impl Source<'_, '_> {
    /// Pauses the guest, sends the rest, and waits until the destination has all of it.
    pub(super) fn switch_over(&mut self) -> Result<()> {
        self.enter(SourcePhase::SwitchOver);
        self.control.check()?;
        self.mark = self.clock.now();
        self.machine.pause()?;
        self.paused = true;
        let mut downtime = Downtime { pause: self.lap(), ..Downtime::default() };
        self.ram.sync()?;
        downtime.sync = self.lap();
        Element::Command(Command::SwitchoverStart).write(&mut self.buffer);
        while !save::put_ram_part(&mut self.buffer, &mut self.ram, CHUNK)? {
            self.flush()?;
        }
        save::put_ram_end(&mut self.buffer, &mut self.ram)?;
        self.flush()?;
        downtime.pages = self.lap();
        save::put_devices(&mut self.buffer, self.sections, Turn::Last, &mut self.described)?;
        Element::Command(Command::Ping(READY)).write(&mut self.buffer);
        self.flush()?;
        downtime.devices = self.lap();
        // Written now, while the destination loads; sent with the end of the stream.
        Element::Eof.write(&mut self.buffer);
        self.described.write(&mut self.buffer);
        self.await_pong(READY)?;
        downtime.confirm = self.lap();
        self.downtime = Some(downtime);
        Ok(())
    }

    /// Gives the guest away. The buffer holds the end of the stream.
    pub(super) fn commit(&mut self) -> Result<()> {
        self.control.commit()?;
        self.machine.release()?;
        self.enter(SourcePhase::Commit);
        let sent = self.wire.send(&self.buffer);
        // Even if not all of it could be sent: the end of the stream is its first byte.
        match self.await_reply() {
            Ok(Reply::Shut(0)) => {}
            Ok(reply) => return Err(unexpected(reply)),
            Err(error) => return Err(sent.err().unwrap_or(error)),
        }
        let commit = self.lap();
        if let Some(downtime) = &mut self.downtime {
            downtime.commit = commit;
        }
        Ok(())
    }

    fn lap(&mut self) -> Duration {
        let now = self.clock.now();
        now.saturating_sub(std::mem::replace(&mut self.mark, now))
    }
}
