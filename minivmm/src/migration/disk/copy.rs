//! Copy of a disk's content to a new image of this host, made while the guest writes to the disk, for a snapshot.

use std::sync::Arc;

use vmstate::{Error, ErrorKind, Result};

use super::apply::{apply, write_back};
use super::figures::DiskCount;
use super::record::DiskRecord;
use super::source::Copier;
use super::{check_room, failed};
use crate::devices::virtio::blk::Image;
use crate::error::chain;

/// A disk and its copy.
#[derive(Debug)]
pub struct DiskCopy {
    original: Arc<Image>,
    copy: Image,
    /// Reader of the original, once the copy has begun.
    copier: Option<Copier>,
    count: Arc<DiskCount>,
}

impl DiskCopy {
    /// Makes a copy of `original` that has not begun, in the image `copy` of the same size.
    pub fn new(original: &Arc<Image>, copy: Image) -> Self {
        let count = Arc::new(DiskCount::new(original.bytes()));
        Self { original: Arc::clone(original), copy, copier: None, count }
    }

    /// The copy.
    pub fn image(&self) -> &Image {
        &self.copy
    }

    /// Counts of the reader.
    pub fn count(&self) -> &Arc<DiskCount> {
        &self.count
    }

    /// Makes all data of the original pending, and returns its number of bytes. The copy is
    /// [`Incomplete`](crate::devices::virtio::blk::Mark::Incomplete) until [`finish`](Self::finish).
    ///
    /// # Errors
    /// The copy cannot have that mark, or the original cannot be read.
    pub fn begin(&mut self) -> Result<u64> {
        self.copy.await_content().map_err(|error| {
            let remedy = "name a file on a file system with extended attributes";
            Error::new(ErrorKind::Rejected, format!("{}; {remedy}", chain(&error)))
        })?;
        let (copier, data) = Copier::start(&self.original, &self.count)?;
        self.copier = Some(copier);
        Ok(data)
    }

    /// Checks that the copy's file system has room for `data` bytes.
    ///
    /// # Errors
    /// It has not.
    pub fn check_room(&self, data: u64) -> Result<()> {
        check_room(&self.copy, data)
    }

    /// Adds what the guest has written so far to what is pending.
    ///
    /// # Errors
    /// The copy has not begun.
    pub fn sync(&mut self) -> Result<()> {
        let (original, copier, _) = self.parts()?;
        copier.sync(original);
        Ok(())
    }

    /// Copies about `budget` bytes, and writes them back now and then, so that a later write-back is short. True if nothing is left.
    ///
    /// # Errors
    /// The original cannot be read, or the copy cannot be written.
    pub fn iterate(&mut self, budget: u64) -> Result<bool> {
        let (original, copier, copy) = self.parts()?;
        copier.put(original, budget, &mut |record| apply(copy, record))
    }

    /// Copies everything that is pending, and writes nothing back: the guest is paused.
    ///
    /// # Errors
    /// As for [`iterate`](Self::iterate).
    pub fn complete(&mut self) -> Result<()> {
        let (original, copier, copy) = self.parts()?;
        let is_over = copier.put(original, u64::MAX, &mut |record| match record {
            DiskRecord::WriteBack => Ok(()),
            record => apply(copy, record),
        });
        is_over.map(drop)
    }

    /// An estimate of the bytes that are still to be copied.
    pub fn pending(&self) -> u64 {
        self.copier.as_ref().map_or(0, |copier| copier.pending(&self.original))
    }

    /// Writes the complete copy back, and removes its mark.
    ///
    /// # Errors
    /// The disk of the copy failed, or is full.
    pub fn finish(&self) -> Result<()> {
        write_back(&self.copy)?;
        self.copy.unmark().map_err(|error| failed(&self.copy, "could not get its mark removed", error))
    }

    fn parts(&mut self) -> Result<(&Image, &mut Copier, &Image)> {
        match &mut self.copier {
            Some(copier) => Ok((&self.original, copier, &self.copy)),
            None => Err(Error::new(ErrorKind::Misuse, "the copy of the disk has not begun")),
        }
    }
}
