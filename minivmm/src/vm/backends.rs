//! The host's side of the devices, opened once: a reset makes new devices, but the guest keeps its disks and console.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use vmstate::ownership::{Ownership, OwnershipError, Resource, Role};

use crate::boot;
use crate::config::Config;
use crate::devices::serial::Output;
use crate::devices::virtio::Limiter;
use crate::devices::virtio::blk::Image;
use crate::devices::virtio::net::{AttachError, Attachment, Directions};
use crate::error::{Error, Result, chain};
use crate::files::{self, Fit, Mode};
use crate::memory::Ram;
use crate::passed;
use crate::vm::migration::WriteBack;

/// What a machine boots, also after a reset: files that stay open, for a confined process opens no others.
#[derive(Debug)]
pub struct BootImages {
    pub(super) kernel: boot::BootFile,
    pub(super) initrd: Option<boot::BootFile>,
}

/// Open files of the host.
pub struct Backends {
    /// None where the machine only waits for a migration.
    pub(super) boot: Option<BootImages>,
    /// Takes what the serial port prints.
    pub(super) console: Output,
    /// Disk images, in the order of the command line.
    pub(super) images: Vec<Arc<Image>>,
    /// Writes them back when the guest moves.
    pub(super) write_back: WriteBack,
    /// Limits of their requests.
    pub(super) disk_limits: Vec<Limiter>,
    /// Ownership of the guest: the locks and records of its writable images, and of its lease.
    pub(super) ownership: Arc<Ownership>,
    /// Network cards' networks and addresses, in the order of the command line.
    pub(super) nets: Vec<(Attachment, [u8; 6])>,
    /// Limits of their frames.
    pub(super) net_limits: Vec<Directions>,
}

/// QEMU's address of its first card; each further one adds 1.
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
    /// Opens what `config` names; the serial port prints to `console`. Writable images and the lease are locked, unless
    /// the machine waits for a migration: they belong to its source until that hands over. Read-only images are locked
    /// against writers in any case.
    ///
    /// # Errors
    /// [`Error::Flag`]; [`Error::Device`] if cannot spawn the thread for the console.
    pub fn open(config: &Config, ram: &Ram, console: Box<dyn Write + Send>) -> Result<Self> {
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
            Ok((Attachment::open(net, ram)?, net.mac.unwrap_or(mac)))
        });
        let nets = nets.collect::<Result<_, AttachError>>();
        let nets = nets.map_err(|error| Error::Flag { flag: "--net", what: error.to_string() })?;
        let console = Output::new(console).map_err(Error::device)?;
        let (write_back, ownership) = (WriteBack::new(&images), Arc::new(ownership));
        Ok(Self { boot, console, images, write_back, disk_limits, ownership, nets, net_limits })
    }

    /// Before a booted guest's first instruction: whoever has an older state of it, and these resources, must not run it
    /// any more.
    ///
    /// # Errors
    /// [`Error::Flag`].
    pub(super) fn advance(&self, config: &Config) -> Result<()> {
        self.ownership.advance().map_err(|error| refused(config, error))
    }

    /// Takes the marks off that kept guests off the images, for this machine's guest goes on with them.
    ///
    /// # Errors
    /// The disk failed.
    pub(super) fn unmark(&self) -> io::Result<()> {
        self.images.iter().try_for_each(|image| image.unmark())
    }
}

/// The file that is nothing but a record with a lock.
fn lease(path: &Path) -> Result<Resource, OwnershipError> {
    if passed::reference(path).is_none() {
        return Resource::lease(path);
    }
    let file = files::open(path, Mode::ReadWrite, Fit::Regular);
    Resource::lease_of(file.map_err(|source| OwnershipError::Open { path: path.into(), source })?, path)
}

/// A file that cannot be used, with the flag that named it.
fn refused(config: &Config, error: OwnershipError) -> Error {
    let is_lease = config.lease.is_some() && error.path() == config.lease.as_deref();
    let mend = match (&error, is_lease) {
        (OwnershipError::InUse { .. }, _) => "end that process or give another file",
        (OwnershipError::Record { .. }, true) => "give a file that holds nothing else",
        (OwnershipError::Record { .. }, false) => "remove that attribute (setfattr -x) if no newer release needs it",
        (_, true) => "give a file that may be made, written and locked",
        (_, false) => "give a raw disk image that may be opened and locked",
    };
    let flag = if is_lease { "--lease" } else { "--disk" };
    Error::Flag { flag, what: format!("{}; {mend}", chain(&error)) }
}
