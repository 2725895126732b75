//! virtio-blk, compared with a model of the disk in memory.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minivmm::devices::Device;
use minivmm::devices::virtio::blk::{Backup, Blk, Image};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};
use vmstate::ownership::OwnershipError;

use crate::driver::{BUFFERS, Driver, EVENT_IDX, INDIRECT, INDIRECT_DESCRIPTOR, NEXT, TIMEOUT, WRITE, memory};
use crate::mmio::disk;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;

/// Sends one request with data in pieces of `piece` bytes; returns its status.
fn request(driver: &mut Driver<Blk>, kind: u32, sector: u64, len: u32, piece: u32) -> u8 {
    let header = [kind.to_le_bytes(), 0u32.to_le_bytes()].concat();
    driver.memory.write_slice(&[header, sector.to_le_bytes().to_vec()].concat(), GuestAddress(BUFFERS)).unwrap();
    driver.memory.write_obj(0xeeu8, GuestAddress(STATUS)).unwrap();
    let reads = matches!(kind, IN | GET_ID);
    let mut buffers = vec![(BUFFERS, 16, false)];
    let mut at = 0;
    while at < len {
        let count = piece.min(len - at);
        buffers.push((DATA + u64::from(at), count, reads));
        at += count;
    }
    buffers.push((STATUS, 1, true));
    let written = driver.request(0, &buffers);
    let status = driver.memory.read_obj(GuestAddress(STATUS)).unwrap();
    if status == 0 {
        assert_eq!(written, if reads { len + 1 } else { 1 });
    }
    status
}

fn put(driver: &Driver<Blk>, data: &[u8]) {
    driver.memory.write_slice(data, GuestAddress(DATA)).unwrap();
}

fn get(driver: &Driver<Blk>, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    driver.memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
    data
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn reads_and_writes_agree_with_a_model() {
    for features in [0, EVENT_IDX, INDIRECT | EVENT_IDX] {
        let (mut driver, file) = disk(64 << 10);
        driver.start(features);
        let mut model = vec![0u8; 64 << 10];
        let mut seed = 1u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for round in 0..200u32 {
            let sector = random(120);
            let len = 512 * (1 + random(7)) as u32;
            let piece = 512 >> random(3);
            let piece = piece.max(len.div_ceil(12));
            let place = sector as usize * 512..sector as usize * 512 + len as usize;
            match random(4) {
                0 | 1 => {
                    let data: Vec<u8> = (0..len).map(|at| (at + round) as u8).collect();
                    put(&driver, &data);
                    assert_eq!(request(&mut driver, OUT, sector, len, piece), 0);
                    model[place].copy_from_slice(&data);
                }
                2 => {
                    put(&driver, &range(sector, len / 512, u32::from(round % 2 == 0)));
                    assert_eq!(request(&mut driver, WRITE_ZEROES, 0, 16, 16), 0);
                    model[place].fill(0);
                }
                _ => {
                    put(&driver, &vec![0xaa; len as usize]);
                    assert_eq!(request(&mut driver, IN, sector, len, piece), 0);
                    assert_eq!(get(&driver, len as usize), model[place]);
                }
            }
        }
        assert_eq!(request(&mut driver, FLUSH, 0, 0, 1), 0);
        assert_eq!(std::fs::read(file.path()).unwrap(), model, "features {features:#x}");
    }
}

#[test]
fn discarded_sectors_stay_readable() {
    let (mut driver, file) = disk(64 << 10);
    driver.start(0);
    put(&driver, &[0x55; 4096]);
    assert_eq!(request(&mut driver, OUT, 8, 4096, 4096), 0);
    put(&driver, &range(8, 8, 0));
    assert_eq!(request(&mut driver, DISCARD, 0, 16, 16), 0);
    assert_eq!(file.path().metadata().unwrap().len(), 64 << 10, "the disk keeps its size");
    assert_eq!(request(&mut driver, IN, 8, 4096, 4096), 0);
}

/// Dirty clusters of bitmap `b`, of 4 KiB each.
fn dirty(image: &Image) -> Vec<u64> {
    let words = image.bitmaps().with("b", |bitmap| bitmap.words().to_vec()).unwrap();
    (0..64).filter(|cluster| words[0] >> cluster & 1 == 1).collect()
}

#[test]
fn each_change_is_in_a_bitmap_once_it_is_answered() {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&[0; 64 << 10]).unwrap();
    let image = Arc::new(Image::open(file.path(), false).unwrap());
    let mut driver = Driver::new(Blk::new(Arc::clone(&image)), memory());
    driver.start(0);
    image.bitmaps().add("b", 4096, true).unwrap();
    assert_eq!(request(&mut driver, IN, 0, 4096, 4096), 0);
    assert_eq!(request(&mut driver, OUT, 128, 512, 512), 1, "beyond the end");
    assert!(dirty(&image).is_empty());
    assert_eq!(request(&mut driver, OUT, 7, 1024, 512), 0);
    assert_eq!(dirty(&image), [0, 1]);
    put(&driver, &range(24, 8, 0));
    assert_eq!(request(&mut driver, WRITE_ZEROES, 0, 16, 16), 0);
    assert_eq!(dirty(&image), [0, 1, 3]);
    put(&driver, &range(40, 9, 1));
    assert_eq!(request(&mut driver, WRITE_ZEROES, 0, 16, 16), 0);
    put(&driver, &range(127, 1, 0));
    assert_eq!(request(&mut driver, DISCARD, 0, 16, 16), 0);
    assert_eq!(dirty(&image), [0, 1, 3, 5, 6, 15]);
    image.bitmaps().set_recording("b", false).unwrap();
    assert_eq!(request(&mut driver, OUT, 64, 512, 512), 0);
    image.bitmaps().clear("b").unwrap();
    image.bitmaps().set_recording("b", true).unwrap();
    image.write(&[1; 512], 0).unwrap();
    assert!(dirty(&image).is_empty(), "only the guest's changes count");
}

