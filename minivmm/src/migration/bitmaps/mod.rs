//! Section `dirty-bitmap`: the named dirty bitmaps of all disks, as QEMU's, so that incremental backups go on at the destination.
//!
//! START has a record for each bitmap. A chunk of a bitmap is sent when it has a dirty cluster, and again when another cluster
//! has become dirty since: in the rounds, so that little is left for the pause. QEMU sends all of it in the pause.

mod record;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use vmstate::codec::{Outbox, Reader};
use vmstate::schema::Description;
use vmstate::section::{IterativeSection, Record};
use vmstate::{Error, ErrorKind, Result};

use self::record::{BitmapRecord, Content};
use crate::devices::virtio::blk::{BitmapError, Bitmaps, node_name};

/// Name of the section.
pub const NAME: &str = "dirty-bitmap";

/// The section, shared between its registry and the machine.
pub type SharedBitmaps = Arc<Mutex<BitmapSection>>;

/// Longest name of a bitmap that is sent, in bytes.
const NAME_MAX: usize = u8::MAX as usize;
/// Bytes of a chunk's record, as an estimate.
const CHUNK: u64 = 1100;

/// The bitmaps of all disks, on either side.
#[derive(Debug, Default)]
pub struct BitmapSection {
    /// Bitmaps of each disk, in the order of the disks.
    disks: Vec<Arc<Bitmaps>>,
    /// Whether a source sends them.
    sends: bool,
    /// Bitmaps that are sent: the disk's index and the bitmap's name.
    leaving: Vec<(usize, String)>,
    /// Chunks of this round that are still to be sent: each as the index in `leaving`, and its own index.
    pending: VecDeque<(usize, usize)>,
    /// Disk and bitmap of the last record.
    last: Last,
    /// Destination: number of bitmaps that have begun and are not complete.
    incomplete: usize,
    /// Destination: records were lost, so those that still arrive are read and dropped.
    is_lost: bool,
}

/// Disk and bitmap that the last record named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Last {
    disk: Option<usize>,
    name: Option<String>,
}

/// The body of which a record is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Start,
    Part,
    End,
}

impl BitmapSection {
    /// Makes the section of disks with these bitmaps; a source `sends` them or not.
    pub fn new(disks: Vec<Arc<Bitmaps>>, sends: bool) -> Self {
        Self { disks, sends, ..Self::default() }
    }

    fn disk(&self, index: usize) -> Result<&Bitmaps> {
        let unknown = || Error::new(ErrorKind::Misuse, format!("there is no disk {index}"));
        self.disks.get(index).map(|disk| &**disk).ok_or_else(unknown)
    }

    /// Appends a record about a bitmap in `leaving`, with the names that differ from the last record's.
    fn put(&mut self, out: &mut Outbox, bitmap: usize, content: Content) -> Result<()> {
        let (disk, name) = self.leaving.get(bitmap).ok_or_else(not_set_up)?;
        let new_disk = self.last.disk != Some(*disk);
        let new_name = new_disk || self.last.name.as_ref() != Some(name);
        let node = node_name(*disk);
        let record = BitmapRecord { node: new_disk.then_some(&*node), name: new_name.then_some(&**name), content };
        record.put(out);
        self.last = Last { disk: Some(*disk), name: Some(name.clone()) };
        Ok(())
    }

    fn put_chunk(&mut self, out: &mut Outbox, (bitmap, chunk): (usize, usize)) -> Result<()> {
        let (disk, name) = self.leaving.get(bitmap).ok_or_else(not_set_up)?;
        let chunk = self.disk(*disk)?.chunk(name, chunk).map_err(failed)?;
        self.put(out, bitmap, Content::Bits(chunk))
    }

    /// Reads a record, and carries it out.
    fn take(&mut self, input: &mut Reader<'_>, body: Body) -> Result<Record> {
        let offset = input.offset();
        let record = record::read(input)?;
        if self.is_lost {
            return Ok(if record.content == Content::End { Record::Last } else { Record::More });
        }
        let malformed = |message: String| Error::new(ErrorKind::Malformed, message).at(offset);
        if record.content == Content::End {
            return Ok(match body {
                Body::Start if self.incomplete == 0 => Record::Whole,
                _ => Record::Last,
            });
        }
        let disk = match record.node {
            Some(node) => self.named(node)?,
            None => self.last.disk.ok_or_else(|| malformed("the first record names no disk".into()))?,
        };
        let name = match (record.name, &self.last.name) {
            (Some(name), _) => name.to_owned(),
            (None, Some(name)) if record.node.is_none() => name.clone(),
            (None, _) => return Err(malformed("the first record of a disk names no bitmap".into())),
        };
        let bitmaps = self.disk(disk)?;
        let place = format!("bitmap '{name}' of disk '{}'", node_name(disk));
        if matches!(record.content, Content::Start { .. }) != (body == Body::Start) {
            return Err(malformed(format!("{place}: bitmaps begin in the section's START, and nothing else is there")));
        }
        let refused = |error: BitmapError| malformed(format!("{place}: {error}"));
        match record.content {
            Content::End => {}
            Content::Start { persistent: true, .. } => {
                let message = format!(
                    "{place} is kept in the source's image (persistent), but a raw image has no place for it: remove it there first"
                );
                return Err(Error::new(ErrorKind::Rejected, message).at(offset));
            }
            Content::Start { granularity, recording, .. } => {
                bitmaps.begin_arrival(&name, granularity, recording).map_err(|error| {
                    Error::new(ErrorKind::Rejected, format!("{place} cannot be taken: {error}")).at(offset)
                })?;
                self.incomplete += 1;
            }
            Content::Bits(chunk) => bitmaps.add_chunk(&name, &chunk).map_err(refused)?,
            Content::Complete => {
                bitmaps.complete(&name).map_err(refused)?;
                self.incomplete -= 1;
            }
        }
        self.last = Last { disk: Some(disk), name: Some(name) };
        Ok(Record::More)
    }

