//! Sections: real ones of QEMU 10.0.2 load and save to the same bytes; a device continues where another one stopped; a load
//! that fails changes nothing.

use std::sync::Arc;
use std::time::Duration;

use minivmm::devices::Device;
use minivmm::devices::virtio::Model;
use minivmm::devices::virtio::blk::{Blk, Image};
use minivmm::memory::GuestMemory;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};
use vmstate::Section;
use vmstate::codec::{Reader, Writer};

use crate::driver::{BUFFERS, Driver, EVENT_IDX, TIMEOUT};
use crate::mmio::disk;

pub fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../tests/fixtures/streams/{name}.section", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

pub fn save(section: &mut dyn Section) -> Vec<u8> {
    let mut out = Writer::recording();
    section.save(&mut out).unwrap();
    let (bytes, outcomes) = out.into_parts();
    assert_eq!(outcomes, [bytes.len() as u32], "one field, of so many bytes");
    bytes
}

pub fn load(section: &mut dyn Section, bytes: &[u8]) -> vmstate::Result<()> {
    let version = section.description().version;
    let mut input = Reader::strict(bytes);
    section.load(&mut input, version)?;
    assert_eq!(input.rest(), b"", "all of it was read");
    Ok(())
}

/// Guest memory of the size of the fixtures' guests, with ring indices that fit the sections.
pub fn guest_of_fixture(indices: &[(u64, u16)]) -> GuestMemory {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 128 << 20)]).unwrap();
    for &(ring, index) in indices {
        memory.write_obj(index, GuestAddress(ring + 2)).unwrap();
    }
    memory
}

fn sparse_disk(bytes: u64) -> (Arc<Image>, NamedTempFile) {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    (Arc::new(Image::open(file.path(), false).unwrap()), file)
}

/// Sections of QEMU 10.0.2: name, and address and index of the available and the used ring.
pub const BLK: [(&str, [(u64, u16); 2]); 2] = [
    ("microvm-kvm-virtio-blk", [(0x2a9_4000, 13), (0x2a9_5000, 13)]),
    ("microvm-tcg-virtio-blk", [(0x2a9_c000, 13), (0x2a9_d000, 13)]),
];

#[test]
fn qemus_disk_loads_and_saves_byte_for_byte() {
    for (name, rings) in BLK {
        let section = fixture(name);
        assert_eq!(section.len(), 48387);
        let (image, _file) = sparse_disk(16 << 20);
        let mut driver = Driver::new(Blk::new(image), guest_of_fixture(&rings));
        load(&mut driver.device, &section).unwrap();
        assert_eq!(driver.device.fault(), None);
        assert_eq!(driver.read32(0x070), 15, "running");
        assert_eq!(save(&mut driver.device), section, "{name}");
    }
}

#[test]
fn a_disk_after_reset_is_sent_with_qemus_defaults() {
    let (mut driver, _file) = disk(1 << 20);
    let bytes = save(&mut driver.device);
    assert_eq!(bytes[..20], [0; 20], "selectors, status, interrupt, queue, features: zero");
    assert_eq!(bytes[20..24], [0, 0, 0, 57], "length of the configuration");
    let config = &bytes[24..24 + 57];
    assert_eq!(config[..8], 2048u64.to_le_bytes());
    let queues = &bytes[24 + 57..];
    assert_eq!(queues[..12], [0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0x10, 0], "one queue, 256 entries, aligned to 4096");
    assert!(!bytes.windows(15).any(|window| window == b"virtio/ringsize"), "no size was chosen");
    let (mut fresh, _file) = disk(1 << 20);
    fresh.start(0);
    load(&mut fresh.device, &bytes).unwrap();
    assert_eq!(fresh.read32(0x070), 0);
    fresh.start(0);
}

/// Sends a flush; returns its status.
pub fn flush(driver: &mut Driver<Blk>) -> u8 {
    driver.memory.write_slice(&[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], GuestAddress(BUFFERS)).unwrap();
    driver.memory.write_obj(0xffu8, GuestAddress(BUFFERS + 64)).unwrap();
    driver.request(0, &[(BUFFERS, 16, false), (BUFFERS + 64, 1, true)]);
    driver.memory.read_obj(GuestAddress(BUFFERS + 64)).unwrap()
}

/// Moves the driver of `from`, its guest memory and its rings to another device.
pub fn move_to<A: Model, B: Model>(mut from: Driver<A>, model: B) -> Driver<B> {
    from.device.pause(TIMEOUT).unwrap();
    let bytes = save(&mut from.device);
    let mut to = Driver::new(model, from.memory.clone());
    load(&mut to.device, &bytes).unwrap();
    assert_eq!(save(&mut to.device), bytes, "loads and saves to the same");
    to.queues = from.queues;
    // The interrupt controller is loaded after the devices, and does not have the lines' levels yet.
    minivmm::irq::IrqLine::set(&*to.line, false);
    to.device.loaded();
    to.device.resume();
    to
}

