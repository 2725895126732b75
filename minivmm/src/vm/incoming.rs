//! An incoming migration: a thread that waits for the source, runs the engine and asks the driver for what only the
//! driver may do.

use std::io;
use std::sync::Arc;

use vmstate::channel::{Listener, MonotonicClock};
use vmstate::migrate::Control;
use vmstate::migrate::destination::{self, DestinationOptions, Incoming};

use crate::boot::layout::MACHINE_TYPE;
use crate::config::Address;
use crate::devices::virtio::blk::Image;
use crate::error::{Error, Result, chain};
use crate::migration::ram::MachineRam;
use crate::migration::sections::Parts;
use crate::vm::handle::{Handle, Request};
use crate::vm::seam::{self, Seam};

/// The address at which the source is awaited. A unix socket's file goes with it.
#[derive(Debug)]
pub(super) struct Door {
    listener: Listener,
}

impl Door {
    /// Listens, so that a source may connect from now on.
    ///
    /// # Errors
    /// [`Error::Flag`].
    pub(super) fn open(address: &Address) -> Result<Self> {
        let listener = match address {
            Address::Unix(path) => Listener::unix(path),
            Address::Tcp(host_and_port) => Listener::tcp(host_and_port.as_str()),
        };
        let what = |error: io::Error| format!("{address}: {error}; give an address that nobody listens at");
        listener
            .map(|listener| Self { listener })
            .map_err(|error| Error::Flag { flag: "--incoming", what: what(error) })
    }
}

/// What the thread works with.
pub(super) struct Reception {
    pub(super) door: Door,
    pub(super) parts: Parts,
    pub(super) ram: MachineRam,
    pub(super) images: Vec<Arc<Image>>,
    pub(super) handle: Handle,
    pub(super) control: Control,
}

impl Reception {
    /// Begins; the end is told to the driver.
    ///
    /// # Errors
    /// The host gives no thread.
    pub(super) fn begin(self) -> io::Result<()> {
        seam::spawn(self.handle.clone(), || self.run(), Err, Request::Arrived)
    }

    fn run(self) -> std::result::Result<(), String> {
        let mut channel = self.door.listener.accept_source(&|| true).map_err(|error| error.to_string())?;
        drop(self.door);
        let mut sections = self.parts.sections().map_err(|error| chain(&error))?;
        let incoming = Incoming {
            channel: &mut channel,
            clock: &MonotonicClock::new(),
            machine: &mut Seam::new(self.handle, &self.images),
            sections: &mut sections,
            ram: &self.ram,
        };
        let options = DestinationOptions::new(MACHINE_TYPE);
        destination::run(incoming, &options, &self.control).into_result().map(drop).map_err(|error| chain(&error))
    }
}
