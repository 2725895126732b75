//! The host's side of the devices, opened once: a reset makes new devices, but the guest keeps its disks and console.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Config;
use crate::devices::virtio::blk::{Image, ImageError};
use crate::devices::virtio::net::{Tap, TapError};
use crate::error::{Error, Result};

/// Open files of the host.
pub struct Backends {
    /// Takes what the serial port prints.
    pub(super) console: SharedWriter,
    /// Disk images, in the order of the command line.
    pub(super) images: Vec<Arc<Image>>,
    /// Network cards' taps and addresses, in the order of the command line.
    pub(super) nets: Vec<(Tap, [u8; 6])>,
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
    /// Opens what `config` names; the serial port prints to `console`. Images are locked, unless the machine waits for
    /// a migration: they belong to its source until that hands over.
    ///
    /// # Errors
    /// [`Error::Flag`].
    pub fn open(config: &Config, console: Box<dyn Write + Send>) -> Result<Self> {
        let images = config.disks.iter().map(|disk| {
            let image = Image::open(&disk.path, disk.read_only)?;
            if config.incoming.is_none() {
                image.lock()?;
            }
            Ok(Arc::new(image))
        });
        let images = images.collect::<Result<_, ImageError>>().map_err(refused)?;
        let nets = (0..).zip(&config.nets).map(|(index, net)| {
            let mut mac = FIRST_MAC;
            mac[5] += index;
            Tap::open(&net.tap).map(|tap| (tap, net.mac.unwrap_or(mac)))
        });
        let nets = nets.collect::<Result<_, TapError>>();
        let nets = nets.map_err(|error| Error::Flag { flag: "--net", what: error.to_string() })?;
        Ok(Self { console: SharedWriter(Arc::new(Mutex::new(console))), images, nets })
    }
}

/// A disk that cannot be used, with the flag that named it.
fn refused(error: ImageError) -> Error {
    let mend = match error {
        ImageError::InUse { .. } => "end that process or give another image",
        _ => "give a raw disk image that may be opened",
    };
    Error::Flag { flag: "--disk", what: format!("{error}; {mend}") }
}

/// A writer that outlives each of the devices that write to it.
#[derive(Clone)]
pub(super) struct SharedWriter(Arc<Mutex<Box<dyn Write + Send>>>);

impl Write for SharedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}
