//! Host side of the devices, opened once: a reset makes new devices, but the guest keeps its disks and its console.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use vmstate::ownership::{Ownership, OwnershipError, Resource, Role};

use crate::boot;
use crate::config::Config;
use crate::devices::serial::{Output, Sink};
use crate::devices::virtio::Limiter;
use crate::devices::virtio::blk::Image;
use crate::devices::virtio::net::{AttachError, Attachment, Directions};
use crate::error::{Error, Result, chain};
use crate::files::{self, Fit, Mode};
use crate::memory::Ram;
use crate::passed;
use crate::vm::migration::WriteBack;
use crate::vm::migration::handover::stream;

/// Boot files, also for a reset; they stay open, since a confined process can open no others.
#[derive(Debug)]
pub struct BootImages {
    pub(super) kernel: boot::BootFile,
    pub(super) initrd: Option<boot::BootFile>,
}

/// Open files of the host.
pub struct Backends {
    /// Boot files; `None` if the machine only waits for a migration.
    pub(super) boot: Option<BootImages>,
    /// Output of the serial port.
    pub(super) console: Output,
    /// Disk images, in the order of the command line.
    pub(super) images: Vec<Arc<Image>>,
    /// Writes the images back before the guest moves.
    pub(super) write_back: WriteBack,
    /// Rate limits of the disks.
    pub(super) disk_limits: Vec<Limiter>,
    /// Ownership of the guest: locks and records of its writable images and of its lease.
    pub(super) ownership: Arc<Ownership>,
    /// Networks and addresses of the network cards, in the order of the command line.
    pub(super) nets: Vec<(Attachment, [u8; 6])>,
    /// Rate limits of the cards.
    pub(super) net_limits: Vec<Directions>,
    /// Descriptors of the process, not of the guest, that another process of this host continues with, by name.
    pub(super) of_process: Vec<(&'static str, OwnedFd)>,
}

/// QEMU's address of its first card; each further card adds 1.
const FIRST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backends")
            .field("images", &self.images.len())
            .field("nets", &self.nets.len())
            .finish_non_exhaustive()
    }
}

impl Backends {
    /// Opens the files that `config` names, but for those that were `handed_over` with the guest; the serial port prints to
    /// `console`. Writable images and the lease are locked,
    /// unless the machine waits for a migration, whose source owns them until it hands over. Read-only images are always locked
    /// against writers.
    ///
    /// # Errors
    /// [`Error::Flag`]; [`Error::Device`] if the console's thread cannot be spawned.
    pub fn open(config: &Config, ram: &Ram, console: Sink, mut handed_over: BTreeMap<String, OwnedFd>) -> Result<Self> {
        let refused = |error| refused(config, error);
        let boot = match &config.kernel {
            None => None,
            Some(kernel) => Some(BootImages {
                kernel: boot::BootFile::open("--kernel", kernel)?,
                initrd: config.initrd.as_deref().map(|path| boot::BootFile::open("--initrd", path)).transpose()?,
            }),
        };
        let images = config.disks.iter().map(|disk| match disk.create {
            None => Image::open(&disk.path, disk.read_only).map(Arc::new),
            Some(bytes) => Image::create(&disk.path, bytes).map(Arc::new),
        });
        let images = images.collect::<Result<Vec<_>, _>>().map_err(refused)?;
        let lease = config.lease.as_deref().map(lease).transpose().map_err(refused)?;
        let disks = (0..).map(Role::Disk).zip(images.iter().map(|image| Arc::clone(image.resource())));
        let ownership = Ownership::new(disks.chain(lease.map(|lease| (Role::Lease, Arc::new(lease)))));
        let ownership = ownership.map_err(refused)?;
        let made = (0..).map(Role::Disk).zip(&config.disks).filter(|(_, disk)| disk.create.is_some());
        ownership.leave_out(&made.map(|(role, _)| role).collect::<Vec<_>>());
        if config.incoming.is_none() {
            ownership.take().map_err(refused)?;
        }
        let disk_limits = config.disks.iter().map(|disk| Limiter::new(disk.limits)).collect();
        let directions = |limits| Directions { receive: Limiter::new(limits), transmit: Limiter::new(limits) };
        let net_limits = config.nets.iter().map(|net| directions(net.limits)).collect();
        let nets = (0..).zip(&config.nets).map(|(index, net)| {
            let mut mac = FIRST_MAC;
            mac[5] += index;
            let connection = handed_over.remove(&stream(index.into()));
            Ok((Attachment::open(net, ram, connection)?, net.mac.unwrap_or(mac)))
        });
        let nets = nets.collect::<Result<_, AttachError>>();
        let nets = nets.map_err(|error| Error::Flag { flag: "--net", what: error.to_string() })?;
        let console = Output::new(console).map_err(Error::device)?;
        let (write_back, ownership) = (WriteBack::new(&images), Arc::new(ownership));
        Ok(Self { boot, console, images, write_back, disk_limits, ownership, nets, net_limits, of_process: Vec::new() })
    }

    /// Advances the ownership records before a booted guest's first instruction: a process with an older state of the guest and
    /// these resources must not run it any more.
    ///
    /// # Errors
    /// [`Error::Flag`].
    pub(super) fn advance(&self, config: &Config) -> Result<()> {
        self.ownership.advance().map_err(|error| refused(config, error))
    }

    /// Removes the marks that keep guests off the images, since this machine's guest uses them now.
    ///
    /// # Errors
    /// The disk failed.
    pub(super) fn unmark(&self) -> io::Result<()> {
        self.images.iter().try_for_each(|image| image.unmark())
    }
}

/// Opens the lease, a file that has only a lock and a record.
fn lease(path: &Path) -> Result<Resource, OwnershipError> {
    if passed::reference(path).is_none() {
        return Resource::lease(path);
    }
    let file = files::open(path, Mode::ReadWrite, Fit::Regular);
    Resource::lease_of(file.map_err(|source| OwnershipError::Open { path: path.into(), source })?, path)
}

/// Adds the flag that named the file to an ownership error.
fn refused(config: &Config, error: OwnershipError) -> Error {
    let is_lease = config.lease.is_some() && error.path() == config.lease.as_deref();
    let remedy = match (&error, is_lease) {
        (OwnershipError::InUse { .. }, _) => "end that process or give another file",
        (OwnershipError::Record { .. }, true) => "give a file that holds nothing else",
        (OwnershipError::Record { .. }, false) => "remove that attribute (setfattr -x) if no newer release needs it",
        (_, true) => "give a file that may be made, written and locked",
        (_, false) => "give a raw disk image that may be opened and locked",
    };
    let flag = if is_lease { "--lease" } else { "--disk" };
    Error::Flag { flag, what: format!("{}; {remedy}", chain(&error)) }
}
