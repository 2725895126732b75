//! A device migrates at each step of its driver's initialization (virtio 1.2 §3.1.1), and the driver continues as if it had
//! not.

use std::sync::Arc;

use minivmm::devices::virtio::Model;
use minivmm::devices::virtio::blk::{Blk, Image};
use minivmm::devices::virtio::net::Offloads;
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{BUFFERS, Driver, EVENT_IDX, INDIRECT, VERSION_1, memory};
use crate::mmio::disk;
use crate::net::{
    CONTROL, CTRL_GUEST_OFFLOADS, CTRL_VQ, GUEST_CSUM, GUEST_TSO4, MRG_RXBUF, RECEIVE, STATUS, frame, net,
};
use crate::state::{flush, move_to};

/// Starts a driver with `features`, and moves its device to a new one, of `model`, after each register write.
fn start_and_move_at_each_step<M: Model>(
    mut driver: Driver<M>,
    features: u64,
    mut model: impl FnMut() -> M,
) -> Driver<M> {
    let features = features | VERSION_1;
    let mut writes = vec![(0x070, 1), (0x070, 3), (0x014, 1), (0x024, 0), (0x020, features as u32)];
    writes.extend([(0x024, 1), (0x020, (features >> 32) as u32), (0x070, 11)]);
    for (queue, index) in driver.queues.iter_mut().zip(0u32..) {
        queue.event_idx = features & EVENT_IDX != 0;
        writes.extend([(0x030, index), (0x038, u32::from(queue.size))]);
        for (register, address) in queue.addresses() {
            writes.extend([(register, address as u32), (register + 4, (address >> 32) as u32)]);
        }
        writes.push((0x044, 1));
    }
    writes.push((0x070, 15));
    for (register, value) in writes {
        driver.write32(register, value);
        driver = move_to(driver, model());
        if register == 0x070 {
            assert_eq!(driver.read32(0x070), value);
        }
    }
    driver
}

#[test]
fn a_disk_moves_at_each_step_of_its_start() {
    for features in [0, EVENT_IDX | INDIRECT, EVENT_IDX | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 11] {
        let (driver, file) = disk(4096);
        let image = || Blk::new(Arc::new(Image::open(file.path(), false).unwrap()));
        let mut driver = start_and_move_at_each_step(driver, features, image);
        for _ in 0..40 {
            assert_eq!(flush(&mut driver), 0);
        }
    }
}

#[test]
fn a_card_moves_at_each_step_of_its_start() {
    let offloads = GUEST_CSUM | GUEST_TSO4 | 1;
    for features in [0, EVENT_IDX | MRG_RXBUF, offloads | CTRL_VQ | STATUS, offloads | CTRL_GUEST_OFFLOADS | CTRL_VQ] {
        let mut network = None;
        let driver = Driver::new(net(Offloads::ALL).0, memory());
        let mut driver = start_and_move_at_each_step(driver, features, || {
            let (model, wire) = net(Offloads::ALL);
            network = Some(wire);
            model
        });
        let network = network.unwrap();
        let agreed = features & (GUEST_CSUM | GUEST_TSO4);
        assert_eq!(network.set.lock().unwrap().0, agreed, "the backend of the last card was told");
        driver.queues[RECEIVE].offer(&[(BUFFERS, 2000, true)]);
        driver.notify(RECEIVE);
        network.socket.send(&frame(&[7; 100])).unwrap();
        assert_eq!(driver.wait(RECEIVE).1, 112);
        driver.memory.write_slice(&[0, 0, 1], GuestAddress(BUFFERS)).unwrap();
        driver.request(CONTROL, &[(BUFFERS, 3, false), (BUFFERS + 64, 1, true)]);
        assert_eq!(driver.memory.read_obj::<u8>(GuestAddress(BUFFERS + 64)).unwrap(), 0, "promiscuous on");
    }
}

/// The negotiated features apply, instead of those at the time when a queue was set up.
#[test]
fn a_queue_that_was_ready_before_the_features_works_as_agreed() {
    let (mut driver, _file) = disk(4096);
    driver.write32(0x070, 3);
    let write = |driver: &mut Driver<Blk>, features: u64| {
        for (half, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            driver.write32(0x024, half);
            driver.write32(0x020, word);
        }
    };
    write(&mut driver, VERSION_1);
    driver.set_up_queue(0);
    write(&mut driver, VERSION_1 | EVENT_IDX);
    driver.write32(0x070, 15);
    assert_eq!(driver.read32(0x070), 15);
    driver.queues[0].event_idx = true;
    for _ in 0..40 {
        assert_eq!(flush(&mut driver), 0);
    }
    // §2.7.7: with the feature, this index and not a flag suppresses interrupts.
    driver.queues[0].offer(&[(BUFFERS, 16, false), (BUFFERS + 64, 1, true)]);
    driver.queues[0].set_used_event(1000);
    driver.notify(0);
    driver.queues[0].wait_used();
    assert!(!driver.line.is_high(), "nobody asked for an interrupt");
}
