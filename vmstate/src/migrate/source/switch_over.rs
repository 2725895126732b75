//! The switch-over and the commit: the guest is paused, and handed over as a whole or not at all.

use std::time::Duration;

use super::Source;
use crate::error::{Error, Result};
use crate::migrate::Peer;
use crate::migrate::forecast::Measures;
use crate::migrate::protocol::ping;
use crate::migrate::save::{SendPhase, Which};
use crate::migrate::wire::Timeout;
use crate::ram::{NORMAL_RECORD, PageCount};
use crate::stream::{Command, Element};

/// How often a machine that may not switch over yet is asked again.
const ASK: Duration = Duration::from_millis(20);
/// How often a source sends something while its machine has to wait: before the destination takes the silence for a failure.
const KEEP_UP: Duration = Duration::from_secs(10);

impl Source<'_, '_> {
    /// Waits until the machine may switch over.
    pub(super) fn await_machine(&mut self) -> Result<()> {
        let mut heard = self.clock.now();
        while !self.machine.may_switch_over()? {
            if let Err(error) = self.keep_up(&mut heard) {
                return Err(match self.machine.resume() {
                    Ok(()) => error,
                    Err(more) => Error::new(error.kind(), format!("{error}; and the guest could not be resumed here"))
                        .with_source(more),
                });
            }
        }
        Ok(())
    }

    fn keep_up(&mut self, heard: &mut Duration) -> Result<()> {
        self.control.check()?;
        let now = self.clock.now();
        if now.saturating_sub(*heard) >= KEEP_UP {
            *heard = now;
            self.probe(now, PageCount::default(), Measures::Nothing)?;
        }
        self.read_replies_until(now.saturating_add(ASK))
    }

    pub(super) fn pause(&mut self) -> Result<()> {
        self.control.check()?;
        self.throttle(0);
        self.mark = self.clock.now();
        self.machine.pause(self.pause_budget)?;
        self.downtime.pause = self.lap();
        Ok(())
    }

    /// Sends the last pages and the devices, and asks whether the destination has everything.
    pub(super) fn send_rest(&mut self, until: Duration) -> Result<()> {
        let until = Timeout::Until(until);
        self.sync(true)?;
        self.downtime.sync = self.lap();
        let has_page_channels = self.options.page_channels.is_some();
        if !has_page_channels {
            self.put_switchover_start();
        }
        let chunk = self.longest_chunk;
        while !self.saver.iterate(&mut self.buffer, chunk, Which::All)? {
            self.flush(until)?;
            self.await_sent(chunk / NORMAL_RECORD, until)?;
        }
        // A reader of SWITCHOVER_START, or of a section's end, can then rely on all pages having been sent.
        if has_page_channels {
            self.flush(until)?;
            self.await_synced(until)?;
            self.put_switchover_start();
        }
        self.saver.complete(&mut self.buffer, Which::All)?;
        self.flush(until)?;
        self.downtime.pages = self.lap();
        self.saved.extend(self.saver.put_devices(self.buffer.bytes_mut(), (self.peer, SendPhase::Last))?);
        Element::Command(Command::Ping(ping::READY)).write(self.buffer.bytes_mut());
        self.flush(until)?;
        self.downtime.devices = self.lap();
        // Prepared now, while the destination loads; sent with the end of the stream.
        Element::Eof.write(self.buffer.bytes_mut());
        // QEMU runs no guest before it has read all of that (`qemu_loadvm_state`, migration/savevm.c). A destination of this
        // library needs none of it, and gets it once the guest runs.
        if self.peer == Peer::Qemu {
            let described = self.saver.describe(&self.options.machine_type, &self.saved)?;
            described.write(self.buffer.bytes_mut());
        }
        Ok(())
    }

    /// QEMU uses it only with VFIO devices, and does not support it before 8.1.
    fn put_switchover_start(&mut self) {
        if self.peer == Peer::Vmstate {
            Element::Command(Command::SwitchoverStart).write(self.buffer.bytes_mut());
        }
    }

    /// Refuses cancels from now on: the destination has everything.
    pub(super) fn refuse_cancels(&mut self) -> Result<()> {
        self.downtime.confirm = self.lap();
        self.control.commit()
    }

    pub(super) fn lap(&mut self) -> Duration {
        let now = self.clock.now();
        now.saturating_sub(std::mem::replace(&mut self.mark, now))
    }
}
