//! Guest memory as a section that is sent in parts: all that source and destination know of it, but for its figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cost::{PageCost, SAMPLE};
use super::receiver::{RamReceiver, RamRecord};
use super::record::{RAM_IDSTR, RAM_VERSION, put_end_of_section};
use super::sender::{PageCount, RamSender};
use super::{DirtyLog, GuestRam, PAGE_SIZE};
use crate::codec::{Outbox, Reader};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Description;
use crate::section::{IterativeSection, Record};

/// Guest memory of one migration. A source has a dirty log.
pub(crate) struct RamSection<'a> {
    ram: &'a dyn GuestRam,
    log: Option<&'a mut dyn DirtyLog>,
    sender: Option<RamSender<'a>>,
    cost: PageCost,
    /// The pending pages were not looked at since the log was read.
    is_cost_stale: bool,
    receiver: RamReceiver<'a>,
    figures: Arc<PageFigures>,
}

impl<'a> RamSection<'a> {
    /// A source's.
    pub(crate) fn outgoing(ram: &'a dyn GuestRam, log: &'a mut dyn DirtyLog) -> Self {
        Self { log: Some(log), ..Self::incoming(ram) }
    }

    /// A destination's.
    pub(crate) fn incoming(ram: &'a dyn GuestRam) -> Self {
        Self {
            ram,
            log: None,
            sender: None,
            cost: PageCost::default(),
            is_cost_stale: false,
            receiver: RamReceiver::new(ram),
            figures: Arc::default(),
        }
    }

    /// Its figures, which go on to change.
    pub(crate) fn figures(&self) -> Arc<PageFigures> {
        Arc::clone(&self.figures)
    }

    fn sender(&mut self) -> Result<&mut RamSender<'a>> {
        self.sender.as_mut().ok_or_else(|| Error::new(ErrorKind::Misuse, "guest memory was not set up to be sent"))
    }

    fn put_pages(&mut self, out: &mut Outbox, budget: u64) -> Result<bool> {
        let wanted = out.len().saturating_add(budget);
        let over = self.sender()?.put_pages(out, wanted)?;
        put_end_of_section(out);
        self.tell();
        Ok(over)
    }

    fn tell(&self) {
        if let Some(sender) = &self.sender {
            self.figures.set_moved(sender.sent());
            self.figures.pending.store(sender.pending_pages(), Ordering::Relaxed);
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
            self.sender = Some(RamSender::start(self.ram, log)?);
        }
        self.sender()?.put_blocks(out);
        self.tell();
        Ok(())
    }

    fn pending(&mut self) -> u64 {
        let Some(sender) = &mut self.sender else { return 0 };
        let (pending, sent) = (sender.pending_pages(), sender.sent());
        if std::mem::take(&mut self.is_cost_stale) {
            // Memory that cannot be read ends the migration when it is sent.
            let looked_at = sender.look(SAMPLE).unwrap_or(PageCount { normal: 1, zero: 0 });
            self.cost.round_begins(pending, looked_at, sent);
        }
        self.cost.bytes(pending, sent)
    }

    fn sync(&mut self) -> Result<()> {
        let dirtied = self.sender()?.sync()?;
        self.figures.dirtied.fetch_add(dirtied, Ordering::Relaxed);
        self.is_cost_stale = true;
        self.tell();
        Ok(())
    }

    fn iterate(&mut self, out: &mut Outbox, budget: u64) -> Result<bool> {
        self.put_pages(out, budget)
    }

    fn complete(&mut self, out: &mut Outbox) -> Result<()> {
        self.put_pages(out, u64::MAX).map(|_| ())
    }

    fn load_start(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        self.receiver.read_blocks(input).map(|()| Record::Last)
    }

    fn load_part(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        let record = self.receiver.read_record(input)?;
        self.figures.set_moved(self.receiver.received());
        Ok(match record {
            RamRecord::Page => Record::More,
            RamRecord::End => Record::Last,
        })
    }

    fn cleanup(&mut self) {
        // Stops the log.
        self.sender = None;
    }
}

/// Pages of a migration so far, for whoever reports them.
#[derive(Debug, Default)]
pub(crate) struct PageFigures {
    normal: AtomicU64,
    zero: AtomicU64,
    pending: AtomicU64,
    dirtied: AtomicU64,
}

impl PageFigures {
    /// Pages that went, or came.
    pub(crate) fn moved(&self) -> PageCount {
        PageCount { normal: self.normal.load(Ordering::Relaxed), zero: self.zero.load(Ordering::Relaxed) }
    }

    /// Bytes of the pages still to send, in guest memory.
    pub(crate) fn pending_bytes(&self) -> u64 {
        self.pending.load(Ordering::Relaxed).saturating_mul(PAGE_SIZE)
    }

    /// Pages that became pending after the first round had begun.
    pub(crate) fn dirtied(&self) -> u64 {
        self.dirtied.load(Ordering::Relaxed)
    }

    fn set_moved(&self, PageCount { normal, zero }: PageCount) {
        self.normal.store(normal, Ordering::Relaxed);
        self.zero.store(zero, Ordering::Relaxed);
    }
}