#[test]
fn refuses_what_is_not_on_the_disk_and_changes_nothing() {
    let (mut driver, file) = disk(8 << 10);
    driver.start(0);
    put(&driver, &[7; 1024]);
    assert_eq!(request(&mut driver, OUT, 15, 1024, 1024), 1, "past the end");
    assert_eq!(request(&mut driver, IN, 16, 512, 512), 1);
    assert_eq!(request(&mut driver, IN, u64::MAX, 512, 512), 1, "sector overflows");
    assert_eq!(request(&mut driver, OUT, 0, 100, 100), 1, "no whole sector");
    put(&driver, &range(15, 2, 0));
    assert_eq!(request(&mut driver, WRITE_ZEROES, 0, 16, 16), 1);
    put(&driver, &range(0, 1, 1));
    assert_eq!(request(&mut driver, DISCARD, 0, 16, 16), 2, "unmap makes no sense with discard");
    put(&driver, &range(0, 1, 2));
    assert_eq!(request(&mut driver, WRITE_ZEROES, 0, 16, 16), 2, "unknown flag");
    put(&driver, &range(0, 0x40_0000, 0));
    assert_eq!(request(&mut driver, WRITE_ZEROES, 0, 16, 16), 1, "more than offered");
    assert_eq!(request(&mut driver, 99, 0, 0, 1), 2, "unknown request");
    assert_eq!(std::fs::read(file.path()).unwrap(), vec![0; 8 << 10]);
}

#[test]
fn read_only_disks_report_that_and_refuse_writes() {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&[3; 4096]).unwrap();
    let image = Arc::new(Image::open(file.path(), true).unwrap());
    let mut driver = Driver::new(Blk::new(image), memory());
    assert_eq!(driver.offered() & 1 << 5, 1 << 5, "VIRTIO_BLK_F_RO");
    driver.start(1 << 5);
    put(&driver, &[9; 512]);
    assert_eq!(request(&mut driver, OUT, 0, 512, 512), 1);
    assert_eq!(request(&mut driver, IN, 0, 512, 512), 0);
    assert_eq!(get(&driver, 512), vec![3; 512]);
}

#[test]
fn id_is_twenty_bytes() {
    let (mut driver, _file) = disk(512);
    driver.start(0);
    put(&driver, &[0xaa; 20]);
    assert_eq!(request(&mut driver, GET_ID, 0, 20, 20), 0);
    assert_eq!(get(&driver, 20), vec![0; 20]);
}

