//! Guest memory as a section that is sent in parts: the whole state of a source or destination, except the shared figures.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::cost::{PageCost, SAMPLE};
use super::figures::PageFigures;
use super::mapped::FileThreads;
use super::mapped::read::FilePages;
use super::mapped::write::PlacedPages;
use super::multifd::{PageChannels, Receivers};
use super::receiver::{RamReceiver, RamRecord};
use super::record::{RAM_IDSTR, RAM_VERSION, put_end_of_section};
use super::sender::{PageCount, RamSender};
use super::{DirtyLog, GuestRam, PAGE_SIZE};
use crate::codec::{Outbox, Reader, Strictness};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;
use crate::section::{IterativeSection, Record};
use crate::sync::lock;

/// Guest memory in one migration. Only a source has a dirty log.
pub(crate) struct RamSection<'a> {
    ram: &'a dyn GuestRam,
    log: Option<&'a mut dyn DirtyLog>,
    sender: Option<RamSender<'a>>,
    cost: PageCost,
    /// True if the pending pages were not sampled since the log was read.
    is_cost_stale: bool,
    receiver: RamReceiver<'a>,
    page_channels: PageChannels,
    /// Source: writes pages to their places in a file.
    placed: Option<PlacedPages>,
    /// Destination: the pages in a file, and the threads that read them.
    in_file: Option<FilePages>,
    file_threads: Option<FileThreads>,
    /// True if the stream has reached a flush that is not complete.
    flushes: bool,
    figures: Arc<PageFigures>,
}

/// The section in parts that the engine itself provides. Its pages may have fixed places in a file.
pub(crate) trait EngineSection: IterativeSection {
    /// Reads the list at `at` in `file`, whose pages have fixed places; returns the offset where the stream continues.
    ///
    /// # Errors
    /// Faults of the list.
    fn load_placed(&mut self, _file: File, _at: u64, _strictness: Strictness) -> Result<u64> {
        Err(Error::new(ErrorKind::Misuse, "it is not read from a file"))
    }

    /// Appends the records of the pending pages that were requested since the last call, in post-copy.
    ///
    /// # Errors
    /// Guest memory cannot be read.
    fn put_asked(&mut self, _out: &mut Outbox) -> Result<()> {
        Err(Error::new(ErrorKind::Misuse, "none of its pages can be requested"))
    }

    /// Reads the record that ends the list.
    ///
    /// # Errors
    /// Faults of the record.
    fn end_placed(&mut self, _input: &mut Reader<'_>) -> Result<()> {
        Err(Error::new(ErrorKind::Misuse, "it is not read from a file"))
    }
}

/// How long the main channel of a destination waits for its page channels at a time, before it checks other events.
const SLICE: Duration = Duration::from_millis(20);

impl<'a> RamSection<'a> {
    /// Creates the section of a source.
    pub(crate) fn outgoing(ram: &'a dyn GuestRam, log: &'a mut dyn DirtyLog) -> Self {
        Self { log: Some(log), ..Self::incoming(ram) }
    }

    /// Creates the section of a destination.
    pub(crate) fn incoming(ram: &'a dyn GuestRam) -> Self {
        Self {
            ram,
            log: None,
            sender: None,
            cost: PageCost::default(),
            is_cost_stale: false,
            receiver: RamReceiver::new(ram),
            page_channels: PageChannels::None,
            placed: None,
            in_file: None,
            file_threads: None,
            flushes: false,
            figures: Arc::default(),
        }
    }

    /// Sends or receives the pages on these channels.
    #[must_use]
    pub(crate) fn with(self, page_channels: &PageChannels) -> Self {
        let figures = Arc::new(PageFigures { page_channels: page_channels.clone(), ..PageFigures::default() });
        Self { page_channels: page_channels.clone(), figures, ..self }
    }

    /// Writes the pages to their places in `file`, whose position is the stream's; on these threads, if there are any.
    #[must_use]
    pub(crate) fn in_place(self, file: File, threads: Option<FileThreads>) -> Self {
        Self { placed: Some(PlacedPages::new(file, threads)), ..self }
    }

    /// Reads pages that have places in a file on these threads.
    #[must_use]
    pub(crate) fn reading_on(self, threads: Option<FileThreads>) -> Self {
        Self { file_threads: threads, ..self }
    }

    /// The section's figures, which continue to change.
    pub(crate) fn figures(&self) -> Arc<PageFigures> {
        Arc::clone(&self.figures)
    }

