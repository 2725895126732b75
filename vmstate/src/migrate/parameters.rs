//! The parameters of a source, which the guest's owner sets, with QEMU's names and units where QEMU has them.
//!
//! [`PARAMETERS`] is the only list of them, with ranges: code that reads them from a user, or shows them, iterates over it.

mod value;
mod words;

use std::num::NonZeroU64;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::ram::PAGE_SIZE;
use crate::ram::multifd::Compression;

pub use value::ParameterValue;
pub use words::{Aim, DeadlineAction};

/// The parameters of a source. All may change during the migration. Percentages are integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parameters {
    /// The longest pause that the guest may feel.
    pub downtime_limit: Duration,
    /// The longest time from the order to pause until the commit, whatever the peer does; after that, the migration is abandoned
    /// and the guest runs on at the source. `None`: four downtime limits.
    pub pause_budget: Option<Duration>,
    /// Bytes a second that the rounds may send; `None` is no limit. The switch-over is never slowed.
    pub max_bandwidth: Option<NonZeroU64>,
    /// Bytes a second that a source sends in post-copy; `None` is no limit. Requested pages are never delayed, but count.
    pub max_postcopy_bandwidth: Option<NonZeroU64>,
    /// Bytes a second that the switch-over will have, if this is known better than by measurement.
    pub avail_switchover_bandwidth: Option<NonZeroU64>,
    /// When to switch over.
    pub aim: Aim,
    /// Whether the vCPUs may be throttled.
    pub auto_converge: bool,
    /// The throttle is raised if, over two rounds, the guest dirties more than this percentage of the sent bytes.
    pub throttle_trigger_threshold: u8,
    /// The first throttle: the percentage of the time for which vCPUs stand still.
    pub cpu_throttle_initial: u8,
    /// The most by which one step raises or lowers the throttle.
    pub cpu_throttle_increment: u8,
    /// The highest throttle.
    pub max_cpu_throttle: u8,
    /// The longest time of the migration until the order to pause.
    pub deadline: Option<Duration>,
    /// What happens when the deadline passes.
    pub deadline_action: DeadlineAction,
    /// The migration gives up after this many rounds.
    pub max_rounds: Option<u32>,
    /// Whether the guest may switch to post-copy, on request or if the migration would not complete otherwise. Takes effect with
    /// the next migration.
    pub postcopy_ram: bool,
    /// In post-copy, requested pages are sent on a second connection, where they do not wait behind other pages. Applies from the next
    /// migration on.
    pub postcopy_preempt: bool,
    /// Whether pages are sent on page channels. The code that connects reads this parameter and the three below before the source
    /// runs.
    pub multifd: bool,
    /// Number of page channels.
    pub multifd_channels: u8,
    /// Whether page channels compress pages by zstd.
    pub multifd_compresses: bool,
    /// The zstd level: 1 is the fastest, 20 the strongest.
    pub multifd_zstd_level: u8,
    /// Whether the page channels of a file bypass the host's page cache (O_DIRECT). The code that opens the file reads this parameter.
    pub direct_io: bool,
    /// Whether only the changed bytes of a page that was sent before are sent, if these are shorter (XBZRLE).
    pub xbzrle: bool,
    /// Bytes of pages that are cached for XBZRLE: a power of two, at least a page. Changing the size empties the cache.
    pub xbzrle_cache_size: u64,
}

impl Default for Parameters {
    /// QEMU's defaults (migration/options.c), but no bandwidth limit.
    fn default() -> Self {
        Self {
            downtime_limit: Duration::from_millis(300),
            pause_budget: None,
            max_bandwidth: None,
            max_postcopy_bandwidth: None,
            avail_switchover_bandwidth: None,
            aim: Aim::default(),
            auto_converge: false,
            throttle_trigger_threshold: 50,
            cpu_throttle_initial: 20,
            cpu_throttle_increment: 10,
            max_cpu_throttle: 99,
            deadline: None,
            deadline_action: DeadlineAction::default(),
            max_rounds: None,
            postcopy_ram: false,
            postcopy_preempt: false,
            multifd: false,
            multifd_channels: 2,
            multifd_compresses: false,
            multifd_zstd_level: 1,
            direct_io: false,
            xbzrle: false,
            xbzrle_cache_size: 64 << 20,
        }
    }
}

