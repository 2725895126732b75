//! A guest that does not run, with a made-up dirty log: the guest changes pages once at most, when it is paused.

use std::cell::Cell;
use std::time::Duration;

use vmstate::migrate::{Claim, Control, Machine, Parameters};
use vmstate::ram::DirtyLog;

use crate::measured::processor_time;
use crate::memory::{Ends, FIRST_CHANGED};

/// Number of the sync whose pages XBZRLE's cache takes in: the first sync begins the first round, whose pages are not
/// cached.
const CACHED: u32 = 2;

/// The state that the source's machine and its dirty log share.
pub(crate) struct Guest<'a> {
    /// The memory whose pages change, if they do: all pages are reported once in the rounds, so that XBZRLE's cache has
    /// them, and once in the pause, changed.
    changes: Option<&'a Ends>,
    control: &'a Control,
    syncs: Cell<u32>,
    /// The guest is paused, and its changes are not reported yet.
    paused: Cell<bool>,
    /// Processor time and bytes of this process before the measurement.
    pub(crate) before: Cell<(Duration, u64)>,
}

impl<'a> Guest<'a> {
    pub(crate) fn new(changes: Option<&'a Ends>, control: &'a Control) -> Self {
        let before = Cell::new((processor_time(std::process::id()), 0));
        Self { changes, control, syncs: Cell::new(0), paused: Cell::new(false), before }
    }
}

/// The machine of source (`Some`) or destination.
pub(crate) struct Still<'a>(pub(crate) Option<&'a Guest<'a>>);

impl Machine for Still<'_> {
    fn pause(&mut self, _within: Duration) -> vmstate::Result<()> {
        if let Some(guest) = self.0
            && let Some(ends) = guest.changes
        {
            ends.change();
            guest.paused.set(true);
            guest.before.set((processor_time(std::process::id()), guest.control.progress().bytes));
        }
        Ok(())
    }
    fn loaded(&mut self) -> vmstate::Result<()> {
        Ok(())
    }
    fn resume(&mut self) -> vmstate::Result<()> {
        Ok(())
    }
    fn release(&mut self) -> vmstate::Result<()> {
        Ok(())
    }
    fn claim(&mut self) -> vmstate::Result<Claim> {
        Ok(Claim::Undecidable)
    }
}

/// The dirty log of the guest.
pub(crate) struct Log<'a>(pub(crate) &'a Guest<'a>);

impl DirtyLog for Log<'_> {
    fn start(&mut self) -> vmstate::Result<()> {
        Ok(())
    }
    fn sync(&mut self, _block: usize, words: &mut [u64]) -> vmstate::Result<()> {
        let guest = self.0;
        if guest.changes.is_none() {
            return Ok(());
        }
        let syncs = guest.syncs.get() + 1;
        guest.syncs.set(syncs);
        // With the default limit the source would expect all pages to fit into the pause before the cache has them.
        let limit = if syncs <= CACHED { Duration::ZERO } else { Parameters::default().downtime_limit };
        guest.control.set_downtime_limit(limit);
        if syncs == CACHED || guest.paused.take() {
            words.iter_mut().skip((FIRST_CHANGED / 64) as usize).for_each(|word| *word = u64::MAX);
        }
        Ok(())
    }
    fn clear(&mut self, _block: usize, _first: u64, _count: u64) -> vmstate::Result<()> {
        Ok(())
    }
    fn stop(&mut self) {}
}
