//! The machine as the migration engine sees it: the driver changes the run state, the ownership of disks says who may run.

use std::sync::{Arc, PoisonError, mpsc};
use std::time::{Duration, Instant};

use vmstate::ErrorKind;
use vmstate::migrate::{Claim, Machine};
use vmstate::ownership::{Ownership, OwnershipError};

use super::introduction::Introduction;
use crate::devices::virtio::blk::Image;
use crate::error::chain;
use crate::migration::ownership::{SharedTickets, Tickets};
use crate::vm::backends::Backends;
use crate::vm::handle::Handle;
use crate::vm::request::EngineRequest;

/// Either side of a migration.
#[derive(Debug)]
pub(in crate::vm) struct Seam {
    handle: Handle,
    images: Vec<Arc<Image>>,
    ownership: Arc<Ownership>,
    /// What the source tells of its resources.
    tickets: SharedTickets,
    /// At a destination.
    introduction: Option<Box<Introduction>>,
}

impl Seam {
    pub(super) fn new(handle: Handle, backends: &Backends, tickets: &SharedTickets) -> Self {
        Self {
            handle,
            images: backends.images.clone(),
            ownership: Arc::clone(&backends.ownership),
            tickets: Arc::clone(tickets),
            introduction: None,
        }
    }

    /// At a destination, which compares itself with the source.
    pub(super) fn expecting(mut self, introduction: Introduction) -> Self {
        self.introduction = Some(Box::new(introduction));
        self
    }

    /// Source, before the first byte: makes the records say that this migration began, and tells them in the stream.
    pub(super) fn begin(&self) -> Result<(), OwnershipError> {
        let tickets = self.ownership.begin()?;
        *self.tickets.lock().unwrap_or_else(PoisonError::into_inner) = Tickets::new(&tickets);
        Ok(())
    }

    /// True if records tell who has run the guest, and not the locks alone.
    pub(super) fn is_provable(&self) -> bool {
        self.ownership.is_provable()
    }

    fn ask(&self, request: EngineRequest) -> vmstate::Result<()> {
        self.handle.ask(request).map_err(|refusal| vmstate::Error::new(ErrorKind::Rejected, refusal.0))
    }

    /// Writes all images back, or gives up in time: a disk that hangs must not keep the guest paused.
    fn flush_within(&self, time: Duration) -> vmstate::Result<()> {
        let images = self.images.clone();
        let (done, flushed) = mpsc::channel();
        // Nobody waits for a thread that is late; it ends with the disk's answer.
        let begun = std::thread::Builder::new().name("write-back".into()).spawn(move || {
            let _ = done.send(flush(&images));
        });
        begun.map_err(|error| failed("the host gives no thread to write disk images back", error))?;
        flushed.recv_timeout(time).unwrap_or_else(|_| {
            let message = format!("the disk images were not written back within {time:?}: the host's disk is too slow");
            Err(vmstate::Error::new(ErrorKind::Io, message))
        })
    }

    /// Destination, before a source comes: what another one told is forgotten.
    pub(super) fn await_source(&self) {
        *self.tickets.lock().unwrap_or_else(PoisonError::into_inner) = Tickets::default();
    }

    /// Everything in which the resources here are not the source's, as sentences.
    fn foreign_resources(&self) -> Vec<String> {
        let told = self.tickets.lock().unwrap_or_else(PoisonError::into_inner).told();
        let wrong = self.ownership.prove(told.as_deref()).err().unwrap_or_default();
        wrong.iter().map(|mismatch| chain(mismatch)).collect()
    }
}

impl Machine for Seam {
    /// Images are written back here, while a cancel is still possible, and not in [`release`](Machine::release).
    fn pause(&mut self, within: Duration) -> vmstate::Result<()> {
        let begun = Instant::now();
        self.ask(EngineRequest::Pause(within))?;
        self.flush_within(within.saturating_sub(begun.elapsed())).inspect_err(|_| {
            // The machine is at rest and nothing of it has changed, so it can go on.
            let _ = self.ask(EngineRequest::Resume);
        })
    }

    fn rehearse(&mut self) -> vmstate::Result<Option<Duration>> {
        flush(&self.images)?;
        let begun = Instant::now();
        flush(&self.images)?;
        Ok(Some(begun.elapsed()))
    }

    fn introduced(&mut self) -> vmstate::Result<()> {
        let differences = self.introduction.iter().flat_map(|introduction| introduction.differences());
        let mut differences: Vec<_> = differences.map(|difference| difference.to_string()).collect();
        differences.extend(self.foreign_resources());
        refuse(&differences)?;
        self.ask(EngineRequest::Introduced)
    }

    fn loaded(&mut self) -> vmstate::Result<()> {
        refuse(&self.foreign_resources())?;
        self.ask(EngineRequest::Loaded)
    }

    fn resume(&mut self) -> vmstate::Result<()> {
        self.ask(EngineRequest::Resume)
    }

    fn release(&mut self) -> vmstate::Result<()> {
        self.ownership.release().map_err(|error| failed("the guest's disks could not be given up", error))
    }

    fn claim(&mut self) -> vmstate::Result<Claim> {
        self.ownership.claim().map_err(|error| failed("who has the guest's disks could not be found out", error))
    }

    fn advance(&mut self) -> vmstate::Result<()> {
        let what = "that the guest runs here could not be recorded, so it must not run";
        self.ownership.advance().map_err(|error| failed(what, error))
    }
}

fn flush(images: &[Arc<Image>]) -> vmstate::Result<()> {
    let what = "a disk image could not be written back, so no other host would see what the guest wrote";
    images.iter().try_for_each(|image| image.flush()).map_err(|error| failed(what, error))
}

fn failed(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> vmstate::Error {
    vmstate::Error::new(ErrorKind::Io, what).with_source(error)
}

/// One error of all `differences`, if there are any.
fn refuse(differences: &[String]) -> vmstate::Result<()> {
    match differences {
        [] => Ok(()),
        differences => {
            let message = format!("the guest cannot go on in this machine: {}", differences.join("; "));
            Err(vmstate::Error::new(ErrorKind::Rejected, message))
        }
    }
}