    fn sender(&mut self) -> Result<&mut RamSender<'a>> {
        self.sender.as_mut().ok_or_else(|| Error::new(ErrorKind::Misuse, "guest memory was not set up to be sent"))
    }

    fn put_pages(&mut self, out: &mut Outbox, budget: u64) -> Result<bool> {
        if let (Some(placed), Some(sender)) = (&mut self.placed, &mut self.sender) {
            let over = sender.put_in_place(placed, (budget / PAGE_SIZE).max(1))?;
            put_end_of_section(out);
            self.publish();
            return Ok(over);
        }
        let wanted = out.len().saturating_add(budget);
        if lock(&self.figures.settings).is_postcopy {
            return self.put_postcopy_pages(out, wanted);
        }
        let flushes = self.figures.flushes.swap(false, Ordering::Relaxed);
        let sender = self.sender()?;
        let over = sender.put_pages(out, wanted)?;
        if over || flushes {
            sender.put_flush(out);
        }
        put_end_of_section(out);
        self.publish();
        if over && let Some(sender) = &self.sender {
            lock(&self.figures.heat).clone_from(sender.heat());
        }
        Ok(over)
    }

    /// In post-copy: appends the requested pages, then others from after the last requested one. True if no page is pending.
    fn put_postcopy_pages(&mut self, out: &mut Outbox, wanted: u64) -> Result<bool> {
        self.put_asked(out)?;
        let sender = self.sender()?;
        if sender.put_pages(out, wanted)? {
            // After the last page of memory, continue with the pages before the requested ones.
            sender.go_to_first();
        }
        put_end_of_section(out);
        let over = sender.pending_pages() == 0;
        self.publish();
        Ok(over)
    }

    fn receivers(&self) -> Result<&Receivers> {
        if let PageChannels::Receivers(receivers) = &self.page_channels {
            return Ok(receivers);
        }
        let message = "the source sends pages on page channels, which this destination does not accept: turn capability multifd off there";
        Err(Error::new(ErrorKind::Incompatible, message))
    }

    fn publish(&self) {
        if let Some(sender) = &self.sender {
            self.figures.set(sender.sent_in_stream(), sender.pending_pages());
            *lock(&self.figures.xbzrle) = sender.xbzrle();
        }
    }
}

impl IterativeSection for RamSection<'_> {
    fn description(&self) -> &'static Description {
        static RAM: Description = Description::undescribed(RAM_IDSTR, RAM_VERSION, RAM_VERSION);
        &RAM
    }

    fn setup(&mut self, out: &mut Outbox) -> Result<()> {
        if let Some(log) = self.log.take() {
            let senders =
                if let PageChannels::Senders(senders) = &self.page_channels { Some(senders.clone()) } else { None };
            self.sender = Some(RamSender::start(self.ram, log)?.with(senders));
        }
        match &mut self.placed {
            Some(placed) => {
                placed.begin(out, self.ram)?;
                put_end_of_section(out);
            }
            None => self.sender()?.put_blocks(out),
        }
        self.publish();
        Ok(())
    }

    fn pending(&mut self) -> u64 {
        let Some(sender) = &mut self.sender else { return 0 };
        let (pending, sent) = (sender.unsent_pages(), sender.sent());
        if std::mem::take(&mut self.is_cost_stale) {
            // Memory that cannot be read ends the migration when it is sent.
            let looked_at = sender.look(SAMPLE).unwrap_or(PageCount { normal: 1, zero: 0 });
            self.cost.round_begins(pending, looked_at, sent, sender.expected_record());
        }
        self.cost.bytes(pending, sent)
    }

    fn sync(&mut self) -> Result<()> {
        let settings = *lock(&self.figures.settings);
        let sender = self.sender()?;
        sender.use_xbzrle(settings.xbzrle_cache.filter(|_| !settings.is_postcopy));
        if settings.is_last_stage {
            sender.begin_last_stage();
        }
        let dirtied = sender.sync()?;
        if settings.is_postcopy {
            let mut runs = Vec::new();
            sender.pending_runs(|block, run| runs.push((block, run)));
            *lock(&self.figures.lacking) = runs;
        }
        self.figures.add_dirtied(dirtied);
        self.is_cost_stale = true;
        self.publish();
        Ok(())
    }

    fn iterate(&mut self, out: &mut Outbox, budget: u64) -> Result<bool> {
        let over = self.put_pages(out, budget)?;
        if let (true, Some(placed)) = (over, &self.placed) {
            // A round lasts as long as the disk needs, so that the pause does not wait for pages of earlier rounds.
            placed.sync()?;
        }
        Ok(over)
    }

    fn complete(&mut self, out: &mut Outbox) -> Result<()> {
        self.put_pages(out, u64::MAX)?;
        self.placed.as_ref().map_or(Ok(()), PlacedPages::finish)
    }

    fn load_start(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        if self.receiver.read_blocks(input)? {
            // No page is on the channels yet, so there is nothing to wait for.
            self.receivers()?.flush(self.receiver.blocks(), Duration::ZERO)?;
        }
        Ok(Record::Last)
    }

    fn load_part(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        if self.flushes && !self.receivers()?.flush(self.receiver.blocks(), SLICE)? {
            return Ok(Record::Awaited);
        }
        self.flushes = false;
        let place = input.offset();
        let record = self.receiver.read_records(input)?;
        if self.in_file.is_some() && record != RamRecord::End {
            let message = "a page record in a file whose pages have fixed places (capability mapped-ram)";
            return Err(Error::new(ErrorKind::Malformed, message).at(place));
        }
        self.figures.set_moved(self.receiver.received());
        match record {
            RamRecord::Page => Ok(Record::More),
            RamRecord::Flush => {
                self.receivers()?;
                self.flushes = true;
                Ok(Record::More)
            }
            RamRecord::End => Ok(Record::Last),
        }
    }

    fn load_end(&mut self, input: &mut Reader<'_>, version: u32) -> Result<Record> {
        let record = self.load_part(input, version)?;
        if let (Record::Last, Some(pages)) = (record, &self.in_file) {
            let taken = pages.take(self.ram)?;
            self.figures.set_moved(taken);
            return Ok(record);
        }
        if record == Record::Last {
            // A source with page channels has no page with contents in the stream, and one without has some, because a guest
            // cannot run on zeros alone.
            if self.receiver.received().normal == 0 {
                self.page_channels.check_flushed()?;
            }
            self.page_channels.close();
        }
        Ok(record)
    }

    fn cleanup(&mut self) {
        // Dropping the sender stops the log.
        self.sender = None;
    }
}

