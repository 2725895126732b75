//! A timer and a clock: the machine has a clock that stops while the guest is paused; a watchdog uses it, and after a load has as
//! much time left as before, on a host whose own clock shows another time.
//!
//! `cargo run --example timer`

use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmstate::codec::{Reader, Writer};
use vmstate::section::Sections;
use vmstate::state::{Deadline, GuestClock};
use vmstate::{VmState, Wire};

/// The guest's clock: its time advances with the host's clock from the value to which it was set. Its state is that time, and not
/// the host's, which has no meaning on another host.
struct Clock {
    /// When the clock was set, in host time, and to which time.
    set: Mutex<(Instant, Duration)>,
}

impl Clock {
    fn at(now: Instant, shows: Duration) -> Arc<Self> {
        Arc::new(Self { set: Mutex::new((now, shows)) })
    }

    fn set(&self) -> MutexGuard<'_, (Instant, Duration)> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GuestClock for Clock {
    fn guest_time(&self, host: Instant) -> Option<Duration> {
        let (when, shows) = *self.set();
        match host.checked_duration_since(when) {
            Some(since) => shows.checked_add(since),
            None => shows.checked_sub(when.duration_since(host)),
        }
    }

    fn host_time(&self, guest: Duration) -> Option<Instant> {
        let (when, shows) = *self.set();
        match guest.checked_sub(shows) {
            Some(later) => when.checked_add(later),
            None => when.checked_sub(shows - guest),
        }
    }
}

/// The clock's section. It has a higher priority than the sections with deadlines, so that deadlines are converted by a clock
/// that is already loaded.
#[derive(VmState, Default)]
#[vmstate(name = "clock", version = 1, priority = 10)]
struct ClockState {
    shows: Duration,
}

/// Resets the guest if it is not fed in time.
#[derive(VmState)]
#[vmstate(name = "watchdog", version = 1)]
struct Watchdog {
    timeout_ms: u16,
    /// The host's `Instant` at which a host timer is armed; on the wire, the guest clock's time at that instant.
    expiry: Deadline<Arc<Clock>>,
}

/// A host: its clock, as far as the example needs one, and its machine.
struct Host {
    now: Instant,
    clock: Arc<Clock>,
    watchdog: Watchdog,
}

impl Host {
    fn new(now: Instant, guest: Duration) -> Self {
        let clock = Clock::at(now, guest);
        let watchdog = Watchdog { timeout_ms: 30_000, expiry: Deadline::new(Arc::clone(&clock)) };
        Self { now, clock, watchdog }
    }

    fn left(&self) -> Option<Duration> {
        self.watchdog.expiry.at?.checked_duration_since(self.now)
    }

    /// The guest is paused: the clock's state is its present time.
    fn save(&mut self) -> vmstate::Result<(Vec<u8>, Vec<u8>)> {
        let (mut clock, mut watchdog) = (Writer::new(), Writer::new());
        let shows = self.clock.guest_time(self.now).unwrap_or_default();
        Wire::save(&mut ClockState { shows }, &mut clock)?;
        Wire::save(&mut self.watchdog, &mut watchdog)?;
        Ok((clock.into_bytes(), watchdog.into_bytes()))
    }

    /// Loads the clock first, set to continue from now, then the deadline.
    fn load(&mut self, (clock, watchdog): &(Vec<u8>, Vec<u8>)) -> vmstate::Result<()> {
        let mut state = ClockState::default();
        state.load_or_keep(&mut Reader::strict(clock), 1)?;
        *self.clock.set() = (self.now, state.shows);
        self.watchdog.load_or_keep(&mut Reader::strict(watchdog), 1)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // The guest has run for a minute; its watchdog was reset 12 s ago and fires in 18 s.
    let start = Instant::now();
    let mut here = Host::new(start, Duration::ZERO);
    here.watchdog.expiry.at = Some(start + Duration::from_secs(78));
    here.now = start + Duration::from_secs(60);
    let stream = here.save()?;
    println!("clock {:02x?}\nwatchdog {:02x?}", stream.0, stream.1);

    // Another host, five hours later: the guest was in a file meanwhile.
    let mut there = Host::new(start + Duration::from_secs(5 * 3600), Duration::ZERO);
    there.load(&stream)?;
    println!("left: {:?} here, {:?} there", here.left(), there.left());
    if there.left() != Some(Duration::from_secs(18)) || here.left() != there.left() {
        return Err("the watchdog does not fire when it should".into());
    }

    // The order of the sections on the wire follows their priorities, not the order of registration.
    let mut sections = Sections::new();
    sections.add(&mut there.watchdog)?;
    sections.add(ClockState::default())?;
    let order: Vec<_> = sections.in_order().iter().map(|section| section.idstr().to_owned()).collect();
    if order != ["clock", "watchdog"] {
        return Err(format!("the clock comes too late: {order:?}").into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_watchdog_has_as_long_to_run_as_before() {
        super::main().unwrap();
    }
}
