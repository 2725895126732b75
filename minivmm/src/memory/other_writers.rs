//! Writers of guest RAM outside this process: parts of the host's kernel, as vhost-net, which have dirty logs of their own.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::{HIGH_RAM_START, LOW_RAM_MAX, PAGE_SIZE};

/// A writer outside this process. A write is in its log as soon as it is in memory: so a reader that takes the log and then
/// reads a page sees the write, or finds it in the next log.
pub trait OtherWriter: fmt::Debug + Send + Sync {
    /// Starts or stops the log.
    ///
    /// # Errors
    /// The host's; nothing is logged.
    fn record(&self, on: bool) -> io::Result<()>;

    /// Clears each word of the log that has bits, and calls `take` with its number and its bits. Bit 0 of word 0 is the page at
    /// guest address 0.
    fn take(&self, take: &mut dyn FnMut(usize, u64));
}

/// All writers of one guest's memory outside this process.
#[derive(Debug, Default)]
pub(super) struct OtherWriters(Vec<Arc<dyn OtherWriter>>);

/// Words of 64 pages: the first one without RAM, and the first one after it with RAM.
const HOLE: [usize; 2] = [(LOW_RAM_MAX / PAGE_SIZE / 64) as usize, (HIGH_RAM_START / PAGE_SIZE / 64) as usize];

impl OtherWriters {
    pub(super) fn add(&mut self, writer: Arc<dyn OtherWriter>) {
        self.0.push(writer);
    }

    pub(super) fn record(&self, on: bool) -> io::Result<()> {
        let done = self.0.iter().try_for_each(|writer| writer.record(on));
        if on && done.is_err() {
            // The first error is reported.
            self.0.iter().for_each(|writer| drop(writer.record(false)));
        }
        done
    }

    /// ORs the logs into `words`, whose bit 0 is the first page of the RAM block, and clears them.
    pub(super) fn take(&self, words: &mut [u64]) {
        for writer in &self.0 {
            writer.take(&mut |index, word| {
                let index = match index {
                    low if low < HOLE[0] => Some(low),
                    index => index.checked_sub(HOLE[1]).map(|above| HOLE[0] + above),
                };
                // Without RAM nothing can have been written.
                if let Some(pages) = index.and_then(|index| words.get_mut(index)) {
                    *pages |= word;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::memory::Ram;

    #[derive(Debug, Default)]
    struct Writer {
        fails: bool,
        recording: Mutex<bool>,
        written: Mutex<Vec<(usize, u64)>>,
    }

    impl OtherWriter for Writer {
        fn record(&self, on: bool) -> io::Result<()> {
            *self.recording.lock().unwrap() = on && !self.fails;
            if on && self.fails { Err(io::Error::other("no room for a log")) } else { Ok(()) }
        }

        fn take(&self, take: &mut dyn FnMut(usize, u64)) {
            self.written.lock().unwrap().drain(..).for_each(|(index, word)| take(index, word));
        }
    }

    /// The second stretch begins at 4 GiB in the guest, and right after the first one in the block.
    #[test]
    fn pages_by_guest_address_are_pages_of_the_block() {
        let ram = Ram::new(LOW_RAM_MAX + (1 << 20)).unwrap();
        let writer = Arc::new(Writer::default());
        ram.add_writer(writer.clone());
        let above = (HIGH_RAM_START / PAGE_SIZE) as usize / 64;
        *writer.written.lock().unwrap() = vec![(0, 1), (above, 0b110), (above + 4, 1), (above - 1, 1)];
        let mut words = vec![0; (ram.len() / PAGE_SIZE).div_ceil(64) as usize];
        ram.write(PAGE_SIZE, &[1]).unwrap();
        ram.take_device_writes(&mut words);
        let set: Vec<_> =
            words.iter().enumerate().filter(|(_, word)| **word != 0).map(|(at, word)| (at, *word)).collect();
        // Ignored: bits past the RAM's end and in the hole.
        assert_eq!(set, [(0, 0b11), ((LOW_RAM_MAX / PAGE_SIZE) as usize / 64, 0b110)]);
    }

    #[test]
    fn where_one_cannot_record_none_does() {
        let ram = Ram::new(1 << 20).unwrap();
        let writers = [false, true].map(|fails| Arc::new(Writer { fails, ..Writer::default() }));
        writers.iter().for_each(|writer| ram.add_writer(writer.clone()));
        ram.record_others(true).unwrap_err();
        assert!(!*writers[0].recording.lock().unwrap());
    }
}
