//! A migration that was, as a scenario: what its report says of memory, writes, wire and pause.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use vmstate::migrate::plan::{self, Scenario};

use crate::cli::UsageError;

/// Writes to a page in a round for one that a report counts, at most.
const MOST_REPEATED: u64 = 64;
/// Halvings of the range in which the working set is looked for: to less than a page of a gibibyte.
const HALVINGS: u32 = 18;

/// Figures of one migration.
struct Recorded(Value);

/// All that the file says, but the working set: no report has it.
pub(super) fn scenario(file: &Path) -> Result<Scenario, UsageError> {
    let recorded = Recorded::read(file)?;
    let mut scenario = Scenario::new(recorded.number("total")?, recorded.bytes_per_second(file)?);
    scenario.zero = recorded.number("duplicate")?.saturating_mul(recorded.page()).min(scenario.memory);
    scenario.writes.bytes_per_second =
        recorded.number("dirty-pages-rate").unwrap_or_default().saturating_mul(recorded.page());
    let part = |name: &str| Duration::from_micros(recorded.0["downtime-parts"][name].as_u64().unwrap_or_default());
    if recorded.0["downtime-parts"].is_object() {
        scenario.pause.stop = part("pause") + part("sync");
        // What the pages took is planned anew; the rest is what devices and destination take.
        let rest = part("devices") + part("confirm") + part("commit");
        scenario.pause.load = rest.saturating_sub(2 * scenario.connection.round_trip);
        scenario.pause.device_bytes = 0;
    }
    Ok(scenario)
}

/// Finds the working set with which as many pages are sent as were, unless it is known. Where all memory is too little for that, the
/// guest wrote pages more than once in a round, which no report counts: it is found how often.
pub(super) fn fit(scenario: &mut Scenario, known: Option<u64>, file: Option<&Path>) -> Result<(), UsageError> {
    let (None, Some(file)) = (known, file) else { return Ok(()) };
    let sent = Recorded::read(file)?.number("normal")?;
    let memory = scenario.memory;
    scenario.writes.working_set = memory;
    let rate = scenario.writes.bytes_per_second;
    if is_enough(scenario, sent)? {
        halve(scenario, sent, (0, memory), |scenario, set| scenario.writes.working_set = set)
    } else {
        let most = rate.saturating_mul(MOST_REPEATED);
        halve(scenario, sent, (rate, most), |scenario, rate| scenario.writes.bytes_per_second = rate)
    }
}

/// Sets the least in a range with which so many pages are sent.
fn halve(
    scenario: &mut Scenario,
    sent: u64,
    (mut small, mut large): (u64, u64),
    set: impl Fn(&mut Scenario, u64),
) -> Result<(), UsageError> {
    for _ in 0..HALVINGS {
        let middle = small + (large - small) / 2;
        set(scenario, middle);
        *(if is_enough(scenario, sent)? { &mut large } else { &mut small }) = middle;
    }
    set(scenario, large);
    Ok(())
}

fn is_enough(scenario: &Scenario, sent: u64) -> Result<bool, UsageError> {
    let plan = plan::run(scenario).map_err(|error| UsageError(error.message().to_owned()))?;
    Ok(plan.report.pages.normal >= sent)
}

impl Recorded {
    fn read(file: &Path) -> Result<Self, UsageError> {
        let refused = |why: String| UsageError(format!("--from {}: {why}", file.display()));
        let text = fs::read_to_string(file).map_err(|error| refused(error.to_string()))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| refused(format!("it is no JSON: {error}")))?;
        // An answer of QMP; the last hop of the demo's report; or the figures alone.
        let hop = value["hops"].as_array().and_then(|hops| hops.last()).map(|hop| &hop["migration"]);
        let figures =
            [hop, Some(&value["return"]), Some(&value)].into_iter().flatten().find(|value| value["ram"].is_object());
        match figures {
            Some(figures) => Ok(Self(figures.clone())),
            None => Err(refused(
                "it has no figures of a migration; write what query-migrate answers when a migration has completed"
                    .into(),
            )),
        }
    }

    fn number(&self, name: &str) -> Result<u64, UsageError> {
        let missing = || UsageError(format!("--from: the migration's figures have no number ram.{name}"));
        self.0["ram"][name].as_u64().ok_or_else(missing)
    }

    fn page(&self) -> u64 {
        self.0["ram"]["page-size"].as_u64().unwrap_or(4096)
    }

    /// As it was measured at the end, `mbps` in 10⁶ bits a second.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates, which is what is wanted"
    )]
    fn bytes_per_second(&self, file: &Path) -> Result<u64, UsageError> {
        let speed = self.0["ram"]["mbps"].as_f64().map_or(0.0, |mbps| mbps * 1e6 / 8.0) as u64;
        let unknown = || UsageError(format!("--from {}: ram.mbps says no speed; give --bandwidth", file.display()));
        Some(speed).filter(|&speed| speed > 0).ok_or_else(unknown)
    }
}