impl EngineSection for RamSection<'_> {
    fn put_asked(&mut self, out: &mut Outbox) -> Result<()> {
        let asked = std::mem::take(&mut *lock(&self.figures.asked));
        let resumed = lock(&self.figures.resumed).take();
        let sender = self.sender()?;
        if let Some(lacking) = resumed {
            sender.resume(lacking);
        }
        for (block, page) in asked.into_iter().flat_map(|(block, pages)| pages.map(move |page| (block, page))) {
            if sender.go_to(block, page) {
                sender.put_pages(out, out.len())?;
            }
        }
        self.publish();
        Ok(())
    }

    fn load_placed(&mut self, file: File, at: u64, strictness: Strictness) -> Result<u64> {
        let (pages, goes_on) = FilePages::read(&mut self.receiver, (file, self.file_threads.take()), at, strictness)?;
        self.in_file = Some(pages);
        Ok(goes_on)
    }

    fn end_placed(&mut self, input: &mut Reader<'_>) -> Result<()> {
        match self.receiver.end_of_list(input)? {
            false => Ok(()),
            true => Err(input.malformed("a flush of page channels, which a file does not have")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Limits;
    use crate::ram::{PAGE, PAGE_SIZE, RamBlock, record::put_end_of_section};

    struct OnePage([RamBlock; 1], Option<u64>);

    impl GuestRam for OnePage {
        fn blocks(&self) -> &[RamBlock] {
            &self.0
        }
        fn shared_at(&self, _block: usize) -> Option<u64> {
            self.1
        }
        fn read(&self, _block: usize, _offset: u64, _into: &mut [u8]) -> Result<()> {
            Ok(())
        }
        fn write(&self, _block: usize, _offset: u64, _from: &[u8]) -> Result<()> {
            Ok(())
        }
        fn zero_page(&self, _block: usize, _offset: u64) -> Result<()> {
            Ok(())
        }
    }

    /// A QEMU before 8.1 sends pages on channels and no MULTIFD_FLUSH. A stray connection looks the same, so only the stream
    /// shows the difference.
    #[test]
    fn memory_without_a_page_with_data_is_refused_if_channels_wait_for_a_flush() {
        let ram = OnePage([RamBlock { name: "ram".into(), len: PAGE_SIZE }], None);
        let mut zero = Outbox::new();
        zero.put(&(0x2_u64).to_be_bytes());
        zero.put(b"\x03ram\0");
        let mut normal = Outbox::new();
        normal.put(&(0x8_u64).to_be_bytes());
        normal.put(b"\x03ram");
        normal.put(&[7; PAGE]);
        for (mut page, waits, refused) in [(zero.clone(), false, false), (normal, true, false), (zero, true, true)] {
            put_end_of_section(&mut page);
            let receivers = Receivers::new();
            receivers.close();
            if waits {
                assert!(receivers.await_start().is_none());
            }
            let mut section = RamSection::incoming(&ram).with(&PageChannels::Receivers(receivers));
            let bytes = page.bytes_mut().clone();
            let mut input = Reader::new(&bytes, 0, Strictness::Strict, Limits::default());
            let loaded = section.load_end(&mut input, RAM_VERSION);
            let kind = loaded.map_err(|error| error.kind());
            assert_eq!(kind, if refused { Err(ErrorKind::Incompatible) } else { Ok(Record::Last) });
        }
    }

    /// The source's guest may be running in that memory.
    #[test]
    fn a_page_of_memory_that_both_sides_share_is_refused() {
        let ram = OnePage([RamBlock { name: "ram".into(), len: PAGE_SIZE }], Some(0));
        let mut pages: [Outbox; 2] = Default::default();
        pages[0].put(&0x2_u64.to_be_bytes());
        pages[0].put(b"\x03ram\0");
        pages[1].put(&0x8_u64.to_be_bytes());
        pages[1].put(b"\x03ram");
        pages[1].put(&[7; PAGE]);
        for mut page in pages {
            put_end_of_section(&mut page);
            let bytes = page.bytes_mut().clone();
            let mut input = Reader::new(&bytes, 0, Strictness::Strict, Limits::default());
            let error = RamSection::incoming(&ram).load_part(&mut input, RAM_VERSION).unwrap_err();
            assert!(error.to_string().contains("a page of RAM block ram, whose memory both sides share"), "{error}");
        }
    }
}