    /// Index of the disk that the source calls `node`.
    fn named(&self, node: &str) -> Result<usize> {
        let unknown = || {
            let ours: Vec<_> = (0..self.disks.len()).map(node_name).collect();
            let message = format!(
                "the source sends a dirty bitmap of its disk '{node}'; the disks here are called {}: give the source's disks these names \
                 (in QEMU -drive id= or -blockdev node-name=), or switch its capability dirty-bitmaps off",
                if ours.is_empty() { "nothing, there are none".into() } else { ours.join(", ") }
            );
            Error::new(ErrorKind::Incompatible, message)
        };
        (0..self.disks.len()).find(|index| node_name(*index) == node).ok_or_else(unknown)
    }
}

fn not_set_up() -> Error {
    Error::new(ErrorKind::Misuse, "the bitmaps were not set up to be sent")
}

fn failed(error: BitmapError) -> Error {
    Error::new(ErrorKind::Rejected, error.to_string())
}

impl IterativeSection for BitmapSection {
    fn description(&self) -> &'static Description {
        static BITMAPS: Description = Description::undescribed(NAME, 1, 1);
        &BITMAPS
    }

    fn is_needed(&self) -> bool {
        self.sends && self.disks.iter().any(|disk| !disk.each(|_| ()).is_empty())
    }

    fn setup(&mut self, out: &mut Outbox) -> Result<()> {
        (self.last, self.leaving) = (Last::default(), Vec::new());
        for (index, disk) in self.disks.iter().enumerate() {
            let names = disk.leave().map_err(failed)?;
            if let Some(name) = names.iter().find(|name| name.len() > NAME_MAX) {
                let message =
                    format!("the name of bitmap '{name}' has more than {NAME_MAX} bytes: remove the bitmap first");
                return Err(Error::new(ErrorKind::Rejected, message));
            }
            self.leaving.extend(names.into_iter().map(|name| (index, name)));
        }
        for bitmap in 0..self.leaving.len() {
            let (disk, name) = self.leaving.get(bitmap).ok_or_else(not_set_up)?;
            let start = self.disk(*disk)?.with(name, |bitmap| Content::Start {
                granularity: bitmap.granularity(),
                recording: bitmap.is_recording(),
                persistent: false,
            });
            self.put(out, bitmap, start.map_err(failed)?)?;
        }
        put_end(out);
        Ok(())
    }

    fn pending(&mut self) -> u64 {
        self.pending.len() as u64 * CHUNK
    }

    fn sync(&mut self) -> Result<()> {
        // A chunk that is pending already may be added again: the later copy has all of its bits.
        for (bitmap, (disk, name)) in self.leaving.iter().enumerate() {
            let changed = self.disk(*disk)?.take_changed(name).map_err(failed)?;
            self.pending.extend(changed.into_iter().map(|chunk| (bitmap, chunk)));
        }
        Ok(())
    }

    fn iterate(&mut self, out: &mut Outbox, budget: u64) -> Result<bool> {
        let full = out.len().saturating_add(budget);
        while let Some(chunk) = self.pending.pop_front() {
            self.put_chunk(out, chunk)?;
            if out.len() >= full {
                break;
            }
        }
        put_end(out);
        Ok(self.pending.is_empty())
    }

    fn complete(&mut self, out: &mut Outbox) -> Result<()> {
        for bitmap in 0..self.leaving.len() {
            self.put(out, bitmap, Content::Complete)?;
        }
        put_end(out);
        Ok(())
    }

    fn load_start(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        self.take(input, Body::Start)
    }

    fn load_part(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        self.take(input, Body::Part)
    }

    fn load_end(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        let offset = input.offset();
        let last = self.take(input, Body::End)?;
        if last == Record::Last && self.incomplete > 0 {
            let message = format!("{} bitmaps are not complete at the end of the section", self.incomplete);
            return Err(Error::new(ErrorKind::Malformed, message).at(offset));
        }
        Ok(last)
    }

    /// QEMU sends the bitmaps in post-copy, when the guest runs here already.
    fn may_end_in_postcopy(&self) -> bool {
        true
    }

    /// Removes the arriving bitmaps: one that lacked dirty clusters would damage a backup, and without it the next backup copies
    /// everything.
    fn interrupted(&mut self) {
        self.disks.iter().for_each(|disk| disk.end_migration());
        (self.is_lost, self.incomplete) = (true, 0);
    }

    fn cleanup(&mut self) {
        self.disks.iter().for_each(|disk| disk.end_migration());
        *self = Self::new(std::mem::take(&mut self.disks), self.sends);
    }
}

fn put_end(out: &mut Outbox) {
    BitmapRecord { node: None, name: None, content: Content::End }.put(out);
}
