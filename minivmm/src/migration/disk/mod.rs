//! Section `minivmm/disk`: the content of a writable disk, for a destination that does not share the source's storage. One
//! instance for each disk, sent in parts while the guest runs.
//!
//! All integers are big-endian. The body of START is the disk's size and its present number of data bytes (`u64` each). The
//! body of each PART is records up to an end record (`record.rs`), and so is that of END, followed by the number of all records
//! that changed the image (`u64`).

mod apply;
mod copy;
mod figures;
mod record;
mod source;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::sync::{Arc, Mutex};

use vmstate::codec::{Outbox, Reader};
use vmstate::schema::Description;
use vmstate::section::{IterativeSection, Record};
use vmstate::{Error, ErrorKind, Result};

use self::apply::{apply, write_back};
pub use self::copy::DiskCopy;
pub use self::figures::{DiskCount, DiskFigures};
use self::record::DiskRecord;
use self::source::Copier;
use crate::devices::virtio::blk::{Image, Mark};

/// Name of the section; its instance is the disk's index in the order of all disks.
pub const NAME: &str = "minivmm/disk";

/// Section of a disk, shared between its registry and the machine, which asks for its progress.
pub type SharedDisk = Arc<Mutex<DiskSection>>;

/// The section of one disk, on either side.
#[derive(Debug)]
pub struct DiskSection {
    image: Arc<Image>,
    /// Sender of the content, at a source while it sends.
    copier: Option<Copier>,
    /// Counts of the sender, which outlast it.
    count: Arc<DiskCount>,
    /// Progress of the content, at a destination.
    arrival: Arrival,
}

/// Progress of a disk's content at a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// No source has begun to send the content.
    None,
    /// The image is incomplete; this many records have changed it.
    Part(u64),
    /// The image is complete, and on the disk.
    Whole,
}

impl DiskSection {
    /// Makes the section of the disk on `image`.
    pub fn new(image: &Arc<Image>) -> Self {
        let count = Arc::new(DiskCount::new(image.bytes()));
        Self { image: Arc::clone(image), copier: None, count, arrival: Arrival::None }
    }

    /// Counts of the sender, at a source.
    pub fn count(&self) -> Arc<DiskCount> {
        Arc::clone(&self.count)
    }

    /// Progress of the content, at a destination.
    pub fn arrival(&self) -> Arrival {
        self.arrival
    }

    /// Forgets the progress, for the next source.
    pub fn await_source(&mut self) {
        self.arrival = Arrival::None;
    }

    fn copier(&mut self) -> Result<(&Image, &mut Copier)> {
        match &mut self.copier {
            Some(copier) => Ok((&self.image, copier)),
            None => Err(Error::new(ErrorKind::Misuse, "the disk was not set up to be sent")),
        }
    }

    /// Reads a record, and carries it out.
    fn take_record(&mut self, input: &mut Reader<'_>) -> Result<Record> {
        let Arrival::Part(records) = &mut self.arrival else {
            return Err(Error::new(ErrorKind::Misuse, "the disk was not set up to be loaded"));
        };
        let record = record::read(input, self.image.bytes())?;
        *records += u64::from(record.changes_image());
        apply(&self.image, record)?;
        Ok(if record == DiskRecord::End { Record::Last } else { Record::More })
    }
}

/// Makes an error of an image.
fn failed(image: &Image, what: &str, error: impl Display) -> Error {
    Error::new(ErrorKind::Rejected, format!("the image {} {what}: {error}", image.resource().path().display()))
}

/// Checks that the file system of an empty `image` has room for `data` bytes.
fn check_room(image: &Image, data: u64) -> Result<()> {
    let room = image.room().map_err(|error| failed(image, "is on a file system that cannot be asked", error))?;
    match room.filter(|room| *room < data) {
        None => Ok(()),
        Some(room) => {
            let path = image.resource().path().display();
            let what = format!("has to take {data} bytes, its file system has room for {room}: make room there");
            Err(Error::new(ErrorKind::Rejected, format!("the image {path} {what}")))
        }
    }
}

impl IterativeSection for DiskSection {
    fn description(&self) -> &'static Description {
        static DISK: Description = Description::undescribed(NAME, 1, 1);
        &DISK
    }

    fn setup(&mut self, out: &mut Outbox) -> Result<()> {
        let (copier, data) = Copier::start(&self.image, &self.count)?;
        self.copier = Some(copier);
        out.put(&self.image.bytes().to_be_bytes());
        out.put(&data.to_be_bytes());
        Ok(())
    }

    fn pending(&mut self) -> u64 {
        self.copier.as_ref().map_or(0, |copier| copier.pending(&self.image))
    }

    fn sync(&mut self) -> Result<()> {
        let (image, copier) = self.copier()?;
        copier.sync(image);
        Ok(())
    }

    fn iterate(&mut self, out: &mut Outbox, budget: u64) -> Result<bool> {
        let (image, copier) = self.copier()?;
        let is_over = copier.put(image, budget, &mut |record| {
            record.put(out);
            Ok(())
        })?;
        DiskRecord::End.put(out);
        Ok(is_over)
    }

    fn complete(&mut self, out: &mut Outbox) -> Result<()> {
        self.iterate(out, u64::MAX)?;
        let (_, copier) = self.copier()?;
        out.put(&copier.records().to_be_bytes());
        Ok(())
    }

    /// Refused for an image that existed before. Content of another source is dropped.
    fn load_start(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        let (bytes, data) = (input.u64()?, input.u64()?);
        if self.image.marked() != Some(Mark::Incomplete) {
            let message = format!(
                "the source sends the content of this disk, but {} was here before: start this machine with --disk FILE,create={bytes} and a \
                 new FILE, or leave the disk out of --copy-disk there",
                self.image.resource().path().display()
            );
            return Err(Error::new(ErrorKind::Rejected, message));
        }
        if bytes != self.image.bytes() {
            let here = self.image.bytes();
            let message = format!("the source's disk has {bytes} bytes, the image here {here}: give create={bytes}");
            return Err(Error::new(ErrorKind::Rejected, message));
        }
        if data > bytes {
            return Err(input.malformed(format!("{data} bytes of data on a disk of {bytes}")));
        }
        self.arrival = Arrival::Part(0);
        self.image.empty().map_err(|error| failed(&self.image, "could not be emptied", error))?;
        check_room(&self.image, data).map(|()| Record::Last)
    }

    fn load_part(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        self.take_record(input)
    }

    fn load_end(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        if self.take_record(input)? == Record::More {
            return Ok(Record::More);
        }
        let sent = input.u64()?;
        if self.arrival != Arrival::Part(sent) {
            return Err(input.malformed(format!("the source has sent {sent} records, here are {:?}", self.arrival)));
        }
        write_back(&self.image)?;
        self.arrival = Arrival::Whole;
        Ok(Record::Last)
    }

    fn cleanup(&mut self) {
        self.copier = None;
    }
}
