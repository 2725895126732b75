//! `minivmm plan` predicts a migration: the engine migrates a simulated guest over a simulated wire.

mod picture;
mod recorded;
pub(super) mod report;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use vmstate::migrate::plan::{self, Pattern, Pause, Plan, Remedies, Scenario};

use crate::cli::parameters::PolicyArgs;
use crate::cli::{UsageError, values};

/// Flags of `minivmm plan`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Sizes and rates in bytes take K, M, G and T as powers of 1024, bits a second as powers of 1000. A plan has no \
max-bandwidth unless it is given, and gives up after 200 rounds unless max-rounds or deadline is given. The exit code is 0 if the \
migration completes, 1 if it gives up.

Examples:
  minivmm plan --memory 16G --dirty-rate 500M/s --bandwidth 10G
  minivmm plan --memory 4T --dirty-rate 2G/s --working-set 64G --bandwidth 100G --auto-converge --plot plan.svg
  minivmm plan --from move.html --bandwidth 1G"
)]
pub struct PlanArgs {
    /// Guest memory
    #[arg(long, value_name = "SIZE", required_unless_present = "from", value_parser = values::size)]
    memory: Option<u64>,
    /// Part of guest memory that is zero and stays so
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    zero: Option<u64>,
    /// Rate at which the guest writes memory, as 2G/s: each write to a page counts 4K
    #[arg(long, value_name = "RATE", value_parser = values::bytes_per_second)]
    dirty_rate: Option<u64>,
    /// Part of guest memory that the guest writes to [default: all that is not zero]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    working_set: Option<u64>,
    /// When and where the guest writes
    #[arg(long, value_name = "PATTERN", default_value = "steady")]
    pattern: PatternName,
    /// Number of vCPUs: more of them take longer to stop and to load
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=4096))]
    vcpus: u32,
    /// Bandwidth of the wire, in bits a second as networks have it: 100G or 100Gbit/s; or in bytes: 12G/s
    #[arg(long, value_name = "RATE", required_unless_present = "from", value_parser = values::bandwidth)]
    bandwidth: Option<u64>,
    /// Round-trip time of the wire, as ping shows it: 0.2ms
    #[arg(long, value_name = "TIME", default_value = "0.2ms", value_parser = values::short_time)]
    latency: Duration,
    /// Jitter of the wire: an answer comes later by up to this time
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = values::short_time)]
    jitter: Duration,
    /// Share of the packets that the wire loses, as 0.01%
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = values::share)]
    loss: f64,
    /// Seed of the random numbers: the same seed gives the same plan
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    /// Take memory, writes, wire and pause from a recorded migration: the file of minivmm migrate --report, the answer to
    /// query-migrate, or the file of cargo demo --json. Other options override it
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
    /// Draw the plan to an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Parameters of the policy.
    #[command(flatten, next_help_heading = "When to switch over, throttle and give up")]
    policy: PolicyArgs,
}

/// When and where a guest writes, by the pattern's name.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PatternName {
    /// At a constant rate, all over the working set
    Steady,
    /// Each vCPU writes for a fifth of the time, five times as fast, in bursts of 200 ms
    Bursty,
    /// 10 s at 1.75 times the rate, then 10 s at a quarter of the rate to another working set
    Phased,
    /// Nine of ten writes go to a tenth of the working set
    HotSpot,
}

/// Output of a plan.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Text for the standard output.
    pub text: String,
    /// Whether the guest would run at the destination.
    pub completes: bool,
}

impl PlanArgs {
    /// Simulates the migration, and draws it if a picture was asked for.
    ///
    /// # Errors
    /// The scenario is impossible, or a file cannot be read or written.
    pub fn carry_out(&self) -> Result<Planned, UsageError> {
        let scenario = self.scenario()?;
        let misuse = |error: vmstate::Error| UsageError(error.message().to_owned());
        let plan = plan::run(&scenario).map_err(misuse)?;
        let remedies = if plan.is_completed() { None } else { Some(scenario.remedies().map_err(misuse)?) };
        let shown = Shown { scenario: &scenario, plan: &plan, remedies };
        if let Some(file) = &self.plot {
            fs::write(file, picture::draw(&shown))
                .map_err(|error| UsageError(format!("--plot {}: {error}", file.display())))?;
        }
        let text = if self.json { report::json(&shown).to_string() } else { report::text(&shown) };
        Ok(Planned { text, completes: plan.is_completed() })
    }

    fn scenario(&self) -> Result<Scenario, UsageError> {
        let mut scenario = match &self.from {
            Some(file) => recorded::scenario(file)?,
            None => Scenario::new(0, 0),
        };
        if self.from.is_none() || self.vcpus != 1 {
            (scenario.vcpus, scenario.pause) = (self.vcpus, Pause::with_vcpus(self.vcpus));
        }
        let set = |value: &mut u64, given: Option<u64>| *value = given.unwrap_or(*value);
        set(&mut scenario.memory, self.memory);
        set(&mut scenario.zero, self.zero);
        set(&mut scenario.writes.bytes_per_second, self.dirty_rate);
        set(&mut scenario.writes.working_set, self.working_set.or(self.memory.filter(|_| self.from.is_none())));
        set(&mut scenario.connection.bytes_per_second, self.bandwidth);
        scenario.writes.pattern = match self.pattern {
            PatternName::Steady => Pattern::Steady,
            PatternName::Bursty => Pattern::Bursty,
            PatternName::Phased => Pattern::Phased,
            PatternName::HotSpot => Pattern::HotSpot,
        };
        (scenario.connection.round_trip, scenario.connection.jitter) = (self.latency, self.jitter);
        scenario.connection.loss = self.loss;
        scenario.seed = self.seed;
        scenario.parameters = self.policy.of(scenario.parameters)?;
        Ok(scenario)
    }
}

/// A plan and its scenario, for the three outputs: text, JSON and picture.
struct Shown<'a> {
    scenario: &'a Scenario,
    plan: &'a Plan,
    /// Changes that would let the migration complete; `None` if it completes.
    remedies: Option<Remedies>,
}
