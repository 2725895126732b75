//! Registers of the transport against virtio 1.2 §4.2.2.

use std::io::Write;
use std::sync::Arc;

use minivmm::bus::BusDevice;
use minivmm::devices::virtio::blk::{Blk, Image};
use tempfile::NamedTempFile;

use crate::driver::{Driver, EVENT_IDX, INDIRECT, VERSION_1, memory};

pub fn disk(bytes: usize) -> (Driver<Blk>, NamedTempFile) {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&vec![0; bytes]).unwrap();
    let image = Arc::new(Image::open(file.path(), false).unwrap());
    (Driver::new(Blk::new(image), memory()), file)
}

#[test]
fn identifies_itself() {
    let (mut driver, _file) = disk(512);
    assert_eq!(driver.read32(0x000).to_le_bytes(), *b"virt");
    assert_eq!(driver.read32(0x004), 2);
    assert_eq!(driver.read32(0x008), 2, "block device");
    assert_eq!(driver.read32(0x00c).to_le_bytes(), *b"QEMU");
    assert_eq!(driver.read32(0x070), 0, "reset");
}

#[test]
fn accesses_of_another_shape_read_zero_and_change_nothing() {
    let (mut driver, _file) = disk(512);
    let mut byte = [0xff];
    driver.device.read(0x000, &mut byte);
    assert_eq!(byte, [0]);
    let mut word = [0xff; 4];
    driver.device.read(0x002, &mut word);
    assert_eq!(word, [0; 4]);
    driver.device.write(0x070, &[1]);
    assert_eq!(driver.read32(0x070), 0);
}

#[test]
fn offers_version_1_and_the_ring_features() {
    let (mut driver, _file) = disk(512);
    let offered = driver.offered();
    assert_eq!(offered & (VERSION_1 | EVENT_IDX | INDIRECT), VERSION_1 | EVENT_IDX | INDIRECT);
    driver.write32(0x014, 2);
    assert_eq!(driver.read32(0x010), 0, "there are 64 bits");
}

#[test]
fn refuses_features_it_did_not_offer_and_drivers_of_before_version_1() {
    let (mut driver, _file) = disk(512);
    assert_eq!(driver.negotiate(VERSION_1), 11);
    assert_eq!(driver.negotiate(VERSION_1 | 1 << 40), 3, "not offered");
    assert_eq!(driver.negotiate(INDIRECT), 3, "legacy");
    driver.write32(0x070, 7);
    assert_eq!(driver.read32(0x070), 3, "DRIVER_OK without FEATURES_OK");
}

#[test]
fn features_are_fixed_by_features_ok() {
    let (mut driver, _file) = disk(512);
    assert_eq!(driver.negotiate(VERSION_1), 11);
    driver.write32(0x024, 1);
    driver.write32(0x020, 0x100);
    driver.write32(0x070, 15);
    assert_eq!(driver.read32(0x070), 15, "still the accepted set");
}

#[test]
fn queue_that_is_not_in_memory_needs_reset_and_reset_mends_it() {
    let (mut driver, _file) = disk(512);
    driver.negotiate(VERSION_1);
    driver.write32(0x030, 0);
    driver.write32(0x038, 16);
    driver.write32(0x084, 0x1000); // descriptor table at 16 TiB
    driver.write32(0x044, 1);
    assert_eq!(driver.read32(0x044), 0);
    assert_eq!(driver.read32(0x070) & 0x40, 0x40, "DEVICE_NEEDS_RESET");
    assert_eq!(driver.read32(0x060), 2, "configuration change interrupt");
    assert!(driver.line.is_high());
    driver.write32(0x070, 0);
    assert_eq!(driver.read32(0x070), 0);
    assert_eq!(driver.read32(0x060), 0);
    assert!(!driver.line.is_high());
    driver.start(0);
}

#[test]
fn queue_sizes_are_powers_of_two_up_to_the_maximum() {
    for (size, ready) in [(0, 0), (3, 0), (2048, 0), (0x1_0010, 0), (1, 1), (128, 1)] {
        let (mut driver, _file) = disk(512);
        driver.negotiate(VERSION_1);
        driver.write32(0x038, size);
        for (register, address) in [(0x080, 0x10_0000), (0x090, 0x11_0000), (0x0a0, 0x12_0000)] {
            driver.write32(register, address);
        }
        driver.write32(0x044, 1);
        assert_eq!(driver.read32(0x044), ready, "size {size:#x}");
    }
}

#[test]
fn only_queues_that_exist_have_registers() {
    let (mut driver, _file) = disk(512);
    assert_eq!(driver.read32(0x034), 1024);
    for absent in [1, 1024, 0x1_0000, u32::MAX] {
        driver.write32(0x030, absent);
        assert_eq!(driver.read32(0x034), 0, "queue {absent}");
        driver.write32(0x044, 1);
        driver.notify(absent as usize);
    }
}

#[test]
fn configuration_is_the_disk_and_reads_in_any_width() {
    let (mut driver, _file) = disk(1 << 20);
    let mut capacity = [0; 8];
    driver.device.read(0x100, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 2048, "sectors");
    let mut block = [0; 4];
    driver.device.read(0x114, &mut block);
    assert_eq!(u32::from_le_bytes(block), 512);
    let mut byte = [0];
    driver.device.read(0x120, &mut byte);
    assert_eq!(byte, [1], "write-back");
    driver.device.write(0x120, &[0]);
    driver.device.read(0x120, &mut byte);
    assert_eq!(byte, [0], "the driver may choose write-through");
    driver.device.write(0x100, &[9; 8]);
    driver.device.read(0x100, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 2048, "read-only");
    driver.device.read(0x1f8, &mut capacity);
    assert_eq!(capacity, [0; 8]);
    driver.device.write(0x1f8, &[1; 8]);
}

#[test]
fn no_shared_memory() {
    let (mut driver, _file) = disk(512);
    driver.write32(0x0ac, 0);
    assert_eq!((driver.read32(0x0b0), driver.read32(0x0b4)), (u32::MAX, u32::MAX));
}
