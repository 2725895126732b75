//! Work that remains once the destination runs the guest. The guest does not wait for it, and no failure of it may fail the
//! migration.

use std::time::Duration;

use super::Source;
use crate::codec::Outbox;
use crate::migrate::wire::Timeout;
use crate::migrate::{Peer, SectionReport, Takeover};
use crate::stream::read_times;

/// How long the destination may take for all of it.
const AFTERWARDS: Duration = Duration::from_secs(1);

impl Source<'_, '_> {
    /// Sends the self-description to a destination that already runs the guest. It is for people and tools that read the stream.
    pub(super) fn send_description(&mut self) {
        if self.peer == Peer::Qemu {
            return;
        }
        let until = Timeout::Until(self.clock.now().saturating_add(AFTERWARDS));
        let mut out = Outbox::new();
        let sent = self.saver.describe(&self.options.machine_type, &self.saved).and_then(|described| {
            described.write(out.bytes_mut());
            self.wire.send(&mut out, until)
        });
        if let Err(error) = sent {
            tracing::debug!("no self-description: {error}");
        }
    }

    /// Receives from a destination of this library how long it took to load the `sections`, in their order. A destination of an
    /// older release closes the connection instead.
    pub(super) fn receive_times(&mut self, sections: &mut [SectionReport]) {
        if self.peer == Peer::Qemu {
            return;
        }
        let until = Timeout::Until(self.clock.now().saturating_add(AFTERWARDS));
        match self.wire.decode(until, read_times).as_deref() {
            Ok([machine, resume, loaded @ ..]) if loaded.len() == sections.len() => {
                for (section, time) in sections.iter_mut().zip(loaded) {
                    section.loaded = Some(*time);
                }
                let takeover = Takeover { machine: *machine, resume: *resume };
                self.control.publish(|progress| progress.takeover = Some(takeover));
            }
            Ok(times) => tracing::debug!("the destination sent {} times for {} sections", times.len(), sections.len()),
            Err(error) => tracing::debug!("the destination did not send how long loading the sections took: {error}"),
        }
    }
}
