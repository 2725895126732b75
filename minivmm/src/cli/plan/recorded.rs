//! A recorded migration as a scenario: memory, writes, wire, pause and other work, as its report has them.

use std::fs;
use std::num::NonZeroU64;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use vmstate::migrate::plan::{self, Plan, Scenario};

use crate::cli::UsageError;

/// Most writes to a page in a round that are assumed for each one that a report counts.
const MOST_REPEATED: u64 = 64;
/// Bisections of the range of the working set: exact to less than a page of a gibibyte.
const HALVINGS: u32 = 18;

/// A recorded migration.
struct Recorded {
    /// The answer to `query-migrate`.
    figures: Value,
    /// Each round, and the parameters used; only a report has them.
    rounds: Value,
    parameters: Value,
}

/// Builds the scenario whose plan reproduces the recorded migration.
pub(super) fn scenario(file: &Path) -> Result<Scenario, UsageError> {
    let recorded = Recorded::read(file)?;
    let mut scenario = Scenario::new(recorded.number("total")?, recorded.bytes_per_second(file)?);
    scenario.zero = recorded.number("duplicate")?.saturating_mul(recorded.page()).min(scenario.memory);
    // The setup has two round trips: the handshake and the preflight.
    scenario.setup = recorded.milliseconds("setup-time").saturating_sub(2 * scenario.connection.round_trip);
    let part =
        |name: &str| Duration::from_micros(recorded.figures["downtime-parts"][name].as_u64().unwrap_or_default());
    if recorded.figures["downtime-parts"].is_object() {
        scenario.pause.stop = part("pause") + part("sync");
        // The plan computes the time of the pages; the rest is the time of the devices and the destination.
        let rest = part("devices") + part("confirm") + part("commit");
        scenario.pause.load = rest.saturating_sub(2 * scenario.connection.round_trip);
        scenario.pause.device_bytes = 0;
    }
    if let Some(limit) = recorded.parameters["max-bandwidth"].as_u64() {
        scenario.parameters.max_bandwidth = NonZeroU64::new(limit);
    }
    if let Some(limit) = recorded.parameters["downtime-limit"].as_u64() {
        scenario.parameters.downtime_limit = Duration::from_millis(limit);
    }
    fit_writes(&mut scenario, &recorded)?;
    if let Some(between) = recorded.between_rounds() {
        let plan = played(&scenario)?;
        let rounds = u32::try_from(plan.rounds.len().max(1)).unwrap_or(u32::MAX);
        scenario.after_round = between.saturating_sub(between_rounds(&plan)) / rounds;
        // The guest wrote during this time, too.
        fit_writes(&mut scenario, &recorded)?;
    }
    Ok(scenario)
}

/// Time of a plan outside of setup, rounds and pause.
fn between_rounds(plan: &Plan) -> Duration {
    let rounds: Duration = plan.report.rounds.iter().map(|round| round.duration).sum();
    let pause = plan.report.downtime.map(|downtime| downtime.total()).unwrap_or_default();
    plan.report.total.saturating_sub(plan.report.setup + rounds + pause)
}

/// Finds the working set with which the plan sends as many pages as were sent, since no report has it. If even all memory is
/// too little, the guest wrote pages more than once in a round, which no report counts: then the number of writes per page is
/// found.
fn fit_writes(scenario: &mut Scenario, recorded: &Recorded) -> Result<(), UsageError> {
    let sent = recorded.number("normal")?;
    let memory = scenario.memory;
    let rate = recorded.number("dirty-pages-rate").unwrap_or_default().saturating_mul(recorded.page());
    (scenario.writes.working_set, scenario.writes.bytes_per_second) = (memory, rate);
    if is_enough(scenario, sent)? {
        halve(scenario, sent, (0, memory), |scenario, set| scenario.writes.working_set = set)
    } else {
        let most = rate.saturating_mul(MOST_REPEATED);
        halve(scenario, sent, (rate, most), |scenario, rate| scenario.writes.bytes_per_second = rate)
    }
}

/// Bisects for the least value of a range with which the plan sends so many pages.
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
    Ok(played(scenario)?.report.pages.normal >= sent)
}

fn played(scenario: &Scenario) -> Result<Plan, UsageError> {
    plan::run(scenario).map_err(|error| UsageError(error.message().to_owned()))
}

impl Recorded {
    fn read(file: &Path) -> Result<Self, UsageError> {
        let refused = |why: String| UsageError(format!("--from {}: {why}", file.display()));
        let text = fs::read_to_string(file).map_err(|error| refused(error.to_string()))?;
        // A report is an HTML page that embeds its numbers as JSON.
        let inside = text.split_once(r#"id="data">"#).and_then(|(_, data)| data.split_once("</script>"));
        let json = inside.map_or(text.as_str(), |(data, _)| data);
        let value: Value = serde_json::from_str(json).map_err(|error| refused(format!("it is no JSON: {error}")))?;
        // The figures of a report, of an answer of QMP, of the last hop of the demo's report, or the figures alone.
        let hop = value["hops"].as_array().and_then(|hops| hops.last()).map(|hop| &hop["migration"]);
        let figures = [hop, Some(&value["figures"]), Some(&value["return"]), Some(&value)];
        match figures.into_iter().flatten().find(|value| value["ram"].is_object()) {
            Some(figures) => Ok(Self {
                figures: figures.clone(),
                rounds: value["rounds"].clone(),
                parameters: value["parameters"].clone(),
            }),
            None => Err(refused(
                "it has no figures of a migration; give it a report of minivmm migrate, or write what query-migrate answers when \
                 a migration has completed"
                    .into(),
            )),
        }
    }

    fn milliseconds(&self, name: &str) -> Duration {
        Duration::from_millis(self.figures[name].as_u64().unwrap_or_default())
    }

    /// Counterpart of [`between_rounds`] for the recorded migration; `None` if the file does not say how long each round took.
    fn between_rounds(&self) -> Option<Duration> {
        let lasted = |round: &Value| round["duration-us"].as_u64().map(Duration::from_micros);
        let rounds: Duration = self.rounds.as_array()?.iter().map(lasted).sum::<Option<_>>()?;
        let besides = rounds + self.milliseconds("setup-time") + self.milliseconds("downtime");
        Some(self.milliseconds("total-time").saturating_sub(besides))
    }

    fn number(&self, name: &str) -> Result<u64, UsageError> {
        let missing = || UsageError(format!("--from: the migration's figures have no number ram.{name}"));
        self.figures["ram"][name].as_u64().ok_or_else(missing)
    }

    fn page(&self) -> u64 {
        self.figures["ram"]["page-size"].as_u64().unwrap_or(4096)
    }

    /// Bandwidth as measured at the end; `mbps` is in 10⁶ bits a second.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, as intended")]
    fn bytes_per_second(&self, file: &Path) -> Result<u64, UsageError> {
        let speed = self.figures["ram"]["mbps"].as_f64().map_or(0.0, |mbps| mbps * 1e6 / 8.0) as u64;
        let unknown = || UsageError(format!("--from {}: ram.mbps says no speed; give --bandwidth", file.display()));
        Some(speed).filter(|&speed| speed > 0).ok_or_else(unknown)
    }
}
