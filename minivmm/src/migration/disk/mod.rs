//! Section `minivmm/disk`: the content of a writable disk, for a destination that does not share the source's storage. One
//! instance for each disk, sent in parts while the guest runs.
//!
//! All integers are big-endian. The body of START is the disk's size and its present number of data bytes (`u64` each). The
//! body of each PART is records up to an end record (`record.rs`), and so is that of END, followed by the number of all records
//! that changed the image (`u64`).

mod figures;
mod record;
mod source;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::io;
use std::sync::{Arc, Mutex};

use vmstate::codec::{Outbox, Reader};
use vmstate::schema::Description;
use vmstate::section::{IterativeSection, Record};
use vmstate::{Error, ErrorKind, Result};

pub use self::figures::{DiskCount, DiskFigures};
use self::record::DiskRecord;
use self::source::Copier;
use crate::devices::virtio::blk::{Image, Mark};

/// Name of the section; its instance is the disk's index in the order of all disks.
pub const NAME: &str = "minivmm/disk";

/// Section of a disk, shared between its registry and the machine, which asks for its progress.
pub type SharedDisk = Arc<Mutex<DiskSection>>;

/// Zeros that are written at a time where no hole can be made.
const ZEROS: &[u8; 64 << 10] = &[0; 64 << 10];

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

    /// Makes an error of the image with a message for the other side.
    fn failed(&self, what: &str, error: impl Display) -> Error {
        let message = format!("the image {} {what}: {error}", self.image.resource().path().display());
        Error::new(ErrorKind::Rejected, message)
    }

    fn copier(&mut self) -> Result<(&Image, &mut Copier)> {
        match &mut self.copier {
            Some(copier) => Ok((&self.image, copier)),
            None => Err(Error::new(ErrorKind::Misuse, "the disk was not set up to be sent")),
        }
    }

    /// Makes a range read as zeros, and releases its space if the file system can.
    fn erase(&self, mut offset: u64, len: u64) -> io::Result<()> {
        match self.image.punch(offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            done => return done,
        }
        let end = offset.saturating_add(len);
        while let Some(data) = self.image.data(offset)?.filter(|data| data.start < end) {
            let piece = end.min(data.end).saturating_sub(data.start).min(ZEROS.len() as u64);
            self.image.write(ZEROS.get(..piece as usize).unwrap_or(ZEROS), data.start)?;
            offset = data.start + piece.max(1);
        }
        Ok(())
    }

    fn write_back(&self) -> Result<()> {
        self.image.flush().map_err(|error| self.failed("could not be written back", error))
    }

    /// Reads a record, and carries it out.
    fn take_record(&mut self, input: &mut Reader<'_>) -> Result<Record> {
        let Arrival::Part(records) = &mut self.arrival else {
            return Err(Error::new(ErrorKind::Misuse, "the disk was not set up to be loaded"));
        };
        let changed = match record::read(input, self.image.bytes())? {
            DiskRecord::End => return Ok(Record::Last),
            DiskRecord::WriteBack => return self.write_back().map(|()| Record::More),
            DiskRecord::Data { offset, bytes } => {
                *records += 1;
                self.image.write(bytes, offset)
            }
            DiskRecord::Zeros { offset, len } => {
                *records += 1;
                self.erase(offset, len)
            }
        };
        changed.map(|()| Record::More).map_err(|error| self.failed("could not be written", error))
    }
}

impl IterativeSection for DiskSection {
    fn description(&self) -> &'static Description {
        static DISK: Description = Description::undescribed(NAME, 1, 1);
        &DISK
    }

    fn setup(&mut self, out: &mut Outbox) -> Result<()> {
        let started = Copier::start(&self.image, &self.count);
        let (copier, data) = started.map_err(|error| self.failed("could not be read", error))?;
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
        let over = copier.put(image, out, budget);
        over.map_err(|error| self.failed("could not be read", error))
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
        self.image.empty().map_err(|error| self.failed("could not be emptied", error))?;
        let room = self.image.room().map_err(|error| self.failed("is on a file system that cannot be asked", error))?;
        if let Some(room) = room.filter(|room| *room < data) {
            let what = format!("has to take {data} bytes, its file system has room for {room}: make room there");
            return Err(Error::new(
                ErrorKind::Rejected,
                format!("the image {} {what}", self.image.resource().path().display()),
            ));
        }
        Ok(Record::Last)
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
        self.write_back()?;
        self.arrival = Arrival::Whole;
        Ok(Record::Last)
    }

    fn cleanup(&mut self) {
        self.copier = None;
    }
}
