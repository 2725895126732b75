//! What a migration took, once it is over.

use std::time::Duration;

use crate::ram::PageCount;

/// A source's report.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct DepartureReport {
    /// From the beginning to the last word.
    pub total: Duration,
    /// From the beginning to the first page.
    pub setup: Duration,
    /// Bytes sent.
    pub bytes: u64,
    /// Pages sent, in rounds and switch-over.
    pub pages: PageCount,
    /// Each round, in order.
    pub rounds: Vec<Round>,
    /// From a question to the destination to its answer: the shortest that was seen.
    pub round_trip: Duration,
    /// The pause, if it came that far.
    pub downtime: Option<Downtime>,
    /// How much the guest was slowed before the pause.
    pub slowdown: Slowdown,
    /// Why a rehearsal of the pause could not save the devices, the last time. The pause asks them again, and only then it counts.
    pub refused_rehearsal: Option<String>,
}

/// One round: everything that was dirty when it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Round {
    /// How long it took.
    pub duration: Duration,
    /// Bytes sent.
    pub bytes: u64,
    /// Pages sent.
    pub pages: PageCount,
    /// Pages that the guest dirtied meanwhile.
    pub dirtied: u64,
}

/// A section that went whole in the pause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SectionReport {
    /// Its name on the wire.
    pub idstr: String,
    /// Which of those with that name.
    pub instance: u32,
    /// Bytes of its body.
    pub bytes: u64,
    /// How long saving it took, which a destination does not know.
    pub saved: Option<Duration>,
    /// How long loading it took, once it was there. A source knows it if the destination has told it.
    pub loaded: Option<Duration>,
}

/// What a destination has measured behind the last byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Takeover {
    /// Time in [`Machine::loaded`](crate::migrate::Machine::loaded), in which the machine takes over what its sections have loaded.
    pub machine: Duration,
    /// Time in [`Machine::resume`](crate::migrate::Machine::resume).
    pub resume: Duration,
}

/// How long the guest's vCPUs stood still while the guest was to run, on average over all vCPUs. The pause at the end is not
/// among it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Slowdown {
    /// Made to by [`Machine::throttle`](crate::migrate::Machine::throttle).
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

/// Where the pause went. Each part ends where the next begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Downtime {
    /// From the order to pause until the machine stood still.
    pub pause: Duration,
    /// Last look into the dirty log.
    pub sync: Duration,
    /// Last pages handed to the wire.
    pub pages: Duration,
    /// Devices saved and handed to the wire.
    pub devices: Duration,
    /// Until the destination had loaded and checked everything, and said so.
    pub confirm: Duration,
    /// Until the destination had taken over, and said so.
    pub commit: Duration,
}

impl Downtime {
    /// The sum.
    pub fn total(&self) -> Duration {
        self.pause + self.sync + self.pages + self.devices + self.confirm + self.commit
    }
}

/// A destination's report.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ArrivalReport {
    /// From the first byte to the running guest.
    pub total: Duration,
    /// Bytes received.
    pub bytes: u64,
    /// Pages received.
    pub pages: PageCount,
}