/// The default pause budget in downtime limits: if the pause takes longer, the forecast was wrong.
const PAUSE_PER_LIMIT: u32 = 4;

/// The longest time that QEMU takes for `downtime-limit`, 2000 s (migration/options.c, `MAX_MIGRATE_DOWNTIME`).
const PAUSE_MAX_MS: u64 = 2_000_000;

/// The longest time of any kind: some 584,000 years, because nanoseconds are counted in 64 bits.
const TIME_MAX_MS: u64 = u64::MAX / 1_000_000;

/// A parameter, as a user reads and writes it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Parameter {
    /// QEMU's name, where QEMU has the parameter.
    pub name: &'static str,
    /// Unit and range.
    pub unit: ParameterUnit,
    /// The meaning, in one line.
    pub meaning: &'static str,
    get: fn(&Parameters) -> ParameterValue,
    set: fn(&mut Parameters, &ParameterValue) -> Option<()>,
}

/// Unit and range of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterUnit {
    /// Time; from 0 to this many milliseconds.
    Milliseconds(u64),
    /// Bytes a second; 0 means no value.
    BytesPerSecond,
    /// Percent, as an integer; from 1 to this.
    Percent(u8),
    /// A number; 0 means no value.
    Count,
    /// A number from the first to the second.
    Between(u8, u8),
    /// Bytes of memory, a power of two of at least a page.
    CacheBytes,
    /// On or off. In QEMU's protocol this is a capability.
    Flag,
    /// On or off. In QEMU's protocol this is a parameter.
    Switch,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// All parameters, in the order in which they are shown.
