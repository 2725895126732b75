//! Section `dirty-bitmap`: the named dirty bitmaps of all disks, as QEMU's, so that incremental backups go on at the destination.
//!
//! START has a record for each bitmap. A chunk of a bitmap is sent when it has a dirty cluster, and again when another cluster
//! has become dirty since: in the rounds, so that little is left for the pause. QEMU sends all of it in the pause.
//!
//! Disks and bitmaps have their own names in the stream, or those of a mapping (`mapping.rs`).

mod mapping;
mod record;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use vmstate::codec::{Outbox, Reader};
use vmstate::schema::Description;
use vmstate::section::{IterativeSection, Record};
use vmstate::{Error, ErrorKind, Result};

use self::mapping::ALIAS_MAX;
pub use self::mapping::{BitmapAlias, BitmapMapping, MappingError, NodeAlias, SharedMapping};
use self::record::{BitmapRecord, Content};
use crate::devices::virtio::blk::{BitmapError, Bitmaps, node_name};
use crate::sync::lock;

/// Name of the section.
pub const NAME: &str = "dirty-bitmap";

/// The section, shared between its registry and the machine.
pub type SharedBitmaps = Arc<Mutex<BitmapSection>>;

/// Bytes of a chunk's record, as an estimate.
const CHUNK: u64 = 1100;

/// The bitmaps of all disks, on either side.
#[derive(Debug, Default)]
pub struct BitmapSection {
    /// Bitmaps of each disk, in the order of the disks.
    disks: Vec<Arc<Bitmaps>>,
    /// Whether a source sends them.
    sends: bool,
    /// Mapping that the user has set.
    set_mapping: SharedMapping,
    /// Mapping that the migration began with.
    mapping: Option<BitmapMapping>,
    /// Bitmaps that are sent.
    leaving: Vec<Leaving>,
    /// Chunks of this round that are still to be sent: each as the index in `leaving`, and its own index.
    pending: VecDeque<(usize, usize)>,
    /// Disk and bitmap of the last record.
    last: Last,
    /// Destination: number of bitmaps that have begun and are not complete.
    incomplete: usize,
    /// Destination: records were lost, so those that still arrive are read and dropped.
    is_lost: bool,
}

/// A bitmap that is sent.
#[derive(Debug)]
struct Leaving {
    /// Index of its disk.
    disk: usize,
    name: String,
    /// Name of the disk in the stream.
    node_alias: String,
    /// Name of the bitmap in the stream.
    alias: String,
    /// Whether the destination is to keep the bitmap in the disk's image.
    persistent: bool,
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

    /// Uses a mapping that may change until the migration begins.
    #[must_use]
    pub fn mapped(self, set_mapping: SharedMapping) -> Self {
        Self { set_mapping, ..self }
    }

    fn disk(&self, index: usize) -> Result<&Bitmaps> {
        let unknown = || Error::new(ErrorKind::Misuse, format!("there is no disk {index}"));
        self.disks.get(index).map(|disk| &**disk).ok_or_else(unknown)
    }

    /// Appends a record about a bitmap in `leaving`, with the names that differ from the last record's.
    fn put(&mut self, out: &mut Outbox, bitmap: usize, content: Content) -> Result<()> {
        let Leaving { disk, name, node_alias, alias, .. } = self.leaving.get(bitmap).ok_or_else(not_set_up)?;
        let new_disk = self.last.disk != Some(*disk);
        let new_name = new_disk || self.last.name.as_ref() != Some(name);
        let record =
            BitmapRecord { node: new_disk.then_some(&**node_alias), name: new_name.then_some(&**alias), content };
        record.put(out);
        self.last = Last { disk: Some(*disk), name: Some(name.clone()) };
        Ok(())
    }

