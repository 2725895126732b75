//! Earlier releases of minivmm: their streams load here, and this release writes streams for them.

mod locks;
mod migrate_older;
mod older_release;

use std::sync::{Arc, Mutex};

use minivmm::migration::ownership::Tickets;
use minivmm::migration::sections::{MachineState, Parts};
use vmstate::section::Sections;

/// Makes the sections of a machine with two vCPUs, and without devices.
fn machine() -> Sections<'static> {
    let state = Arc::new(Mutex::new(MachineState::new(2)));
    let tickets = Arc::new(Mutex::new(Tickets::new(&[])));
    Parts {
        state,
        vcpus: 2,
        tickets,
        devices: Vec::new(),
        generation: Arc::default(),
        bitmaps: Arc::default(),
        disks: Vec::new(),
    }
    .sections()
    .unwrap()
}