pub const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "downtime-limit",
        unit: ParameterUnit::Milliseconds(PAUSE_MAX_MS),
        meaning: "longest pause that the guest may feel",
        get: |parameters| ParameterValue::Time(parameters.downtime_limit),
        set: |parameters, value| value.time().map(|limit| parameters.downtime_limit = limit),
    },
    Parameter {
        name: "pause-budget",
        unit: ParameterUnit::Milliseconds(PAUSE_MAX_MS * PAUSE_PER_LIMIT as u64),
        meaning: "a pause that lasts longer is abandoned; 0 is four downtime limits",
        get: |parameters| ParameterValue::Time(parameters.pause_budget()),
        set: |parameters, value| {
            value.time().map(|budget| parameters.pause_budget = Some(budget).filter(|budget| !budget.is_zero()))
        },
    },
    Parameter {
        name: "max-bandwidth",
        unit: ParameterUnit::BytesPerSecond,
        meaning: "most bytes sent a second while the guest runs; 0 is no limit",
        get: |parameters| ParameterValue::Number(parameters.max_bandwidth.map_or(0, NonZeroU64::get)),
        set: |parameters, value| value.number().map(|limit| parameters.max_bandwidth = NonZeroU64::new(limit)),
    },
    Parameter {
        name: "max-postcopy-bandwidth",
        unit: ParameterUnit::BytesPerSecond,
        meaning: "most bytes sent a second in post-copy, without a delay of requested pages; 0 is no limit",
        get: |parameters| ParameterValue::Number(parameters.max_postcopy_bandwidth.map_or(0, NonZeroU64::get)),
        set: |parameters, value| value.number().map(|limit| parameters.max_postcopy_bandwidth = NonZeroU64::new(limit)),
    },
    Parameter {
        name: "avail-switchover-bandwidth",
        unit: ParameterUnit::BytesPerSecond,
        meaning: "bytes a second that the forecast of the pause assumes; 0 means the measured speed",
        get: |parameters| ParameterValue::Number(parameters.avail_switchover_bandwidth.map_or(0, NonZeroU64::get)),
        set: |parameters, value| {
            value.number().map(|speed| parameters.avail_switchover_bandwidth = NonZeroU64::new(speed))
        },
    },
    Parameter {
        name: "aim",
        unit: ParameterUnit::Word(&[Aim::Soonest.word(), Aim::LeastDisturbance.word()]),
        meaning: "when to switch over, of the moments that the downtime limit allows",
        get: |parameters| ParameterValue::word(parameters.aim.word()),
        set: |parameters, value| value.one_of(&Aim::ALL, Aim::word).map(|aim| parameters.aim = aim),
    },
    Parameter {
        name: "auto-converge",
        unit: ParameterUnit::Flag,
        meaning: "throttle the vCPUs when the guest dirties more than is sent",
        get: |parameters| ParameterValue::Flag(parameters.auto_converge),
        set: |parameters, value| value.flag().map(|on| parameters.auto_converge = on),
    },
    Parameter {
        name: "throttle-trigger-threshold",
        unit: ParameterUnit::Percent(100),
        meaning: "share of dirtied in sent bytes above which the vCPUs are throttled",
        get: |parameters| ParameterValue::small(parameters.throttle_trigger_threshold),
        set: |parameters, value| value.as_small().map(|share| parameters.throttle_trigger_threshold = share),
    },
    Parameter {
        name: "cpu-throttle-initial",
        unit: ParameterUnit::Percent(THROTTLE_MAX),
        meaning: "first throttle",
        get: |parameters| ParameterValue::small(parameters.cpu_throttle_initial),
        set: |parameters, value| value.as_small().map(|initial| parameters.cpu_throttle_initial = initial),
    },
    Parameter {
        name: "cpu-throttle-increment",
        unit: ParameterUnit::Percent(THROTTLE_MAX),
        meaning: "most by which one step changes the throttle",
        get: |parameters| ParameterValue::small(parameters.cpu_throttle_increment),
        set: |parameters, value| value.as_small().map(|step| parameters.cpu_throttle_increment = step),
    },
    Parameter {
        name: "max-cpu-throttle",
        unit: ParameterUnit::Percent(THROTTLE_MAX),
        meaning: "highest throttle, not below the first",
        get: |parameters| ParameterValue::small(parameters.max_cpu_throttle),
        set: |parameters, value| value.as_small().map(|highest| parameters.max_cpu_throttle = highest),
    },
    Parameter {
        name: "deadline",
        unit: ParameterUnit::Milliseconds(TIME_MAX_MS),
        meaning: "longest time until the guest is paused; 0 is none",
        get: |parameters| ParameterValue::Time(parameters.deadline.unwrap_or_default()),
        set: |parameters, value| {
            value.time().map(|deadline| parameters.deadline = Some(deadline).filter(|deadline| !deadline.is_zero()))
        },
    },
    Parameter {
        name: "deadline-action",
        unit: ParameterUnit::Word(&[
            DeadlineAction::Cancel.word(),
            DeadlineAction::SwitchOver.word(),
            DeadlineAction::Throttle.word(),
        ]),
        meaning: "what happens when the deadline passes",
        get: |parameters| ParameterValue::word(parameters.deadline_action.word()),
        set: |parameters, value| {
            let action = value.one_of(&DeadlineAction::ALL, DeadlineAction::word);
            action.map(|action| parameters.deadline_action = action)
        },
    },
    Parameter {
        name: "max-rounds",
        unit: ParameterUnit::Count,
        meaning: "give up after so many rounds; 0 is no limit",
        get: |parameters| ParameterValue::Number(parameters.max_rounds.map_or(0, u64::from)),
        set: |parameters, value| {
            let rounds = u32::try_from(value.number()?).ok()?;
            parameters.max_rounds = Some(rounds).filter(|&rounds| rounds > 0);
            Some(())
        },
    },
    Parameter {
        name: "postcopy-ram",
        unit: ParameterUnit::Flag,
        meaning: "switch to post-copy where the migration would not complete otherwise, from the next migration on",
        get: |parameters| ParameterValue::Flag(parameters.postcopy_ram),
        set: |parameters, value| value.flag().map(|on| parameters.postcopy_ram = on),
    },
    Parameter {
        name: "postcopy-preempt",
        unit: ParameterUnit::Flag,
        meaning: "in post-copy, send the pages that the guest waits for on a second connection, from the next migration on",
        get: |parameters| ParameterValue::Flag(parameters.postcopy_preempt),
        set: |parameters, value| value.flag().map(|on| parameters.postcopy_preempt = on),
    },
    Parameter {
        name: "multifd",
        unit: ParameterUnit::Flag,
        meaning: "send pages on page channels, from the next migration on",
        get: |parameters| ParameterValue::Flag(parameters.multifd),
        set: |parameters, value| value.flag().map(|on| parameters.multifd = on),
    },
    Parameter {
        name: "multifd-channels",
        unit: ParameterUnit::Between(1, u8::MAX),
        meaning: "number of page channels; a QEMU at the other end must have the same number",
        get: |parameters| ParameterValue::small(parameters.multifd_channels),
        set: |parameters, value| value.as_small().map(|channels| parameters.multifd_channels = channels),
    },
    Parameter {
        name: "multifd-compression",
        unit: ParameterUnit::Word(&["none", "zstd"]),
        meaning: "compression of pages on page channels; a QEMU at the other end must have the same",
        get: |parameters| ParameterValue::word(if parameters.multifd_compresses { "zstd" } else { "none" }),
        set: |parameters, value| {
            parameters.multifd_compresses = match value.as_word()? {
                "none" => false,
                "zstd" => true,
                _ => return None,
            };
            Some(())
        },
    },
    Parameter {
        name: "multifd-zstd-level",
        unit: ParameterUnit::Between(1, 20),
        meaning: "compression level of zstd",
        get: |parameters| ParameterValue::small(parameters.multifd_zstd_level),
        set: |parameters, value| value.as_small().map(|level| parameters.multifd_zstd_level = level),
    },
    Parameter {
        name: "direct-io",
        unit: ParameterUnit::Switch,
        meaning: "write and read the pages of a file without the host's page cache; only with page channels",
        get: |parameters| ParameterValue::Flag(parameters.direct_io),
        set: |parameters, value| value.flag().map(|on| parameters.direct_io = on),
    },
    Parameter {
        name: "xbzrle",
        unit: ParameterUnit::Flag,
        meaning: "send only the changed bytes of a page that was sent before (XBZRLE); not with page channels",
        get: |parameters| ParameterValue::Flag(parameters.xbzrle),
        set: |parameters, value| value.flag().map(|on| parameters.xbzrle = on),
    },
    Parameter {
        name: "xbzrle-cache-size",
        unit: ParameterUnit::CacheBytes,
        meaning: "size of XBZRLE's cache of pages, in bytes",
        get: |parameters| ParameterValue::Number(parameters.xbzrle_cache_size),
        set: |parameters, value| value.number().map(|bytes| parameters.xbzrle_cache_size = bytes),
    },
];

