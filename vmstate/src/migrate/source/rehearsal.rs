//! Rehearsals of the pause: the guest is paused for a moment, and the work of the pause is done and measured.
//!
//! The first rehearsal, before the rounds, runs with cold caches, as the destination does; each later one follows a round.

use std::time::Duration;

use super::{Source, round_down};
use crate::error::Result;
use crate::migrate::Rehearsal;
use crate::migrate::forecast::{Measures, Rehearsed};
use crate::migrate::pace;
use crate::migrate::save::SendPhase;
use crate::stream::Reply;

/// A rehearsal pauses the guest for some milliseconds, so there is not one after each short round.
const BETWEEN: Duration = Duration::from_secs(1);
/// The pages of a rehearsal would take about this part of the downtime limit while the guest runs, and take less while it is
/// paused: enough to measure the speed, and little for the guest.
const PART: u32 = 8;
/// Number of chunks in a rehearsal. The first chunk wakes up both sides and their caches, and is not measured.
const CHUNKS: u64 = 4;
/// The most bytes of a rehearsal: some milliseconds of a fast wire.
const MOST_BYTES: u64 = 4 << 20;
/// Between a rehearsal and the pause, the guest runs for as long as it was paused, and at least for this time: long enough for
/// its timers, also on a busy host.
const REST: Duration = Duration::from_millis(20);
/// The guest is paused at most this long for a late answer.
const WAIT: Duration = Duration::from_millis(50);

impl Source<'_, '_> {
    pub(super) fn is_rehearsal_due(&self) -> bool {
        self.rehearsed.is_none_or(|when| self.clock.now().saturating_sub(when) >= BETWEEN)
    }

    /// Pauses the guest, if the machine can do that for a moment, reads the log with `read_log`, measures, and resumes the guest.
    /// Otherwise only reads the log. Returns until when the guest shall run, if it was paused.
    pub(super) fn rehearse(&mut self, read_log: impl FnOnce(&mut Self) -> Result<()>) -> Result<Option<Duration>> {
        let Some(machine) = self.machine.rehearse()? else { return read_log(self).map(|()| None) };
        let paused_at = self.clock.now();
        let measured = read_log(self).and_then(|()| self.measure_paused(machine));
        self.machine.resume()?;
        // The guest has written nothing until now.
        self.synced = self.clock.now();
        let paused = machine.stop + self.synced.saturating_sub(paused_at);
        self.paused_for_rehearsals += paused;
        measured?;
        self.await_replies()?;
        Ok(Some(self.synced.saturating_add(paused.max(REST))))
    }

    /// Saves the sections that are sent whole, without sending them, and sends a part of those in parts, as the pause will.
    fn measure_paused(&mut self, machine: Rehearsal) -> Result<()> {
        self.measure_save(machine);
        // Nothing before the first round: a wire of unknown speed could block the guest for long.
        let speed = self.measured.wire.bytes_per_second().unwrap_or_default();
        let wanted =
            round_down(speed * (self.control.parameters().downtime_limit / PART).as_secs_f64()).min(MOST_BYTES);
        // A limit allows only one piece at once.
        let limit = self.control.parameters().max_bandwidth;
        let wanted = limit.map_or(wanted, |limit| wanted.min(pace::piece(limit.get())));
        let chunk = wanted / CHUNKS;
        if chunk > 0 {
            let mut over = self.send_chunk(chunk, Measures::Nothing)?;
            for _ in 1..CHUNKS {
                if !over {
                    over = self.send_chunk(chunk, Measures::Pause)?;
                }
            }
        }
        let until = self.clock.now().saturating_add(WAIT);
        while self.measured.wire.unanswered() > 0 {
            let Some(reply) = self.wire.poll_until(until, Reply::read)? else { break };
            self.handle_reply(reply)?;
        }
        Ok(())
    }

    /// Saves the sections without sending them. If a section cannot be saved now, or the destination's release cannot have it,
    /// there is no measurement: the reason may be gone in the pause, and if not, the pause finds it.
    fn measure_save(&mut self, machine: Rehearsal) {
        let begun = self.clock.now();
        let mut devices = Vec::new();
        match self.saver.put_devices(&mut devices, (self.peer, SendPhase::Last)) {
            Ok(_) => {
                let save = self.clock.now().saturating_sub(begun);
                self.measured.rehearsed(Rehearsed::new(machine, save, devices.len() as f64));
            }
            Err(refused) => {
                tracing::warn!(
                    "a rehearsal of the pause could not save the devices, the pause asks them again: {refused}"
                );
                self.report.refused_rehearsal = Some(refused.to_string());
            }
        }
    }
}
