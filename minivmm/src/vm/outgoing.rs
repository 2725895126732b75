//! An outgoing migration: a thread that runs the engine and asks the driver for what only the driver may do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vmstate::channel::{MonotonicClock, SocketChannel};
use vmstate::migrate::source::{self, Outgoing, SourceOptions};
use vmstate::migrate::{Control, SourcePhase};

use crate::boot::layout::MACHINE_TYPE;
use crate::config::Address;
use crate::devices::virtio::blk::Image;
use crate::error::chain;
use crate::migration::ram::{MachineDirtyLog, MachineRam};
use crate::migration::sections::Parts;
use crate::vm::handle::{Departed, Handle, MigrationStatus, Request, Shared};
use crate::vm::seam::{self, Seam};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// What the thread works with.
pub(super) struct Departure {
    pub(super) address: Address,
    pub(super) control: Control,
    pub(super) parts: Parts,
    pub(super) ram: MachineRam,
    pub(super) log: MachineDirtyLog,
    pub(super) images: Vec<Arc<Image>>,
    pub(super) handle: Handle,
    pub(super) shared: Arc<Shared>,
}

impl Departure {
    /// Begins; the end is told to the driver.
    ///
    /// # Errors
    /// The host gives no thread.
    pub(super) fn begin(self) -> io::Result<()> {
        seam::spawn(self.handle.clone(), || self.run(), Departed::Failed, Request::Departed)
    }

    fn run(mut self) -> Departed {
        let mut channel = match connect(&self.address) {
            Ok(channel) => channel,
            Err(error) => {
                return Departed::Failed(format!(
                    "{}: {error}; start the destination with --incoming and that address",
                    self.address
                ));
            }
        };
        let mut sections = match self.parts.sections() {
            Ok(sections) => sections,
            Err(error) => return Departed::Failed(chain(&error)),
        };
        self.shared.update_migration(|info| info.status = MigrationStatus::Active);
        let mut machine = Seam::new(self.handle, &self.images);
        let outgoing = Outgoing {
            channel: &mut channel,
            clock: &MonotonicClock::new(),
            machine: &mut machine,
            sections: &mut sections,
            ram: &self.ram,
            log: &mut self.log,
        };
        let departure = source::run(outgoing, &SourceOptions::new(MACHINE_TYPE), &self.control);
        let why = departure.error.as_ref().map(|error| chain(error)).unwrap_or_default();
        match departure.phase {
            SourcePhase::Completed => Departed::Sent,
            SourcePhase::Cancelled => Departed::Cancelled,
            SourcePhase::Unacknowledged => Departed::Unacknowledged(why),
            SourcePhase::Undecided => Departed::Undecided(why),
            _ => Departed::Failed(why),
        }
    }
}

fn connect(address: &Address) -> io::Result<SocketChannel> {
    match address {
        Address::Unix(path) => SocketChannel::connect_unix(path, CONNECT, &|| true),
        Address::Tcp(host_and_port) => SocketChannel::connect_tcp(host_and_port, CONNECT, &|| true),
    }
}