#[test]
fn a_disk_goes_on_where_another_stopped() {
    for features in [0, EVENT_IDX] {
        let (mut driver, file) = disk(4096);
        let image = || Arc::new(Image::open(file.path(), false).unwrap());
        driver.start(features | 1 << 9);
        for _ in 0..40 {
            assert_eq!(flush(&mut driver), 0);
        }
        driver = move_to(driver, Blk::new(image()));
        for _ in 0..40 {
            assert_eq!(flush(&mut driver), 0);
        }
        // A request that came too late for the source, and an interrupt that the guest has not handled.
        driver.device.pause(TIMEOUT).unwrap();
        driver.queues[0].offer(&[(BUFFERS, 16, false), (BUFFERS + 64, 1, true)]);
        driver.notify(0);
        let bytes = save(&mut driver.device);
        let mut waiting = Driver::new(Blk::new(image()), driver.memory.clone());
        load(&mut waiting.device, &bytes).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(driver.queues[0].poll_used(), None, "nothing happens before the guest runs");
        drop(waiting);
        driver = move_to(driver, Blk::new(image()));
        driver.wait(0);
        driver.queues[0].offer(&[(BUFFERS, 16, false), (BUFFERS + 64, 1, true)]);
        driver.notify(0);
        driver.until("an interrupt", |driver| driver.line.is_high());
        driver = move_to(driver, Blk::new(image()));
        assert!(driver.line.is_high(), "still pending on the new host");
        driver.wait(0);
        assert!(!driver.line.is_high());
    }
}

/// The stream does not say what the last interrupt covered, so the first completion on a new host always interrupts.
#[test]
fn the_first_completion_after_a_load_interrupts_unasked() {
    let offer = |driver: &mut Driver<Blk>| {
        driver.queues[0].offer(&[(BUFFERS, 16, false), (BUFFERS + 64, 1, true)]);
        driver.queues[0].set_used_event(1000);
        driver.notify(0);
        driver.queues[0].wait_used();
    };
    let (mut driver, file) = disk(4096);
    driver.start(EVENT_IDX);
    assert_eq!(flush(&mut driver), 0);
    offer(&mut driver);
    driver.device.pause(TIMEOUT).unwrap();
    assert!(!driver.line.is_high(), "the driver wants no interrupt before the thousandth");
    driver.device.resume();
    let mut driver = move_to(driver, Blk::new(Arc::new(Image::open(file.path(), false).unwrap())));
    offer(&mut driver);
    driver.until("an interrupt", |driver| driver.line.is_high());
}

#[test]
fn write_through_survives() {
    use minivmm::bus::BusDevice;
    let (mut driver, file) = disk(4096);
    driver.start(1 << 9 | 1 << 11);
    driver.device.write(0x120, &[0]);
    let mut moved = move_to(driver, Blk::new(Arc::new(Image::open(file.path(), false).unwrap())));
    let mut byte = [9];
    moved.device.read(0x120, &mut byte);
    assert_eq!(byte, [0]);
}

#[test]
fn a_disk_of_another_size_is_refused_by_name() {
    let (image, _file) = sparse_disk(8 << 20);
    let mut driver = Driver::new(Blk::new(image), guest_of_fixture(&BLK[0].1));
    let error = load(&mut driver.device, &fixture(BLK[0].0)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("32768 sectors of 512 bytes, the image here has 16384"), "{text}");
    assert_eq!(error.path(), "virtio");
}

/// QEMU fills its copy of the configuration when the guest reads it.
#[test]
fn a_configuration_that_the_guest_of_qemu_never_read_says_nothing() {
    let mut section = fixture(BLK[0].0);
    section[24..24 + 57].fill(0);
    let (image, _file) = sparse_disk(16 << 20);
    let mut driver = Driver::new(Blk::new(image), guest_of_fixture(&BLK[0].1));
    load(&mut driver.device, &section).unwrap();
    let mut byte = [9];
    minivmm::bus::BusDevice::read(&mut driver.device, 0x120, &mut byte);
    assert_eq!(byte, [1], "write-back, as after reset");
}

