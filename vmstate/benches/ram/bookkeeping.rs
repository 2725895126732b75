//! The cost of a round besides the pages that it sends: reading the log, finding dirty pages, and clearing the log.
//!
//! The log is a bitmap with one bit for each page, as KVM returns it, for a guest whose memory is fully populated; the source has
//! a bit for each page of its own. Kernel calls are not included.

use std::hint::black_box;

use vmstate::Result;
use vmstate::codec::Outbox;
use vmstate::ram::{DirtyLog, GuestRam, PAGE_SIZE, RamBlock};
use vmstate::raw::ram::RamSender;

use super::{Unit, compare};

const GIB: u64 = 1 << 30;
/// Size of the guest in GiB, and how many of its pages are dirty in each round.
const GUESTS: [(u64, u64); 5] = [(64, 0), (64, 100), (64, 10_000), (64, 1_000_000), (1, 100)];
/// Bytes of records that are collected at once, as the source does.
const CHUNK: u64 = 1 << 20;

pub(crate) fn run(rounds: usize) {
    for (gib, dirty) in GUESTS {
        let memory = Memory([RamBlock { name: "ram".into(), len: gib * GIB }]);
        let pages = gib * GIB / PAGE_SIZE;
        let mut log = Log::of(pages, dirty);
        let mut sender = RamSender::start(&memory, &mut log).expect("blocks that can be sent");
        let mut out = Outbox::new();
        send_all(&mut sender, &mut out);
        let group = format!("a round, {gib} GiB, {dirty} dirty");
        compare(
            &group,
            Unit::Pages(pages),
            rounds,
            &mut [(
                "sync and records",
                Box::new(|| {
                    assert_eq!(sender.sync().expect("a log"), dirty);
                    send_all(&mut sender, &mut out);
                }),
            )],
        );
    }
}

fn send_all(sender: &mut RamSender<'_>, out: &mut Outbox) {
    while !sender.put_pages(out, CHUNK).expect("memory") {
        black_box(&mut *out).clear();
    }
    black_box(&mut *out).clear();
}

/// Memory whose pages are all untouched at first, and has no zero pages afterwards.
struct Memory([RamBlock; 1]);

impl GuestRam for Memory {
    fn blocks(&self) -> &[RamBlock] {
        &self.0
    }

    fn read(&self, _block: usize, _offset: u64, _into: &mut [u8]) -> Result<()> {
        unreachable!("the outbox is not sent")
    }

    fn zero_pages(&self, _block: usize, _offset: u64, _pages: u32) -> Result<u64> {
        Ok(0)
    }

    fn untouched(&self, _block: usize, _offset: u64, words: &mut [u64]) -> Result<()> {
        words.fill(u64::MAX);
        Ok(())
    }

    fn write(&self, _block: usize, _offset: u64, _from: &[u8]) -> Result<()> {
        unreachable!("a source writes nothing")
    }

    fn zero_page(&self, _block: usize, _offset: u64) -> Result<()> {
        unreachable!("a source writes nothing")
    }
}

/// A log with the same pages in each round, spread over all memory.
struct Log {
    written: Vec<u64>,
}

impl Log {
    fn of(pages: u64, dirty: u64) -> Self {
        let mut written = vec![0; (pages / 64) as usize];
        for page in (0..dirty).map(|number| number * pages / dirty) {
            written[(page / 64) as usize] |= 1 << (page % 64);
        }
        Self { written }
    }
}

impl DirtyLog for Log {
    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    fn sync(&mut self, _block: usize, words: &mut [u64]) -> Result<()> {
        for (word, written) in words.iter_mut().zip(&self.written) {
            *word |= written;
        }
        Ok(())
    }

    fn clear(&mut self, _block: usize, _first: u64, _count: u64) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}
}
