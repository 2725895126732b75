//! Pages that several threads write to their places in a file, and read from there. The oracles are the guest's memory, a reader
//! of the file that uses nothing of the library, and the file that one thread writes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::fcntl::OFlag;
use vmstate::channel::{FileChannel, MonotonicClock};
use vmstate::error::{Error, ErrorKind, Result};
use vmstate::migrate::destination::{self, Arrival, DestinationOptions, Incoming};
use vmstate::migrate::snapshot::{self, FileThreads, Saving};
use vmstate::migrate::{Control, DestinationPhase, Machine, Peer};
use vmstate::ram::{GuestRam, RamBlock};
use vmstate::section::Sections;

use crate::guest::{Guest, Log, Memory};

const PAGE: u64 = 4096;

/// Runs `work` beside this many workers of a file's threads.
fn beside_workers<T>(count: usize, ram: &dyn GuestRam, work: impl FnOnce(Option<FileThreads>) -> T) -> T {
    let threads = FileThreads::new();
    thread::scope(|scope| {
        for _ in 0..count {
            let worker = threads.worker();
            scope.spawn(move || worker.run(ram));
        }
        let result = work((count > 0).then(|| threads.clone()));
        // If `work` ended them already, this does nothing.
        threads.close();
        result
    })
}

fn save(guest: &Guest, path: &Path, threads: Option<FileThreads>, cancels: Option<(u32, Control)>) -> Result<()> {
    save_to(guest, FileChannel::create(path).unwrap(), threads, cancels)
}

fn save_to(
    guest: &Guest,
    mut channel: FileChannel,
    threads: Option<FileThreads>,
    cancels: Option<(u32, Control)>,
) -> Result<()> {
    let control = cancels.as_ref().map_or_else(Control::default, |(_, control)| control.clone());
    let mut log = Log::new(&guest.memory, cancels);
    let saving = Saving {
        channel: &mut channel,
        machine_type: "toy",
        sections: &mut Sections::new(),
        ram: &*guest.memory,
        log: &mut log,
        reader: Peer::Vmstate,
        threads,
        beside: None,
    };
    let mut machine = guest.clone();
    snapshot::save_in_place(saving, &control, &mut || machine.pause(std::time::Duration::ZERO))
}

/// Reads the pages of the blocks `block0` and `block1` from the file (docs/devel/migration/mapped-ram.rst).
fn read_by_hand(path: &Path) -> Vec<Vec<u8>> {
    let mut file = File::open(path).unwrap();
    let mut start = vec![0; 4096];
    let count = file.read_at(&mut start, 0).unwrap();
    let name = b"\x06block0";
    let at = start[..count].windows(name.len()).position(|bytes| bytes == name).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    let mut blocks = Vec::new();
    for name in [b"\x06block0", b"\x06block1"] {
        let mut entry = [0; 7 + 8 + 28];
        file.read_exact(&mut entry).unwrap();
        assert_eq!(&entry[..7], name);
        let number = |at: usize| u64::from_be_bytes(entry[at..at + 8].try_into().unwrap());
        let (len, page_size, bitmap, pages) = (number(7), number(19), number(27), number(35));
        assert_eq!((page_size, pages % (1 << 20)), (PAGE, 0));
        let mut block = vec![0; len as usize];
        for page in 0..len / PAGE {
            let mut byte = [0];
            file.read_exact_at(&mut byte, bitmap + page / 8).unwrap();
            if byte[0] >> (page % 8) & 1 == 1 {
                let place = &mut block[(page * PAGE) as usize..][..PAGE as usize];
                file.read_exact_at(place, pages + page * PAGE).unwrap();
            }
        }
        blocks.push(block);
        file.seek(SeekFrom::Start(pages + len)).unwrap();
    }
    blocks
}

fn bytes_of(memory: &Memory) -> Vec<Vec<u8>> {
    let block = |(index, block): (usize, &RamBlock)| {
        let mut bytes = vec![0; block.len as usize];
        memory.read(index, 0, &mut bytes).unwrap();
        bytes
    };
    memory.blocks().iter().enumerate().map(block).collect()
}

fn load(path: &Path, guest: &mut Guest, file_threads: Option<FileThreads>) -> Arrival {
    load_from(File::open(path).unwrap(), guest, file_threads)
}

fn load_from(file: File, guest: &mut Guest, file_threads: Option<FileThreads>) -> Arrival {
    let mut options = DestinationOptions::new("toy");
    options.file_threads = file_threads;
    let memory = guest.memory.clone();
    let incoming = Incoming {
        channel: &mut FileChannel::from(file),
        clock: &MonotonicClock::new(),
        machine: guest,
        sections: &mut Sections::new(),
        ram: &*memory,
    };
    destination::run(incoming, &options, &Control::default())
}