/// A vCPU that always stands still would never end a round.
const THROTTLE_MAX: u8 = 99;

impl Parameters {
    /// The pause budget, as set or from the downtime limit.
    pub fn pause_budget(&self) -> Duration {
        self.pause_budget.unwrap_or_else(|| self.downtime_limit.saturating_mul(PAUSE_PER_LIMIT))
    }

    /// The budget of a pause that was decided upon with this expected length.
    pub(super) fn pause_budget_for(&self, expected: Duration) -> Duration {
        self.pause_budget.unwrap_or_else(|| self.pause_budget().max(expected.saturating_mul(PAUSE_PER_LIMIT)))
    }

    /// The number of page channels for a migration that begins now, and their compression.
    pub fn page_channels(&self) -> Option<(u8, Compression)> {
        let compression = match self.multifd_compresses {
            true => Compression::Zstd { level: self.multifd_zstd_level },
            false => Compression::None,
        };
        self.multifd.then_some((self.multifd_channels, compression))
    }

    /// The parameters with the named changes, all or none.
    ///
    /// # Errors
    /// Names the parameter that is unknown, of another kind, or out of its range.
    pub fn changed<'n>(mut self, changes: impl IntoIterator<Item = (&'n str, ParameterValue)>) -> Result<Self> {
        for (name, value) in changes {
            let parameter = Parameter::named(name)
                .ok_or_else(|| Error::new(ErrorKind::Misuse, format!("Parameter '{name}' is unexpected")))?;
            (parameter.set)(&mut self, &value).ok_or_else(|| parameter.refusal())?;
        }
        self.check()?;
        Ok(self)
    }

    /// Checks that each parameter is in its range, and that they are compatible.
    ///
    /// # Errors
    /// Names the first parameter that is not, and says what is allowed.
    pub fn check(&self) -> Result<()> {
        for parameter in PARAMETERS {
            if !parameter.accepts(&parameter.of(self)) {
                return Err(parameter.refusal());
            }
        }
        if self.multifd && self.xbzrle {
            // As in QEMU (`migrate_caps_check`, migration/options.c): versions of one page may be sent on different channels.
            return Err(Error::new(ErrorKind::Misuse, "Multifd is not compatible with xbzrle: switch one of them off"));
        }
        if self.multifd && self.postcopy_ram {
            // As in QEMU: two versions of one page could arrive in the wrong order.
            return Err(Error::new(
                ErrorKind::Misuse,
                "Postcopy is not yet compatible with multifd: switch one of them off",
            ));
        }
        if self.postcopy_preempt && !self.postcopy_ram {
            // As QEMU.
            return Err(Error::new(ErrorKind::Misuse, "Postcopy preempt requires postcopy-ram: switch that on, too"));
        }
        if self.max_cpu_throttle < self.cpu_throttle_initial {
            let least = self.cpu_throttle_initial;
            let message = format!(
                "Parameter 'max-cpu-throttle' expects an integer in the range of {least}, which is \
                 'cpu-throttle-initial', to {THROTTLE_MAX}"
            );
            return Err(Error::new(ErrorKind::Misuse, message));
        }
        Ok(())
    }
}