    fn put_chunk(&mut self, out: &mut Outbox, (bitmap, chunk): (usize, usize)) -> Result<()> {
        let Leaving { disk, name, .. } = self.leaving.get(bitmap).ok_or_else(not_set_up)?;
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
            Some(alias) => self.disk_named(alias)?,
            None => self.last.disk.ok_or_else(|| malformed("the first record names no disk".into()))?,
        };
        let name = match (record.name, &self.last.name) {
            (Some(alias), _) => self.bitmap_named(disk, alias)?,
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
            Content::Start { granularity, recording, persistent } => {
                if self.transformed(disk, &name).unwrap_or(persistent) {
                    let message = format!(
                        "{place} is to be kept in the image (persistent), but a raw image has no place for it: set transform.persistent \
                         of the bitmap to false in block-bitmap-mapping, here or at the source, or remove the bitmap at the source first"
                    );
                    return Err(Error::new(ErrorKind::Rejected, message).at(offset));
                }
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

    /// Aliases of the disk `index` and of its bitmaps, if there is a mapping with this disk.
    fn aliases(&self, index: usize) -> Option<&NodeAlias> {
        let node = node_name(index);
        self.mapping.as_ref()?.nodes().iter().find(|mapped| mapped.node == node)
    }

    /// Whether the mapping wants the bitmap `name` in the disk's image, if the mapping says so.
    fn transformed(&self, disk: usize, name: &str) -> Option<bool> {
        self.aliases(disk)?.bitmaps.iter().find(|bitmap| bitmap.name == name)?.persistent
    }

    /// Index of the disk that is called `alias` in the stream.
    fn disk_named(&self, alias: &str) -> Result<usize> {
        let ours: Vec<_> = (0..self.disks.len()).map(node_name).collect();
        let (node, remedy) = match &self.mapping {
            None => (
                Some(alias),
                "map them with the migration parameter block-bitmap-mapping, give the source's disks these names (in QEMU -drive id= or \
                 -blockdev node-name=), or switch the source's capability dirty-bitmaps off",
            ),
            Some(mapping) => (
                mapping.nodes().iter().find(|mapped| mapped.alias == alias).map(|mapped| &*mapped.node),
                "the migration parameter block-bitmap-mapping maps no disk here to this name: add the disk to it, here, or leave the disk \
                 out of it at the source",
            ),
        };
        node.and_then(|node| ours.iter().position(|name| name == node)).ok_or_else(|| {
            let message = format!(
                "the source sends a dirty bitmap of its disk '{alias}'; the disks here are called {}: {remedy}",
                if ours.is_empty() { "nothing, there are none".into() } else { ours.join(", ") }
            );
            Error::new(ErrorKind::Incompatible, message)
        })
    }

    /// Name of the bitmap of a disk that is called `alias` in the stream.
    fn bitmap_named(&self, disk: usize, alias: &str) -> Result<String> {
        let Some(node) = self.aliases(disk) else { return Ok(alias.into()) };
        let found = node.bitmaps.iter().find(|bitmap| bitmap.alias == alias);
        found.map(|bitmap| bitmap.name.clone()).ok_or_else(|| {
            let message = format!(
                "the source sends a dirty bitmap '{alias}' of its disk '{}', to which the migration parameter block-bitmap-mapping maps no \
                 bitmap here: add the bitmap to it, here, or leave the bitmap out of it at the source",
                node.alias
            );
            Error::new(ErrorKind::Incompatible, message)
        })
    }
}

/// Names under which the bitmap `name` of the disk `index` is sent, or `None` if the mapping leaves the bitmap out.
fn leaving(mapping: Option<&BitmapMapping>, disk: usize, name: &str) -> Option<Leaving> {
    let node = node_name(disk);
    let (node_alias, alias, persistent) = match mapping {
        None => (node, name.to_owned(), None),
        Some(mapping) => {
            let mapped = mapping.nodes().iter().find(|mapped| mapped.node == node)?;
            let bitmap = mapped.bitmaps.iter().find(|bitmap| bitmap.name == name)?;
            (mapped.alias.clone(), bitmap.alias.clone(), bitmap.persistent)
        }
    };
    Some(Leaving { disk, name: name.into(), node_alias, alias, persistent: persistent.unwrap_or(false) })
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
        let mapping = lock(&self.set_mapping);
        let mut disks = self.disks.iter().enumerate();
        let any_of = |(disk, bitmaps): (usize, &Arc<Bitmaps>)| {
            bitmaps.each(|bitmap| leaving(mapping.as_ref(), disk, bitmap.name()).is_some()).contains(&true)
        };
        self.sends && disks.any(any_of)
    }

    fn setup(&mut self, out: &mut Outbox) -> Result<()> {
        (self.last, self.leaving) = (Last::default(), Vec::new());
        self.mapping = lock(&self.set_mapping).clone();
        for (disk, bitmaps) in self.disks.iter().enumerate() {
            let sent = bitmaps.leave(|name| leaving(self.mapping.as_ref(), disk, name)).map_err(failed)?;
            self.leaving.extend(sent);
        }
        if let Some(Leaving { name, .. }) = self.leaving.iter().find(|bitmap| bitmap.alias.len() > ALIAS_MAX) {
            let message = format!(
                "the name of bitmap '{name}' has more than {ALIAS_MAX} bytes: give it an alias in the migration parameter \
                 block-bitmap-mapping, or remove the bitmap first"
            );
            return Err(Error::new(ErrorKind::Rejected, message));
        }
        for bitmap in 0..self.leaving.len() {
            let Leaving { disk, name, persistent, .. } = self.leaving.get(bitmap).ok_or_else(not_set_up)?;
            let start = self.disk(*disk)?.with(name, |bitmap| Content::Start {
                granularity: bitmap.granularity(),
                recording: bitmap.is_recording(),
                persistent: *persistent,
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
        for (bitmap, Leaving { disk, name, .. }) in self.leaving.iter().enumerate() {
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
        if self.last == Last::default() {
            self.mapping = lock(&self.set_mapping).clone();
        }
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
        *self = Self::new(std::mem::take(&mut self.disks), self.sends).mapped(Arc::clone(&self.set_mapping));
    }
}

fn put_end(out: &mut Outbox) {
    BitmapRecord { node: None, name: None, content: Content::End }.put(out);
}