/// Bytes of the section are changed one by one: a load that fails changes nothing, however much it has read before.
#[test]
fn a_load_that_fails_changes_nothing() {
    let section = fixture(BLK[0].0);
    let (mut driver, _file) = disk(4096);
    driver.start(EVENT_IDX);
    assert_eq!(flush(&mut driver), 0);
    driver.device.pause(TIMEOUT).unwrap();
    let before = save(&mut driver.device);
    let (image, _sparse) = sparse_disk(16 << 20);
    let mut other = Driver::new(Blk::new(image), guest_of_fixture(&BLK[0].1));
    other.device.pause(TIMEOUT).unwrap();
    load(&mut other.device, &section).unwrap();
    let interesting = (0..section.len()).filter(|at| *at < 200 || section[*at] != 0 || at % 997 == 0);
    let (mut refused, mut loaded) = (0, 0);
    for at in interesting {
        let mut changed = section.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(load(&mut driver.device, &changed).is_err(), "the disk has another size");
        match load(&mut other.device, &changed) {
            Ok(()) => {
                loaded += 1;
                load(&mut other.device, &section).unwrap();
            }
            Err(_) => refused += 1,
        }
        assert_eq!(save(&mut other.device), section, "byte {at}");
    }
    assert!(refused > 100 && loaded > 10, "{refused} refused, {loaded} loaded");
    assert_eq!(save(&mut driver.device), before);
    driver.device.resume();
    assert_eq!(flush(&mut driver), 0, "works on after all those failed loads");
}

#[test]
fn a_truncated_section_asks_for_more() {
    let section = fixture(BLK[0].0);
    let (image, _file) = sparse_disk(16 << 20);
    let mut driver = Driver::new(Blk::new(image), guest_of_fixture(&BLK[0].1));
    let before = save(&mut driver.device);
    for len in (0..180).chain([16_600, 20_000, 20_700, 48_000]) {
        assert!(load(&mut driver.device, &section[..len]).is_err(), "{len} bytes");
    }
    assert_eq!(save(&mut driver.device), before);
}

/// Ring indices are in guest memory, so the guest can write them: that may break its device, but not its migration.
#[test]
fn indices_that_the_guest_made_up_break_the_device_only() {
    for (ring, index) in [(0, 13 + 1025), (1, 12 - 1024)] {
        let mut rings = BLK[0].1;
        rings[ring].1 = index as u16;
        let (image, _file) = sparse_disk(16 << 20);
        let mut driver = Driver::new(Blk::new(image), guest_of_fixture(&rings));
        load(&mut driver.device, &fixture(BLK[0].0)).unwrap();
        driver.device.loaded();
        assert_eq!(driver.read32(0x070) & 0x40, 0x40, "DEVICE_NEEDS_RESET");
        assert!(driver.device.fault().unwrap().contains("index"), "{:?}", driver.device.fault());
        driver.device.resume();
        assert_eq!(driver.read32(0x060) & 2, 2, "the driver is told, who could not be at the source");
        driver.write32(0x070, 0);
        assert_eq!(driver.read32(0x070), 0);
    }
}

/// In post-copy the indices arrive after the section, and after another load that failed.
#[test]
fn ring_indices_are_read_when_all_is_loaded_and_not_before() {
    let (mut driver, file) = disk(4096);
    driver.start(0);
    for _ in 0..3 {
        assert_eq!(flush(&mut driver), 0);
    }
    driver.device.pause(TIMEOUT).unwrap();
    let bytes = save(&mut driver.device);
    let image = Arc::new(Image::open(file.path(), false).unwrap());
    let mut moved = Driver::new(Blk::new(image), driver.memory.clone());
    let used = GuestAddress(moved.queues[0].base + crate::driver::USED + 2);
    moved.memory.write_obj(2000u16, used).unwrap();
    load(&mut moved.device, &bytes).unwrap();
    let undo = vmstate::Wire::remember(&moved.device);
    load(&mut moved.device, &bytes).unwrap();
    vmstate::Wire::undo(&mut moved.device, undo);
    moved.memory.write_obj(3u16, used).unwrap();
    moved.queues = driver.queues;
    moved.device.loaded();
    moved.device.resume();
    assert_eq!(moved.device.fault(), None);
    assert_eq!(flush(&mut moved), 0);
    assert_eq!(moved.memory.read_obj::<u16>(used).unwrap(), 4);
}

#[test]
fn requests_in_flight_are_refused_in_one_sentence() {
    let mut section = fixture(BLK[0].0);
    // After the head of 24 bytes, 57 of configuration, the number of queues and one queue of 18.
    let list = 24 + 57 + 4 + 18;
    assert_eq!(section[list..list + 3], [0, 5, 21], "end of list, then virtio/64bit_features");
    section[list] = 1;
    let (image, _file) = sparse_disk(16 << 20);
    let mut driver = Driver::new(Blk::new(image), guest_of_fixture(&BLK[0].1));
    let error = load(&mut driver.device, &section).unwrap_err();
    assert!(error.to_string().contains("disk requests are in flight"), "{error}");
    assert_eq!(error.offset(), Some(list as u64));
}