impl Parameter {
    /// The parameter of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        PARAMETERS.iter().find(|parameter| parameter.name == name)
    }

    /// The parameter's value in `parameters`.
    pub fn of(&self, parameters: &Parameters) -> ParameterValue {
        (self.get)(parameters)
    }

    /// True if `value` has the parameter's kind and is in its range.
    pub fn accepts(&self, value: &ParameterValue) -> bool {
        self.unit.has(value)
    }

    /// The allowed values, in QEMU's words where QEMU has them: as "an integer in the range of 1 to 99".
    pub fn expects(&self) -> String {
        match self.unit {
            ParameterUnit::Milliseconds(most) => format!("an integer in the range of 0 to {most}"),
            ParameterUnit::BytesPerSecond => format!("an integer in the range of 0 to {}", u64::MAX),
            ParameterUnit::Percent(most) => format!("an integer in the range of 1 to {most}"),
            ParameterUnit::Count => format!("an integer in the range of 0 to {}", u32::MAX),
            ParameterUnit::Between(least, most) => format!("an integer in the range of {least} to {most}"),
            ParameterUnit::CacheBytes => format!("a power of two, at least {PAGE_SIZE}"),
            ParameterUnit::Flag | ParameterUnit::Switch => "true or false".into(),
            ParameterUnit::Word(words) => format!("one of: {}", words.join(", ")),
        }
    }

    fn refusal(&self) -> Error {
        Error::new(ErrorKind::Misuse, format!("Parameter '{}' expects {}", self.name, self.expects()))
    }
}

impl ParameterUnit {
    fn has(self, value: &ParameterValue) -> bool {
        match (self, value) {
            (Self::Milliseconds(most), ParameterValue::Time(time)) => time.as_millis() <= u128::from(most),
            (Self::Percent(most), ParameterValue::Number(number)) => (1..=u64::from(most)).contains(number),
            (Self::CacheBytes, ParameterValue::Number(bytes)) => *bytes >= PAGE_SIZE && bytes.is_power_of_two(),
            (Self::Count, ParameterValue::Number(number)) => u32::try_from(*number).is_ok(),
            (Self::Between(least, most), ParameterValue::Number(number)) => {
                (u64::from(least)..=u64::from(most)).contains(number)
            }
            (Self::Word(words), ParameterValue::Word(word)) => words.contains(&word.as_ref()),
            (Self::BytesPerSecond, ParameterValue::Number(_))
            | (Self::Flag | Self::Switch, ParameterValue::Flag(_)) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
