//! A virtio device with the queues of the crate `virtio-queue`: they are fields like any other, and a stream whose queue no
//! driver could have set up is refused.
//!
//! `cargo run --example virtio --features virtio-queue`

use std::error::Error;

use virtio_queue::{Queue, QueueT};
use vmstate::codec::{Reader, Writer};
use vmstate::{ErrorKind, VmState, Wire};

/// Of the virtio specification: the device has given up until the driver resets it.
const NEEDS_RESET: u8 = 64;

/// An entropy device: a transport's registers, and one queue.
#[derive(VmState)]
#[vmstate(name = "virtio-rng", version = 1, validate = Self::is_what_a_driver_can_do, post_load = Self::look_again)]
struct Rng {
    /// What the device offers is configuration: both sides must offer the same.
    #[vmstate(equal)]
    offered: u64,
    accepted: u64,
    status: u8,
    queue: Queue,
    /// The driver has put buffers there and the device has not looked yet. Host side: after a load the device looks anyway.
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

    /// The ring's indices and descriptors are the guest's: they are checked when the device works, as ever, not here.
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

    // Another offer is another device: the stream is of a machine that is configured otherwise.
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
    fn queues_travel_and_another_configuration_is_refused() {
        super::main().unwrap();
    }
}
