//! The machine as the migration engine sees it: the driver changes the run state, the disk images' locks say who may run.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use vmstate::ErrorKind;
use vmstate::migrate::{Claim, Machine};

use crate::devices::virtio::blk::{Image, ImageError};
use crate::vm::handle::{Handle, Request};

/// Runs `work` on the migration thread, and tells the driver how it ended, even if it panicked.
///
/// # Errors
/// The host gives no thread.
pub(super) fn spawn<T: 'static>(
    handle: Handle,
    work: impl FnOnce() -> T + Send + 'static,
    panicked: fn(String) -> T,
    tell: fn(T) -> Request,
) -> io::Result<()> {
    let thread = std::thread::Builder::new().name("migration".into());
    thread.spawn(move || {
        let end = catch_unwind(AssertUnwindSafe(work));
        handle.tell(tell(end.unwrap_or_else(|_| panicked("the migration thread panicked".into()))));
    })?;
    Ok(())
}

/// Either side of a migration.
#[derive(Debug)]
pub(super) struct Seam {
    handle: Handle,
    /// Images that the guest may write: who holds their locks may run it.
    images: Vec<Arc<Image>>,
}

impl Seam {
    pub(super) fn new(handle: Handle, images: &[Arc<Image>]) -> Self {
        let images = images.iter().filter(|image| !image.is_read_only()).cloned().collect();
        Self { handle, images }
    }

    fn ask(&self, request: Request) -> vmstate::Result<()> {
        self.handle.ask(request).map_err(|refusal| vmstate::Error::new(ErrorKind::Rejected, refusal.0))
    }

    fn unlock(&self, images: &[Arc<Image>]) -> Result<(), ImageError> {
        images.iter().try_for_each(|image| image.unlock())
    }
}

impl Machine for Seam {
    fn pause(&mut self, _within: Duration) -> vmstate::Result<()> {
        self.ask(Request::SwitchOver)
    }

    fn loaded(&mut self) -> vmstate::Result<()> {
        self.ask(Request::Loaded)
    }

    fn resume(&mut self) -> vmstate::Result<()> {
        self.ask(Request::GoOn)
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