#[test]
fn a_busy_guest_is_in_the_file_as_it_is_when_paused_whichever_threads_write_and_read() {
    let directory = tempfile::tempdir().unwrap();
    for (writers, readers) in [(1, 3), (2, 0), (5, 2)] {
        let path = directory.path().join(format!("{writers}"));
        let guest = Guest::busy();
        beside_workers(writers, &*guest.memory, |threads| save(&guest, &path, threads, None)).unwrap();
        let expected = bytes_of(&guest.memory);
        assert!(read_by_hand(&path) == expected, "written by {writers} threads");

        let mut arrived = Guest::waiting();
        let memory = arrived.memory.clone();
        let arrival = beside_workers(readers, &*memory, |threads| load(&path, &mut arrived, threads));
        assert_eq!(arrival.phase, DestinationPhase::Completed, "{arrival:?}");
        assert!(bytes_of(&memory) == expected, "read by {readers} threads");

        // The guest is paused now: its second file depends on nothing else than its memory.
        let [one, several] = [0, writers].map(|count| {
            let path = directory.path().join(format!("{writers}-again-{count}"));
            beside_workers(count, &*guest.memory, |threads| save(&guest, &path, threads, None)).unwrap();
            std::fs::read(path).unwrap()
        });
        assert!(one == several, "{writers} threads write another file than one");
    }
}

/// A file that bypasses the page cache, or `None` where the file system has none such.
fn direct(options: &mut OpenOptions, path: &Path) -> Option<File> {
    match options.read(true).custom_flags(OFlag::O_DIRECT.bits()).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => None,
        opened => Some(opened.unwrap()),
    }
}

/// The stream begins at an odd offset, so that neither its parts nor the bitmaps are whole pages.
#[test]
fn direct_io_writes_the_same_file_and_reads_it() {
    let directory = tempfile::tempdir().unwrap();
    let [expected, path] = ["buffered", "direct"].map(|name| directory.path().join(name));
    let mut guest = Guest::busy();
    guest.pause(std::time::Duration::ZERO).unwrap();
    let Some(file) = direct(File::options().write(true).create_new(true), &path) else {
        return vmstate_lab::skip::skip("this file system has no direct I/O");
    };
    let buffered = File::options().read(true).write(true).create_new(true).open(&expected).unwrap();
    for (mut file, count) in [(buffered, 0), (file, 3)] {
        file.seek(SeekFrom::Start(0x1_0203)).unwrap();
        beside_workers(count, &*guest.memory, |threads| save_to(&guest, file.into(), threads, None)).unwrap();
    }
    let [expected, written] = [&expected, &path].map(|path| std::fs::read(path).unwrap());
    assert!(expected.len() > 1 << 20 && expected == written);

    let mut arrived = Guest::waiting();
    let memory = arrived.memory.clone();
    let threads = FileThreads::on(direct(&mut File::options(), &path).unwrap());
    let arrival = thread::scope(|scope| {
        for worker in [threads.worker(), threads.worker()] {
            scope.spawn(|| worker.run(&*memory));
        }
        let mut file = File::open(&path).unwrap();
        file.seek(SeekFrom::Start(0x1_0203)).unwrap();
        let arrival = load_from(file, &mut arrived, Some(threads.clone()));
        threads.close();
        arrival
    });
    assert_eq!(arrival.phase, DestinationPhase::Completed, "{arrival:?}");
    assert!(bytes_of(&memory) == bytes_of(&guest.memory));
}

#[test]
fn a_cancel_ends_the_threads_and_the_guest_is_saved_later() {
    let directory = tempfile::tempdir().unwrap();
    let guest = Guest::busy();
    // The first sync is before the first page, the third one after the second round; each has two blocks.
    for (name, looks) in [("begin", 1), ("later", 3)] {
        let cancels = Some((looks, Control::default()));
        let path = directory.path().join(name);
        let saved = beside_workers(3, &*guest.memory, |threads| save(&guest, &path, threads, cancels));
        assert_eq!(saved.unwrap_err().kind(), ErrorKind::Cancelled);
    }
    let path = directory.path().join("whole");
    beside_workers(3, &*guest.memory, |threads| save(&guest, &path, threads, None)).unwrap();
    assert!(read_by_hand(&path) == bytes_of(&guest.memory));
}

/// Guest memory whose reads fail once.
struct Failing<'a> {
    memory: &'a Memory,
    fails: AtomicBool,
}

impl GuestRam for Failing<'_> {
    fn blocks(&self) -> &[RamBlock] {
        self.memory.blocks()
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        match self.fails.swap(false, Ordering::SeqCst) {
            true => Err(Error::new(ErrorKind::Rejected, "the memory is broken")),
            false => self.memory.read(block, offset, into),
        }
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        self.memory.write(block, offset, from)
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        self.memory.zero_page(block, offset)
    }
}

#[test]
fn the_failure_of_one_thread_and_its_early_end_fail_the_save() {
    let directory = tempfile::tempdir().unwrap();
    let guest = Guest::busy();
    let failing = Failing { memory: &guest.memory, fails: AtomicBool::new(true) };
    let path = directory.path().join("failing");
    let error = beside_workers(3, &failing, |threads| save(&guest, &path, threads, None)).unwrap_err();
    assert_eq!(error.message(), "the memory is broken");

    let threads = FileThreads::new();
    drop(threads.worker());
    let error = save(&guest, &directory.path().join("early"), Some(threads), None).unwrap_err();
    assert!(error.message().contains("has ended before the last page"), "{error}");
    let error = save(&guest, &directory.path().join("none"), Some(FileThreads::new()), None).unwrap_err();
    assert!(error.message().contains("no thread runs a worker"), "{error}");
    assert!(guest.is_running());
}
