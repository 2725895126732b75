//! Streams of earlier minivmms still load: the formats of disk and network card are locked.

use std::sync::Arc;

use minivmm::devices::Device;
use minivmm::devices::virtio::Model;
use minivmm::devices::virtio::blk::{Blk, Image};
use minivmm::devices::virtio::mmio::Virtio;
use minivmm::devices::virtio::net::Offloads;
use tempfile::NamedTempFile;

use crate::driver::{Driver, TIMEOUT, memory};
use crate::net::{net, rings};
use crate::state::{BLK, fixture, guest_of_fixture, load};

fn disk() -> Blk {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(16 << 20).unwrap();
    Blk::new(Arc::new(Image::open(file.path(), false).unwrap()))
}

/// Loads a device of a Linux guest in QEMU 10.0, with guest memory whose rings have these indices.
fn linux<M: Model>(model: M, name: &str, indices: &[(u64, u16)]) -> Virtio<M> {
    let mut device = Driver::new(model, guest_of_fixture(indices)).device;
    // A running device would read rings that are not there.
    device.pause(TIMEOUT).unwrap();
    load(&mut device, &fixture(name)).unwrap();
    device
}

#[test]
fn disk_stays_loadable() {
    let (name, rings) = BLK[0];
    vmstate::lock!(
        "tests/locks/virtio-blk",
        reset: Driver::new(disk(), memory()).device,
        linux: linux(disk(), name, &rings),
    );
}

#[test]
fn network_card_stays_loadable() {
    let card = || net(Offloads::default()).0;
    vmstate::lock!(
        "tests/locks/virtio-net",
        reset: Driver::new(card(), memory()).device,
        linux: linux(card(), "microvm-kvm-virtio-net", &rings([3, 9, 9])),
    );
}
