//! Disks of a snapshot: the content of each writable disk goes to a new image beside the file with the guest's state, and the guest
//! in the file belongs to these images.
//!
//! An image has an ownership record of its own, with another token than the disk of the guest that runs on here. The file has the
//! records of the images, so its guest is refused on the disks here, whatever happens to them.

use std::io;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use vmstate::migrate::snapshot::Beside;
use vmstate::ownership::{Ownership, OwnershipError, Role};
use vmstate::{Error, ErrorKind, Result};

use super::copied::CopiedDisks;
use super::write_back::failed;
use crate::devices::virtio::blk::Image;
use crate::error::chain;
use crate::migration::disk::{DiskCopy, DiskCount};
use crate::vm::new_file::{NewFile, with_suffix};

/// The images, and their ownership.
#[derive(Debug)]
pub(super) struct SnapshotDisks {
    disks: Vec<(DiskCopy, NewFile)>,
    ownership: Arc<Ownership>,
}

impl SnapshotDisks {
    /// Creates an image for each disk of `copied`: the image of disk `virtio1` has the path of the `state` file with
    /// `.virtio1` appended.
    ///
    /// # Errors
    /// The reason, as a sentence for the user.
    pub(super) fn create(state: &Path, copied: &CopiedDisks) -> std::result::Result<Self, String> {
        let (mut disks, mut resources) = (Vec::new(), Vec::new());
        for (index, name, original) in copied.images() {
            let path = with_suffix(state, &format!(".{name}"));
            let created = NewFile::create(&path, OFlag::empty());
            let (new, file) = created.map_err(|(path, error)| {
                let why = match error.kind() {
                    io::ErrorKind::AlreadyExists => "it exists already".into(),
                    _ => error.to_string(),
                };
                format!("{}: {why}; the content of disk '{name}' goes there: name another file", path.display())
            })?;
            let image = Image::locked(file, &path, original.bytes()).map_err(|error| refused(&error))?;
            resources.push((Role::Disk(index), Arc::clone(image.resource())));
            disks.push((DiskCopy::new(original, image), new));
        }
        let ownership = Arc::new(Ownership::new(resources).map_err(|error| refused(&error))?);
        Ok(Self { disks, ownership })
    }

    /// Ownership of the images, which is that of the guest in the file.
    pub(super) fn ownership(&self) -> &Arc<Ownership> {
        &self.ownership
    }

    /// Counts of the disks' readers.
    pub(super) fn counts(&self) -> Vec<Arc<DiskCount>> {
        self.disks.iter().map(|(disk, _)| Arc::clone(disk.count())).collect()
    }

    /// Begins to copy, and checks that there is room.
    ///
    /// # Errors
    /// A disk cannot be read, or the images' file system is too small.
    pub(super) fn begin(&mut self) -> Result<()> {
        let data = self.disks.iter_mut().try_fold(0, |sum, (disk, _)| Ok::<_, Error>(disk.begin()? + sum))?;
        // All images are on one file system.
        self.disks.first().map_or(Ok(()), |(disk, _)| disk.check_room(data))
    }

    /// Writes the complete images back, and lets go of them.
    ///
    /// # Errors
    /// An image is not on the disk.
    pub(super) fn finish(&self) -> Result<()> {
        self.disks.iter().try_for_each(|(disk, _)| disk.finish())?;
        self.ownership.release().map_err(|error| failed("an image of the snapshot stays locked", error))
    }

    /// Gives the images, which are on the disk, their names.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn take_places(&mut self) -> Result<()> {
        self.disks.iter_mut().try_for_each(|(disk, new)| {
            let path = disk.image().resource().path().display();
            new.take_place().map_err(|error| Error::new(ErrorKind::Io, format!("{path}: {error}")))
        })
    }

    /// Removes the images, which belong to no guest.
    pub(super) fn remove(&mut self) {
        self.disks.iter_mut().for_each(|(_, new)| new.remove());
    }
}

impl Beside for SnapshotDisks {
    fn sync(&mut self) -> Result<()> {
        self.disks.iter_mut().try_for_each(|(disk, _)| disk.sync())
    }

    /// One disk after the other.
    fn iterate(&mut self, budget: u64) -> Result<bool> {
        for (disk, _) in &mut self.disks {
            if !disk.iterate(budget)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn complete(&mut self) -> Result<()> {
        self.disks.iter_mut().try_for_each(|(disk, _)| disk.complete())
    }

    fn pending(&self) -> u64 {
        self.disks.iter().map(|(disk, _)| disk.pending()).fold(0, u64::saturating_add)
    }

    fn copied(&self) -> u64 {
        self.disks.iter().map(|(disk, _)| disk.count().figures().transferred).sum()
    }
}

fn refused(error: &OwnershipError) -> String {
    format!("{}; name a file on a file system with locks", chain(error))
}
