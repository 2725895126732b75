//! Costs that a guest's rings can cause at the host: descriptors, memory, processor time.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minivmm::devices::Device;
use minivmm::devices::virtio::Model;
use minivmm::devices::virtio::blk::{Blk, Image};
use minivmm::devices::virtio::net::Offloads;
use minivmm::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{BUFFERS, Buffer, Driver, EVENT_IDX, INDIRECT, memory};
use crate::mmio::disk;
use crate::net::{CONTROL, CTRL_VQ, MRG_RXBUF, RECEIVE, TRANSMIT, frame, net};
use crate::threads::processor_time;

/// Most descriptors that QEMU accepts in one chain (`VIRTQUEUE_MAX_SIZE`).
const CHAIN_MAX: usize = 1024;

/// Address of buffers that a table at [`BUFFERS`] describes: after the longest table.
const DATA: u64 = BUFFERS + (1 << 20);

fn breaks<M: Model>(driver: &mut Driver<M>, queue: usize) {
    driver.notify(queue);
    driver.until("DEVICE_NEEDS_RESET", |driver| driver.read32(0x070) & 0x40 != 0);
    assert_eq!(driver.queues[queue].used_index(), 0, "nothing was given back");
    let fault = driver.device.fault().unwrap();
    assert!(fault.contains("longer than 1024 descriptors"), "{fault}");
}

/// Makes one readable buffer of `first` bytes, then buffers of `len` bytes, `count` in all, then one that the device writes.
fn chain(first: u32, len: u32, count: usize, writes: bool) -> Vec<Buffer> {
    let mut buffers = vec![(DATA, len, writes); count];
    buffers[0] = (DATA + 0x8_0000, first, false);
    buffers[count - 1] = (DATA + 0x8_1000, 1, true);
    buffers
}

#[test]
fn a_disk_takes_chains_of_1024_descriptors_and_no_longer_ones() {
    let read = |count| {
        let (mut driver, _file) = disk(1 << 20);
        driver.start(INDIRECT);
        driver.queues[0].offer_table(BUFFERS, &chain(16, 512, count, true));
        driver
    };
    let mut driver = read(CHAIN_MAX);
    driver.notify(0);
    assert_eq!(driver.wait(0), (0, 1022 * 512 + 1));
    assert_eq!(driver.memory.read_obj::<u8>(GuestAddress(DATA + 0x8_1000)).unwrap(), 0, "done");
    breaks(&mut read(CHAIN_MAX + 1), 0);
}

#[test]
fn a_card_takes_chains_of_1024_descriptors_and_no_longer_ones() {
    let send = |count| vec![(DATA, 20u32, false); count];
    let command = |count| chain(2, 0, count, false);
    let receive = |count| vec![(DATA, 20u32, true); count];
    for (queue, buffers) in
        [(TRANSMIT, &send as &dyn Fn(usize) -> Vec<Buffer>), (CONTROL, &command), (RECEIVE, &receive)]
    {
        let offer = |count| {
            let (model, network) = net(Offloads::ALL);
            let mut driver = Driver::new(model, memory());
            driver.start(INDIRECT | CTRL_VQ | MRG_RXBUF);
            network.socket.send(&frame(&[7; 5000])).unwrap();
            driver.queues[queue].offer_table(BUFFERS, &buffers(count));
            (driver, network)
        };
        let (mut driver, _network) = offer(CHAIN_MAX);
        driver.notify(queue);
        driver.wait(queue);
        breaks(&mut offer(CHAIN_MAX + 1).0, queue);
    }
}

/// Makes a card's ring of 1,024 entries, each the same table of `len` bytes.
fn receive_ring_of_one_table(
    len: u32,
) -> (Driver<minivmm::devices::virtio::net::Net<crate::net::Wire>>, crate::net::Network) {
    let (model, network) = net(Offloads::ALL);
    let mut driver = Driver::new(model, memory());
    driver.queues[RECEIVE].size = 1024;
    driver.start(INDIRECT | MRG_RXBUF);
    // Each chain has room for a header only.
    driver.queues[RECEIVE].offer_table(BUFFERS, &{
        let mut buffers = vec![(DATA, 0, true); len as usize / 16];
        buffers[0].1 = 12;
        buffers
    });
    for _ in 1..1024 {
        driver.queues[RECEIVE].offer_table_again(BUFFERS, len);
    }
    (driver, network)
}

