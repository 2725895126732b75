//! Options of a device's rate limits: `bytes-per-second`, `bytes-burst`, `ops-per-second`, `ops-burst`.

use std::num::NonZeroU64;

use crate::cli::values::size;
use crate::config::{Rate, RateLimits};

/// Usage text of the options of a rate limit.
pub(super) const USAGE: &str = "bytes-per-second=SIZE, bytes-burst=SIZE, ops-per-second=N, ops-burst=N";

/// Options of a rate limit that were parsed so far.
#[derive(Default)]
pub(super) struct LimitOptions {
    bytes: RateOptions,
    operations: RateOptions,
}

#[derive(Default)]
struct RateOptions {
    per_second: Option<NonZeroU64>,
    burst: Option<NonZeroU64>,
}

impl LimitOptions {
    /// Parses `key=value`; returns false if the key is no option of a rate limit.
    pub(super) fn take(&mut self, option: &str) -> Result<bool, String> {
        let Some((key, value)) = option.split_once('=') else { return Ok(false) };
        let (option, value) = match key {
            "bytes-per-second" => (&mut self.bytes.per_second, size(value)),
            "bytes-burst" => (&mut self.bytes.burst, size(value)),
            "ops-per-second" => (&mut self.operations.per_second, count(value)),
            "ops-burst" => (&mut self.operations.burst, count(value)),
            _ => return Ok(false),
        };
        let value = value.map_err(|why| format!("{key}: {why}"))?;
        let value = NonZeroU64::new(value).ok_or_else(|| format!("{key}: 0 would stop the device; leave it out"))?;
        *option = Some(value);
        Ok(true)
    }

    /// Builds the limits. A burst that is not given is the amount of one second.
    pub(super) fn finish(self) -> Result<RateLimits, String> {
        Ok(RateLimits { bytes: self.bytes.finish("bytes")?, operations: self.operations.finish("ops")? })
    }
}

fn count(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "write a number".into())
}

impl RateOptions {
    fn finish(self, of: &str) -> Result<Option<Rate>, String> {
        match (self.per_second, self.burst) {
            (None, None) => Ok(None),
            (Some(per_second), burst) => Ok(Some(Rate { per_second, burst: burst.unwrap_or(per_second) })),
            (None, Some(_)) => Err(format!("{of}-burst is of no use without {of}-per-second; add it")),
        }
    }
}