#[test]
fn indirect_tables_work() {
    let (mut driver, file) = disk(4096);
    driver.start(INDIRECT);
    let table = BUFFERS + 0x8000;
    for (index, (address, len, flags)) in
        [(BUFFERS, 16u32, NEXT), (DATA, 512, NEXT), (STATUS, 1, WRITE)].into_iter().enumerate()
    {
        let at = table + 16 * index as u64;
        driver.memory.write_obj(address, GuestAddress(at)).unwrap();
        driver.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        driver.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        driver.memory.write_obj(index as u16 + 1, GuestAddress(at + 14)).unwrap();
    }
    driver.memory.write_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], GuestAddress(BUFFERS)).unwrap();
    put(&driver, &[0x42; 512]);
    driver.queues[0].descriptor(0, table, 48, INDIRECT_DESCRIPTOR, 0);
    driver.queues[0].publish(0);
    driver.notify(0);
    assert_eq!(driver.wait(0), (0, 1));
    assert_eq!(std::fs::read(file.path()).unwrap()[512..1024], [0x42; 512]);
}

/// A request with more segments than offered is refused, if the driver has negotiated the limit.
#[test]
fn more_segments_than_were_agreed_on_are_an_io_error() {
    const SEG_MAX: u64 = 1 << 2;
    for (features, segments, status) in [(SEG_MAX, 254, 0), (SEG_MAX, 255, 1), (0, 255, 0)] {
        let (mut driver, _file) = disk(255 * 512);
        driver.start(INDIRECT | features);
        let mut limit = [0; 4];
        minivmm::bus::BusDevice::read(&mut driver.device, 0x10c, &mut limit);
        assert_eq!(u32::from_le_bytes(limit), 254, "seg_max");
        let mut buffers = vec![(DATA, 512, true); segments];
        buffers.insert(0, (BUFFERS, 16, false));
        buffers.push((STATUS, 1, true));
        driver.queues[0].offer_table(BUFFERS + 0x10_0000, &buffers);
        driver.notify(0);
        let written = if status == 0 { segments as u32 * 512 + 1 } else { 1 };
        assert_eq!(driver.wait(0), (0, written));
        assert_eq!(driver.memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), status, "{segments} segments");
    }
}

/// Ranges are erased in pieces of at most 32 MiB.
#[test]
fn large_ranges_are_erased_to_their_ends_and_no_further() {
    use std::os::unix::fs::FileExt;
    const SECTORS: u64 = 128 << 11;
    for (kind, flags) in [(WRITE_ZEROES, 0), (WRITE_ZEROES, 1), (DISCARD, 0)] {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(SECTORS * 512).unwrap();
        let mut driver = Driver::new(Blk::new(Arc::new(Image::open(file.path(), false).unwrap())), memory());
        driver.start(0);
        let (first, last) = ((31 << 11) + 1, (97 << 11) - 1);
        let marked = [0, first - 1, first, first + 1, 64 << 11, last - 1, last, last + 1, SECTORS - 1];
        for sector in marked {
            file.as_file().write_all_at(&[0x55; 512], sector * 512).unwrap();
        }
        put(&driver, &range(first, (last + 1 - first) as u32, flags));
        assert_eq!(request(&mut driver, kind, 0, 16, 16), 0);
        for sector in marked {
            let mut data = [9; 512];
            file.as_file().read_exact_at(&mut data, sector * 512).unwrap();
            let erased = (first..=last).contains(&sector);
            // Discarded data is undefined.
            if !(erased && kind == DISCARD) {
                assert_eq!(data, [if erased { 0 } else { 0x55 }; 512], "sector {sector}");
            }
        }
        assert_eq!(file.path().metadata().unwrap().len(), SECTORS * 512);
    }
}

