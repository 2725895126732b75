//! Section `minivmm/in-transit`: bytes between the guest and its console and networks, when the guest is handed over with their
//! descriptors to another process of its host. The driver collects them once vCPUs and devices are stopped, and gives them to the
//! devices after a load; a source to which the guest returns still has them.

use vmstate::VmState;

use crate::devices::serial::{INPUT_CAPACITY, OUTPUT_CAPACITY};
use crate::devices::virtio::net;

/// Most cards of a machine: one for each virtio-mmio window.
const CARDS_MAX: usize = 8;
/// Most output: what a console may keep, and what a guest of a QEMU came with.
const OUTPUT_MAX: usize = OUTPUT_CAPACITY + 64;

/// The section, version 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, VmState)]
#[vmstate(name = "minivmm/in-transit", version = 1, needed = Self::is_present, post_load = Self::accept)]
pub struct InTransit {
    /// Input of the console that the guest has not received.
    #[vmstate(counted = u32, max = INPUT_CAPACITY)]
    pub input: Vec<u8>,
    /// Output of the guest that is not written.
    #[vmstate(counted = u32, max = OUTPUT_MAX)]
    pub output: Vec<u8>,
    /// Network cards, in the order of the command line.
    #[vmstate(counted = u8, max = CARDS_MAX)]
    pub cards: Vec<net::InTransit>,
    /// Set by a source that hands descriptors over, and by a load. Without it the section is not sent.
    #[vmstate(skip)]
    pub present: bool,
}

impl InTransit {
    /// Name of the section.
    pub const SECTION: &str = "minivmm/in-transit";

    fn is_present(&self) -> bool {
        self.present
    }

    fn accept(&mut self, _version: u32) -> Result<(), String> {
        self.cards.iter().try_for_each(net::InTransit::check)?;
        self.present = true;
        Ok(())
    }
}
