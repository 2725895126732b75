//! Disks whose content is sent: their sections, and the marks that keep guests off a copy that is not the guest's.

use std::io;
use std::sync::{Arc, Mutex};

use vmstate::ownership::Role;

use crate::config::Address;
use crate::devices::virtio::blk::{Image, Mark, node_name};
use crate::migration::disk::{Arrival, DiskCount, DiskSection, SharedDisk};
use crate::sync::lock;
use crate::vm::request::DiskCopies;

/// Why the content of disks is not sent to a file or to a process of this host.
pub(super) const NO_MACHINE: &str = "disks are copied to another machine, or beside the file of a guest that keeps running: leave out copy-disk, and copy the images \
     while the guest is paused";

/// Writable disks of a machine, all of them or some.
#[derive(Clone, Debug, Default)]
pub(super) struct CopiedDisks(Vec<CopiedDisk>);

#[derive(Clone, Debug)]
struct CopiedDisk {
    /// Index in the order of all disks.
    index: u8,
    image: Arc<Image>,
    section: SharedDisk,
}

impl CopiedDisks {
    /// Selects all disks that the guest may write.
    pub(super) fn writable(images: &[Arc<Image>]) -> Self {
        let writable = (0..).zip(images).filter(|(_, image)| !image.is_read_only());
        let disk = |(index, image): (u8, &Arc<Image>)| CopiedDisk {
            index,
            image: Arc::clone(image),
            section: Arc::new(Mutex::new(DiskSection::new(image))),
        };
        Self(writable.map(disk).collect())
    }

    /// Source: selects the disks whose content is sent.
    ///
    /// # Errors
    /// A name is no writable disk's: the reason, as a sentence for the user.
    pub(super) fn selected(images: &[Arc<Image>], copies: &DiskCopies) -> Result<Self, String> {
        let all = Self::writable(images);
        let names = match copies {
            DiskCopies::None => return Ok(Self::default()),
            DiskCopies::All => return Ok(all),
            DiskCopies::Named(names) => names,
        };
        let known: Vec<_> = all.0.iter().map(CopiedDisk::name).collect();
        if let Some(name) = names.iter().find(|name| !known.contains(name)) {
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(format!("disk '{name}' cannot be copied: the writable disks are {known}"));
        }
        Ok(Self(all.0.into_iter().filter(|disk| names.contains(&disk.name())).collect()))
    }

    /// Index, name and image of each disk.
    pub(super) fn images(&self) -> impl Iterator<Item = (u8, String, &Arc<Image>)> {
        self.0.iter().map(|disk| (disk.index, disk.name(), &disk.image))
    }

    /// Sections of the disks, by instance.
    pub(super) fn sections(&self) -> Vec<(u32, SharedDisk)> {
        self.0.iter().map(|disk| (disk.index.into(), Arc::clone(&disk.section))).collect()
    }

    /// Source: counts of the disks' senders.
    pub(super) fn counts(&self) -> Vec<Arc<DiskCount>> {
        self.0.iter().map(|disk| lock(&disk.section).count()).collect()
    }

    /// Ownership roles of the disks.
    pub(super) fn roles(&self) -> Vec<Role> {
        self.0.iter().map(|disk| Role::Disk(disk.index)).collect()
    }

    /// Source, before anything is opened or sent: checks that `to` is on another machine, as far as the address shows that, and
    /// that each image can have a mark.
    ///
    /// # Errors
    /// The reason, as a sentence for the user.
    pub(super) fn check(&self, to: &Address) -> Result<(), String> {
        if matches!(to, Address::File { .. } | Address::Local(_)) {
            return Err(format!("{to}: {NO_MACHINE}"));
        }
        let refused = |image: &Image, error| {
            let path = image.resource().path().display();
            format!(
                "{path} cannot be copied, for it cannot have the mark of a stale image: {error}; a copy needs an image that is a \
                     file, on a file system with extended attributes"
            )
        };
        self.0.iter().try_for_each(|disk| disk.image.check_markable().map_err(|error| refused(&disk.image, error)))
    }

    /// Source: marks the images as stale, since the guest leaves with copies of them.
    ///
    /// # Errors
    /// One of them cannot be marked.
    pub(super) fn mark_stale(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|disk| disk.image.mark(Mark::Stale))
    }

    /// Removes the marks.
    ///
    /// # Errors
    /// An image keeps its mark.
    pub(super) fn unmark(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|disk| disk.image.unmark())
    }

    /// Destination: resets the disks' sections for the next source.
    pub(super) fn await_source(&self) {
        for disk in &self.0 {
            lock(&disk.section).await_source();
        }
    }

    /// Destination: describes the disks that are to receive their content, but that the source does not send.
    pub(super) fn lacking(&self) -> Vec<String> {
        let lacks = |disk: &&CopiedDisk| disk.arrival() == Arrival::None;
        let sentence = |disk: &CopiedDisk| {
            let (name, path) = (disk.name(), disk.image.resource().path().display());
            format!(
                "the content of disk '{name}' ({path}) is expected from the source (create=), which does not send it: use \
                     minivmm migrate --copy-disk or --copy-disk={name} there"
            )
        };
        self.expected().filter(lacks).map(sentence).collect()
    }

    /// Destination: describes the disks whose content is incomplete.
    pub(super) fn incomplete(&self) -> Vec<String> {
        let incomplete = self.expected().filter(|disk| disk.arrival() != Arrival::Whole);
        incomplete.map(|disk| format!("the content of disk '{}' has not arrived completely", disk.name())).collect()
    }

    fn expected(&self) -> impl Iterator<Item = &CopiedDisk> {
        self.0.iter().filter(|disk| disk.image.marked() == Some(Mark::Incomplete))
    }
}

impl CopiedDisk {
    fn name(&self) -> String {
        node_name(self.index.into())
    }

    fn arrival(&self) -> Arrival {
        lock(&self.section).arrival()
    }
}
