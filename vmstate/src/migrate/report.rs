//! Reports of completed and failed migrations.

use std::time::Duration;

use crate::ram::PageCount;

/// A source's report.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct DepartureReport {
    /// Time from the beginning to the final answer.
    pub total: Duration,
    /// Time from the beginning to the first page.
    pub setup: Duration,
    /// Bytes sent.
    pub bytes: u64,
    /// Pages sent, in rounds and switch-over.
    pub pages: PageCount,
    /// Each round, in order.
    pub rounds: Vec<Round>,
    /// The shortest time from a ping to the destination to its answer.
    pub round_trip: Duration,
    /// The parts of the pause, if the guest was paused.
    pub downtime: Option<Downtime>,
    /// How much the guest was slowed before the pause.
    pub slowdown: Slowdown,
    /// Why the last rehearsal of the pause that failed could not save the devices. The pause saves them again, and only that save
    /// counts.
    pub refused_rehearsal: Option<String>,
}

/// One round: everything that was dirty when it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Round {
    /// The duration of the round.
    pub duration: Duration,
    /// Bytes sent.
    pub bytes: u64,
    /// Pages sent.
    pub pages: PageCount,
    /// Pages that the guest dirtied meanwhile.
    pub dirtied: u64,
}

/// A section that was sent whole in the pause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SectionReport {
    /// Its name on the wire.
    pub idstr: String,
    /// Its instance id.
    pub instance: u32,
    /// Size of its body in bytes.
    pub bytes: u64,
    /// How long saving it took; unknown at a destination.
    pub saved: Option<Duration>,
    /// How long loading it took, after its bytes had arrived. A source knows this only if the destination reports it.
    pub loaded: Option<Duration>,
}

/// The destination's measurements after the last byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Takeover {
    /// Time in [`Machine::loaded`](crate::migrate::Machine::loaded), in which the machine applies the loaded sections.
    pub machine: Duration,
    /// Time in [`Machine::resume`](crate::migrate::Machine::resume).
    pub resume: Duration,
}

/// How long the guest's vCPUs stood still although the guest was running, on average over all vCPUs. The final pause is not
/// included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Slowdown {
    /// Because of [`Machine::throttle`](crate::migrate::Machine::throttle).
    pub throttled: Duration,
    /// For [rehearsals](crate::migrate::Machine::rehearse) of the pause.
    pub rehearsed: Duration,
    /// The highest throttle, in percent.
    pub highest_throttle_percent: u8,
}

impl Slowdown {
    /// The part of `elapsed` for which a vCPU stood still on average, from 0 to 1.
    pub fn share(&self, elapsed: Duration) -> f64 {
        let stood = (self.throttled + self.rehearsed).as_secs_f64();
        if stood > 0.0 { (stood / elapsed.as_secs_f64()).min(1.0) } else { 0.0 }
    }
}

/// The parts of the pause. Each part ends where the next begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Downtime {
    /// From the order to pause until the machine stood still.
    pub pause: Duration,
    /// The last sync of the dirty log.
    pub sync: Duration,
    /// Until the last pages were handed to the wire.
    pub pages: Duration,
    /// Until the devices were saved and handed to the wire.
    pub devices: Duration,
    /// Until the destination had loaded and checked everything, and reported it.
    pub confirm: Duration,
    /// Until the destination had taken over, and reported it.
    pub commit: Duration,
}

impl Downtime {
    /// The sum of all parts.
    pub fn total(&self) -> Duration {
        self.pause + self.sync + self.pages + self.devices + self.confirm + self.commit
    }
}

/// A destination's report.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ArrivalReport {
    /// Time from the first byte to the running guest.
    pub total: Duration,
    /// Bytes received.
    pub bytes: u64,
    /// Pages received.
    pub pages: PageCount,
}
