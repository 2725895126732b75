//! The machine as the migration engine sees it: the driver changes the run state, the disk images' locks say who may run.

use std::sync::Arc;
use std::time::Duration;

use vmstate::ErrorKind;
use vmstate::migrate::{Claim, Machine};

use super::introduction::Introduction;
use crate::devices::virtio::blk::{Image, ImageError};
use crate::vm::handle::Handle;
use crate::vm::request::EngineRequest;

/// Either side of a migration.
#[derive(Debug)]
pub(in crate::vm) struct Seam {
    handle: Handle,
    /// Images that the guest may write: who holds their locks may run it.
    images: Vec<Arc<Image>>,
    /// At a destination.
    introduction: Option<Box<Introduction>>,
}

impl Seam {
    pub(super) fn new(handle: Handle, images: &[Arc<Image>]) -> Self {
        let images = images.iter().filter(|image| !image.is_read_only()).cloned().collect();
        Self { handle, images, introduction: None }
    }

    /// At a destination, which compares itself with the source.
    pub(super) fn expecting(mut self, introduction: Introduction) -> Self {
        self.introduction = Some(Box::new(introduction));
        self
    }

    fn ask(&self, request: EngineRequest) -> vmstate::Result<()> {
        self.handle.ask(request).map_err(|refusal| vmstate::Error::new(ErrorKind::Rejected, refusal.0))
    }

    fn unlock(&self, images: &[Arc<Image>]) -> Result<(), ImageError> {
        images.iter().try_for_each(|image| image.unlock())
    }
}

impl Machine for Seam {
    fn pause(&mut self, within: Duration) -> vmstate::Result<()> {
        self.ask(EngineRequest::Pause(within))
    }

    fn introduced(&mut self) -> vmstate::Result<()> {
        let differences = self.introduction.iter().flat_map(|introduction| introduction.differences());
        let differences: Vec<_> = differences.map(|difference| difference.to_string()).collect();
        if !differences.is_empty() {
            let message = format!("the guest cannot go on in this machine: {}", differences.join("; "));
            return Err(vmstate::Error::new(ErrorKind::Rejected, message));
        }
        self.ask(EngineRequest::Introduced)
    }

    fn loaded(&mut self) -> vmstate::Result<()> {
        self.ask(EngineRequest::Loaded)
    }

    fn resume(&mut self) -> vmstate::Result<()> {
        self.ask(EngineRequest::Resume)
    }

    fn release(&mut self) -> vmstate::Result<()> {
        self.unlock(&self.images).map_err(|error| {
            // Those that were unlocked are taken again; nobody was told that they were free.
            let again = self.images.iter().try_for_each(|image| image.lock());
            let message = match again {
                Ok(()) => "a disk image could not be handed over",
                Err(_) => "a disk image could be neither handed over nor kept",
            };
            vmstate::Error::new(ErrorKind::Rejected, message).with_source(error)
        })
    }

    fn claim(&mut self) -> vmstate::Result<Claim> {
        if self.images.is_empty() {
            return Ok(Claim::Undecidable);
        }
        for (index, image) in self.images.iter().enumerate() {
            if let Err(error) = image.lock() {
                let taken = self.images.get(..index).unwrap_or_default();
                let _ = self.unlock(taken);
                return match error {
                    ImageError::InUse { .. } => Ok(Claim::Held),
                    error => {
                        Err(vmstate::Error::new(ErrorKind::Io, "a disk image could not be locked").with_source(error))
                    }
                };
            }
        }
        Ok(Claim::Won)
    }
}
