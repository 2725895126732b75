//! The rounds: pages go while the guest runs, until what is left fits into the downtime.

use std::time::Duration;

use super::{CHUNK, Source, whole};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::policy::{self, Figures, Verdict};
use crate::migrate::protocol::ping;
use crate::migrate::report::Round;
use crate::migrate::save;
use crate::ram::{PAGE_SIZE, PageCount};
use crate::stream::{Command, Element};

/// A limited source sends so often, in chunks of the size that follows.
const PACE: Duration = Duration::from_millis(100);
/// Bytes that say something about the speed of the wire; fewer say more about its round trip.
const TELLING: u64 = 4 << 20;

impl Source<'_, '_> {
    /// Sends what was dirty when the round began; true if what is left fits into the downtime.
    ///
    /// # Errors
    /// Also if the policy gives up.
    pub(super) fn round_and_verdict(&mut self) -> Result<bool> {
        if self.report.rounds.is_empty() {
            self.report.setup = self.clock.now().saturating_sub(self.begun);
            // A log that clears late reports everything once, so that there is something to clear.
            self.ram.sync()?;
        }
        let mut round = self.round()?;
        round.dirtied = self.ram.sync()?;
        let bytes_per_page = self.bytes_per_page();
        let dirtied = round.dirtied as f64 / round.duration.as_secs_f64().max(f64::EPSILON);
        self.report.rounds.push(round);
        let figures = Figures {
            pending_bytes: whole(self.ram.pending_pages() as f64 * bytes_per_page),
            dirty_bytes_per_second: dirtied * bytes_per_page,
            wire_bytes_per_second: self.speed.unwrap_or(f64::INFINITY),
            bandwidth_limit: self.control.bandwidth_limit(),
            round_trip: self.report.round_trip,
            switch_over_cost: self.options.switch_over_cost,
            elapsed: self.clock.now().saturating_sub(self.begun),
            rounds: u32::try_from(self.report.rounds.len()).unwrap_or(u32::MAX),
        };
        let limits = policy::Limits {
            downtime: self.control.downtime_limit(),
            rounds: self.options.max_rounds,
            total: self.options.max_total,
        };
        let (verdict, forecast) = policy::decide(&figures, &limits);
        tracing::debug!(?figures, ?verdict, ?forecast, "round over");
        self.publish();
        self.control.publish(|progress| {
            progress.dirty_pages_per_second = whole(dirtied);
            progress.expected_downtime = Some(forecast.downtime);
            progress.expected_total = forecast.total;
        });
        match verdict {
            Verdict::Iterate => Ok(false),
            Verdict::SwitchOver => Ok(true),
            Verdict::GiveUp(reason) => Err(Error::new(ErrorKind::Cancelled, format!("gave up: {reason}"))),
        }
    }

    fn round(&mut self) -> Result<Round> {
        let (begun, bytes, pages) = (self.clock.now(), self.wire.sent(), self.ram.sent());
        self.control.publish(|progress| progress.rounds += 1);
        let mut slept = Duration::ZERO;
        loop {
            let chunk = match self.control.bandwidth_limit() {
                Some(limit) => usize::try_from(limit / 10).unwrap_or(CHUNK).clamp(1, CHUNK),
                None => CHUNK,
            };
            let sending = self.clock.now();
            let over = save::put_ram_part(&mut self.buffer, &mut self.ram, chunk)?;
            let bytes = self.buffer.len() as u64;
            self.flush(self.running())?;
            self.heed_replies()?;
            slept += self.pace(bytes, sending)?;
            self.publish();
            if over {
                break;
            }
        }
        // What was sent may still be in a socket's buffer: only the answer says that it went through the wire.
        Element::Command(Command::Ping(ping::ROUND)).write(&mut self.buffer);
        self.ask(ping::ROUND)?;
        let duration = self.clock.now().saturating_sub(begun);
        let bytes = self.wire.sent() - bytes;
        let busy = duration.saturating_sub(slept).as_secs_f64();
        if busy > 0.0 && (bytes >= TELLING || self.speed.is_none()) {
            self.speed = Some(bytes as f64 / busy);
        }
        let sent = self.ram.sent();
        let pages = PageCount { normal: sent.normal - pages.normal, zero: sent.zero - pages.zero };
        Ok(Round { duration, bytes, pages, dirtied: 0 })
    }

    /// Sleeps as long as `bytes`, begun to be sent at `begun`, last at the bandwidth limit. Returns how long it slept.
    fn pace(&mut self, bytes: u64, begun: Duration) -> Result<Duration> {
        let mut slept = Duration::ZERO;
        while let Some(limit) = self.control.bandwidth_limit() {
            let due = Duration::try_from_secs_f64(bytes as f64 / limit as f64).unwrap_or(Duration::MAX);
            let left = due.saturating_sub(self.clock.now().saturating_sub(begun));
            if left.is_zero() {
                break;
            }
            let nap = left.min(PACE);
            self.clock.sleep(nap);
            slept += nap;
            self.control.check()?;
        }
        Ok(slept)
    }

    /// What a pending page will cost on the wire, by the pages sent so far.
    fn bytes_per_page(&self) -> f64 {
        let sent = self.ram.sent();
        let pages = sent.normal + sent.zero;
        if pages == 0 { PAGE_SIZE as f64 } else { self.wire.sent() as f64 / pages as f64 }
    }
}
