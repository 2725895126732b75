//! A virtio device with queues of the crate `virtio-queue`: they are fields like any other, and a stream whose queue no driver
//! could have set up is refused.
//!
//! `cargo run --example virtio --features virtio-queue`

use std::error::Error;

use virtio_queue::{Queue, QueueT};
use vmstate::codec::{Reader, Writer};
use vmstate::{ErrorKind, VmState, Wire};

/// Device status bit of the virtio specification: the device stops until the driver resets it.
const NEEDS_RESET: u8 = 64;

/// An entropy device: a transport's registers, and one queue.
#[derive(VmState)]
#[vmstate(name = "virtio-rng", version = 1, validate = Self::is_what_a_driver_can_do, post_load = Self::look_again)]
struct Rng {
    /// The offered features are configuration: both sides must offer the same.
    #[vmstate(equal)]
    offered: u64,
    accepted: u64,
    status: u8,
    queue: Queue,
    /// The driver has added buffers that the device has not processed yet. This is host state: after a load, the device checks
    /// the queue anyway.
    #[vmstate(skip)]
    notified: bool,
}

impl Rng {
    fn new() -> Result<Self, virtio_queue::Error> {
        Ok(Self { offered: 1 << 32, accepted: 0, status: 0, queue: Queue::new(256)?, notified: false })
    }

    fn is_what_a_driver_can_do(&self) -> Result<(), String> {
        match self.accepted & !self.offered {
            0 => Ok(()),
            more => Err(format!("the driver accepted features that are not offered: {more:#x}")),
        }
    }

    /// The ring's indices and descriptors belong to the guest: the device checks them when it processes the queue, as always, and
    /// not here.
    fn look_again(&mut self, _version: u32) -> Result<(), String> {
        self.notified = self.queue.ready() && self.status & NEEDS_RESET == 0;
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut here = Rng::new()?;
    (here.accepted, here.status) = (1 << 32, 15);
    here.queue.set_size(64);
    here.queue.set_desc_table_address(Some(0x10000), None);
    here.queue.set_avail_ring_address(Some(0x11000), None);
    here.queue.set_used_ring_address(Some(0x12000), None);
    here.queue.set_ready(true);
    here.queue.set_next_avail(7);
    here.queue.set_next_used(6);

    let mut out = Writer::new();
    Wire::save(&mut here, &mut out)?;
    println!("{} bytes", out.len());
    let mut there = Rng::new()?;
    there.load_or_keep(&mut Reader::strict(out.as_slice()), 1)?;
    if there.queue != here.queue || !there.notified {
        return Err("the queue did not arrive, or nobody looks into it".into());
    }

    // Other offered features are another device: the stream comes from a machine with another configuration.
    let mut poorer = Rng { offered: 0, ..Rng::new()? };
    let error = poorer.load_or_keep(&mut Reader::strict(out.as_slice()), 1).err().ok_or("it was loaded")?;
    println!("refused: {error}");
    if error.kind() != ErrorKind::Incompatible || poorer.queue.ready() {
        return Err("the other configuration was not noticed, or the device changed".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn queues_load_and_another_configuration_is_refused() {
        super::main().unwrap();
    }
}