/// Runs in a process of its own, since other tests use memory, too.
#[test]
fn a_receive_ring_of_the_longest_tables_breaks_the_card_at_once() {
    const ALONE: &str = "MINIVMM_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let test = "budgets::a_receive_ring_of_the_longest_tables_breaks_the_card_at_once";
        let mut alone = Command::new(std::env::current_exe().unwrap());
        let output = alone.args([test, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let (mut driver, network) = receive_ring_of_one_table(16 * 65_535);
    let before = peak_memory();
    network.socket.send(&frame(&[7; 65_000])).unwrap();
    breaks(&mut driver, RECEIVE);
    let grown = peak_memory() - before;
    // It would be a GiB if each chain's descriptors were kept.
    assert!(grown < 256 << 20, "{grown} bytes more");
}

#[test]
fn a_frame_that_would_take_more_than_1024_descriptors_is_dropped() {
    let (mut driver, network) = receive_ring_of_one_table(16 * 1024);
    network.socket.send(&frame(&[7; 65_000])).unwrap();
    network.socket.send(&frame(&[])).unwrap();
    driver.notify(RECEIVE);
    assert_eq!(driver.wait(RECEIVE), (0, 12), "the next frame fits");
    assert_eq!(driver.queues[RECEIVE].used_index(), 1);
    assert_eq!(driver.device.fault(), None);
}

/// The longest chain of such buffers: 63 times the same 64 MiB.
#[test]
fn a_request_or_a_command_of_4_gib_is_not_held_at_once() {
    const LEN: u32 = 64 << 20;
    let large = || GuestMemory::from_ranges(&[(GuestAddress(0), 128 << 20)]).unwrap();
    let of = |writes| {
        let mut buffers = vec![(LEN.into(), LEN, writes); 65];
        buffers[0] = (BUFFERS, 16, false);
        buffers[64] = (DATA, 1, true);
        buffers
    };
    let before = peak_memory();
    let (model, _network) = net(Offloads::ALL);
    let mut card = Driver::new(model, large());
    card.queues[CONTROL].size = 128;
    card.start(CTRL_VQ);
    card.request(CONTROL, &of(false));
    assert_eq!(card.memory.read_obj::<u8>(GuestAddress(DATA)).unwrap(), 1, "refused");
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 30).unwrap();
    let mut disk = Driver::new(Blk::new(Arc::new(Image::open(file.path(), false).unwrap())), large());
    disk.queues[0].size = 128;
    disk.start(0);
    disk.memory.write_obj(0xff_u8, GuestAddress(LEN.into())).unwrap();
    disk.queues[0].offer(&of(true));
    disk.notify(0);
    disk.until("the first piece", |disk| disk.memory.read_obj::<u8>(GuestAddress(LEN.into())).unwrap() == 0);
    disk.device.pause(Duration::from_secs(10)).unwrap();
    let grown = peak_memory() - before;
    assert!(grown < 1 << 30, "{grown} bytes more");
}

/// A guest that is short of buffers causes no busy waiting: the thread sleeps until there are more.
#[test]
fn a_frame_that_waits_for_buffers_takes_no_processor_time() {
    for (name, features) in [("waits-flags", MRG_RXBUF), ("waits-event", MRG_RXBUF | EVENT_IDX)] {
        let (model, network) = net(Offloads::ALL);
        let mut driver = Driver::named(name, model, memory());
        driver.start(features);
        driver.queues[RECEIVE].offer(&[(DATA, 1500, true)]);
        driver.queues[RECEIVE].offer(&[(DATA + 1500, 1500, true)]);
        driver.notify(RECEIVE);
        network.socket.send(&frame(&[7; 5000])).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let (before, start) = (processor_time(name), Instant::now());
        std::thread::sleep(Duration::from_millis(300));
        let busy = processor_time(name) - before;
        assert!(busy < start.elapsed() / 10, "{name}: busy for {busy:?}");
        driver.queues[RECEIVE].offer(&[(DATA + 3000, 1500, true)]);
        driver.notify(RECEIVE);
        driver.queues[RECEIVE].offer(&[(DATA + 4500, 1500, true)]);
        driver.notify(RECEIVE);
        let lengths: Vec<u32> = (0..4).map(|_| driver.queues[RECEIVE].wait_used().1).collect();
        assert_eq!(lengths, [1500, 1500, 1500, 512], "{name}: all of it, once there is room");
    }
}

/// Peak memory of this process, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
