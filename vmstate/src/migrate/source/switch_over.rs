//! The switch-over and the commit: the guest stands still, and goes over whole or not at all.

use std::time::Duration;

use super::Source;
use crate::error::Result;
use crate::migrate::Peer;
use crate::migrate::protocol::ping;
use crate::migrate::save::Turn;
use crate::migrate::wire::Patience;
use crate::stream::{Command, Element};

impl Source<'_, '_> {
    pub(super) fn pause(&mut self) -> Result<()> {
        self.control.check()?;
        self.throttle(0);
        self.mark = self.clock.now();
        self.machine.pause(self.pause_budget)?;
        self.downtime.pause = self.lap();
        Ok(())
    }

    /// Sends the last pages and the devices, and asks whether the destination has all of it.
    pub(super) fn send_rest(&mut self, until: Duration) -> Result<()> {
        let until = Patience::Until(until);
        self.sync(true)?;
        self.downtime.sync = self.lap();
        // QEMU has no use for it but with VFIO devices, and does not know it before 8.1.
        if self.peer == Peer::Vmstate {
            Element::Command(Command::SwitchoverStart).write(self.buffer.bytes_mut());
        }
        let chunk = self.longest_chunk;
        while !self.saver.iterate(&mut self.buffer, chunk)? {
            self.await_pages(until)?;
            self.flush(until)?;
        }
        self.await_pages(until)?;
        self.saver.complete(&mut self.buffer)?;
        self.await_pages(until)?;
        self.flush(until)?;
        self.downtime.pages = self.lap();
        self.saver.put_devices(self.buffer.bytes_mut(), (self.peer, Turn::Last), &mut self.described)?;
        Element::Command(Command::Ping(ping::READY)).write(self.buffer.bytes_mut());
        self.flush(until)?;
        self.downtime.devices = self.lap();
        // Written now, while the destination loads; sent with the end of the stream.
        Element::Eof.write(self.buffer.bytes_mut());
        self.described.write(self.buffer.bytes_mut());
        Ok(())
    }

    /// The destination has all of it: nobody may cancel any more.
    pub(super) fn close_door(&mut self) -> Result<()> {
        self.downtime.confirm = self.lap();
        self.control.commit()
    }

    pub(super) fn lap(&mut self) -> Duration {
        let now = self.clock.now();
        now.saturating_sub(std::mem::replace(&mut self.mark, now))
    }
}