#[test]
fn data_written_to_the_guest_is_marked_dirty() {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, bitmap::Bitmap};
    let (mut driver, _file) = disk(8192);
    driver.start(0);
    let dirty = |driver: &Driver<Blk>, address: u64| {
        driver.memory.find_region(GuestAddress(0)).unwrap().bitmap().dirty_at(address as usize)
    };
    assert!(!dirty(&driver, DATA + 0x1000), "the test itself did not touch it");
    assert_eq!(request(&mut driver, IN, 0, 8192, 8192), 0);
    assert!(dirty(&driver, DATA) && dirty(&driver, DATA + 0x1000), "data");
    assert!(dirty(&driver, driver.queues[0].base + crate::driver::USED), "used ring");
}

#[test]
fn a_request_made_while_paused_is_done_after_resume() {
    let (mut driver, _file) = disk(4096);
    driver.start(EVENT_IDX);
    assert_eq!(request(&mut driver, FLUSH, 0, 0, 1), 0);
    driver.device.pause(TIMEOUT).unwrap();
    driver.queues[0].offer(&[(BUFFERS, 16, false), (STATUS, 1, true)]);
    driver.notify(0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.queues[0].poll_used(), None, "paused");
    driver.device.resume();
    driver.wait(0);
}

#[test]
fn images_are_locked_against_others() {
    let file = NamedTempFile::new().unwrap();
    let open = |read_only| Image::open(file.path(), read_only).unwrap();
    let (writer, second, reader, other_reader) = (open(false), open(false), open(true), open(true));
    writer.resource().lock().unwrap();
    for loser in [&second, &reader] {
        let error = loser.resource().lock().unwrap_err();
        assert!(matches!(error, OwnershipError::InUse { .. }));
        assert!(error.to_string().ends_with("is in use by another process"), "{error}");
    }
    writer.resource().unlock().unwrap();
    reader.resource().lock().unwrap();
    other_reader.resource().lock().unwrap();
    assert!(second.resource().lock().is_err());
    drop((reader, other_reader));
    // Another test may be starting a program, which holds all files of this process until it executes.
    let end = Instant::now() + TIMEOUT;
    while let Err(error) = second.resource().lock() {
        assert!(Instant::now() < end, "{error}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_missing_image_is_named() {
    let error = Image::open("/nonexistent/disk.img".as_ref(), false).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/disk.img cannot be opened"), "{error}");
}

/// Oracle: the image before the backup, whose clusters are then changed by requests of each kind before the copier comes to them.
#[test]
fn a_backup_has_what_the_guest_changes_before_it_is_copied() {
    const BYTES: u64 = 8 << 20;
    let file = NamedTempFile::new().unwrap();
    let original: Vec<u8> = (0..BYTES as u32).map(|byte| (byte.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
    std::fs::write(file.path(), &original).unwrap();
    let image = Arc::new(Image::open(file.path(), false).unwrap());
    let mut driver = Driver::new(Blk::new(Arc::clone(&image)), memory());
    driver.start(0);
    let target = NamedTempFile::new().unwrap();
    target.as_file().set_len(BYTES).unwrap();
    let target_image = Image::locked(target.reopen().unwrap(), target.path(), BYTES).unwrap();
    let backup = Arc::new(Backup::new(target_image, true).unwrap());
    backup.set_parts(None);
    image.copy_before_write().begin_backup(&backup);
    put(&driver, &[0xa5; 4096]);
    assert_eq!(request(&mut driver, OUT, 1000, 4096, 4096), 0);
    assert_eq!(request(&mut driver, OUT, (BYTES - 4096) / 512, 4096, 1024), 0);
    // Erased in several pieces.
    for (kind, sector, flags) in [(DISCARD, 4096, 0), (WRITE_ZEROES, 7000, 0), (WRITE_ZEROES, 10_000, 1)] {
        put(&driver, &range(sector, 2500, flags));
        assert_eq!(request(&mut driver, kind, 0, 16, 16), 0);
    }
    let changed = std::fs::read(file.path()).unwrap();
    assert!(changed[1000 * 512] == 0xa5 && changed[5000 * 512] == 0 && changed[11_000 * 512] == 0);
    assert!(backup.progress().0 >= 3 * 2500 * 512, "the old content went to the backup first");
    while backup.step(&image, 1 << 20).is_some() {}
    assert_eq!(backup.finish(), Ok(()));
    assert!(std::fs::read(target.path()).unwrap() == original);
}
