//! Drivers that violate the protocol: the device asks for a reset, and never panics or hangs.

use proptest::prelude::*;

use crate::driver::{BUFFERS, EVENT_IDX, INDIRECT, INDIRECT_DESCRIPTOR, MEMORY, NEXT, QUEUE_SIZE, WRITE};
use crate::mmio::disk;

/// Checks that the device breaks, and that a reset makes it work again.
fn breaks(act: impl FnOnce(&mut crate::driver::Driver<minivmm::devices::virtio::blk::Blk>)) {
    let (mut driver, _file) = disk(4096);
    driver.start(INDIRECT);
    act(&mut driver);
    driver.notify(0);
    driver.until("DEVICE_NEEDS_RESET", |driver| driver.read32(0x070) & 0x40 != 0);
    assert_eq!(driver.read32(0x060) & 2, 2, "told by an interrupt");
    assert_eq!(driver.queues[0].used_index(), 0, "nothing was given back");
    driver.write32(0x070, 0);
    assert_eq!(driver.read32(0x070), 0);
}

/// A flush that would be served if its chain ended here.
fn flush_with_more(driver: &mut crate::driver::Driver<minivmm::devices::virtio::blk::Blk>, next: u16) {
    use vm_memory::{Bytes, GuestAddress};
    driver.memory.write_slice(&[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], GuestAddress(BUFFERS)).unwrap();
    driver.queues[0].descriptor(0, BUFFERS, 16, NEXT, 1);
    driver.queues[0].descriptor(1, BUFFERS + 64, 1, NEXT | WRITE, next);
    driver.queues[0].publish(0);
}

#[test]
fn endless_chain() {
    breaks(|driver| flush_with_more(driver, 1));
}

#[test]
fn head_out_of_bounds() {
    breaks(|driver| driver.queues[0].publish(QUEUE_SIZE));
}

#[test]
fn next_out_of_bounds() {
    breaks(|driver| flush_with_more(driver, QUEUE_SIZE));
}

#[test]
fn readable_after_writable() {
    breaks(|driver| {
        driver.queues[0].offer(&[(BUFFERS, 16, true), (BUFFERS, 16, false)]);
    });
}

#[test]
fn index_too_far_ahead() {
    breaks(|driver| driver.queues[0].set_available(QUEUE_SIZE + 1));
}

#[test]
fn buffers_outside_memory() {
    breaks(|driver| {
        driver.queues[0].offer(&[(MEMORY as u64 - 8, 16, false), (BUFFERS, 1, true)]);
    });
    breaks(|driver| {
        driver.queues[0].offer(&[(BUFFERS, 16, false), (u64::MAX - 3, 16, true)]);
    });
}

#[test]
fn no_status_or_no_header() {
    breaks(|driver| {
        driver.queues[0].offer(&[(BUFFERS, 16, false)]);
    });
    breaks(|driver| {
        driver.queues[0].offer(&[(BUFFERS, 15, false), (BUFFERS, 1, true)]);
    });
    breaks(|driver| {
        driver.queues[0].offer(&[(BUFFERS, 16, false), (BUFFERS, 0, true)]);
    });
}

#[test]
fn indirect_table_of_half_a_descriptor_or_in_a_table() {
    breaks(|driver| {
        driver.queues[0].descriptor(0, BUFFERS, 24, INDIRECT_DESCRIPTOR, 0);
        driver.queues[0].publish(0);
    });
    breaks(|driver| {
        use vm_memory::{Bytes, GuestAddress};
        driver.memory.write_obj(BUFFERS, GuestAddress(BUFFERS)).unwrap();
        driver.memory.write_obj(16u32, GuestAddress(BUFFERS + 8)).unwrap();
        driver.memory.write_obj(INDIRECT_DESCRIPTOR, GuestAddress(BUFFERS + 12)).unwrap();
        driver.queues[0].descriptor(0, BUFFERS, 16, INDIRECT_DESCRIPTOR, 0);
        driver.queues[0].publish(0);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any descriptors, heads and register writes: the device answers, breaks, or waits; then it can be reset.
    #[test]
    fn arbitrary_rings(
        descriptors in prop::collection::vec(
            (
                prop_oneof![0..MEMORY as u64, BUFFERS..BUFFERS + 64, any::<u64>()],
                prop_oneof![0..64u32, 0..=u32::MAX],
                prop_oneof![Just(0), Just(NEXT), Just(WRITE), Just(NEXT | WRITE), 0..8u16],
                0..QUEUE_SIZE + 1,
            ),
            QUEUE_SIZE as usize,
        ),
        heads in prop::collection::vec(0..QUEUE_SIZE + 1, 0..20),
        header in prop::array::uniform16(any::<u8>()),
        kind in 0..16u8,
        writes in prop::collection::vec((0..0x80u64, any::<u32>()), 0..8),
        event_idx in any::<bool>(),
    ) {
        use vm_memory::{Bytes, GuestAddress};
        let (mut driver, _file) = disk(64 << 10);
        driver.start(INDIRECT | if event_idx { EVENT_IDX } else { 0 });
        driver.memory.write_slice(&header, GuestAddress(BUFFERS)).unwrap();
        driver.memory.write_slice(&[kind, 0, 0, 0], GuestAddress(BUFFERS)).unwrap();
        for (index, &(address, len, flags, next)) in descriptors.iter().enumerate() {
            driver.queues[0].descriptor(index as u16, address, len, flags, next);
        }
        for &head in &heads {
            driver.queues[0].publish(head);
            driver.notify(0);
        }
        for &(register, value) in &writes {
            driver.write32(register * 4, value);
        }
        driver.write32(0x070, 0);
        prop_assert_eq!(driver.read32(0x070), 0);
    }
}
