//! `minivmm plan`: what a migration would be like, played by the engine on a virtual wire before anybody is moved.

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
    /// So much of it is zero, and stays so
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    zero: Option<u64>,
    /// What the guest writes a second, as 2G/s: each write to a page counts 4K
    #[arg(long, value_name = "RATE", value_parser = values::bytes_per_second)]
    dirty_rate: Option<u64>,
    /// So much memory is written at all [default: all that is not zero]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    working_set: Option<u64>,
    /// When and where the guest writes
    #[arg(long, value_name = "PATTERN", default_value = "steady")]
    pattern: PatternName,
    /// vCPUs: more of them take longer to stop and to load
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=4096))]
    vcpus: u32,
    /// Of the wire, in bits a second as networks have it: 100G or 100Gbit/s; or in bytes: 12G/s
    #[arg(long, value_name = "RATE", required_unless_present = "from", value_parser = values::bandwidth)]
    bandwidth: Option<u64>,
    /// From a question to the destination to its answer, as ping shows it, as 0.2ms
    #[arg(long, value_name = "TIME", default_value = "0.2ms", value_parser = values::short_time)]
    latency: Duration,
    /// An answer comes later by up to this much
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = values::short_time)]
    jitter: Duration,
    /// Share of the packets that are lost, as 0.01%
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = values::share)]
    loss: f64,
    /// Of all that is random: the same number gives the same plan
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    /// Take memory, writes, wire and pause from a migration that was: the file of minivmm migrate --report, what query-migrate
    /// answered, or the file of cargo demo --json. Other options win
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
    /// Draw the plan: an SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// What decides.
    #[command(flatten, next_help_heading = "When to switch over, throttle and give up")]
    policy: PolicyArgs,
}

/// When and where a guest writes, by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PatternName {
    /// At all times and places alike
    Steady,
    /// Each vCPU writes in a fifth of the time, five times as fast, 200 ms at a time
    Bursty,
    /// For 10 s with 1.75 times the rate, then for 10 s with a quarter of it, to another working set
    Phased,
    /// Nine writes of ten go to a tenth of the working set
    HotSpot,
}

/// A plan, as it is shown.
#[derive(Clone, Debug)]
pub struct Planned {
    /// For the standard output.
    pub text: String,
    /// The guest would run at the destination.
    pub completes: bool,
}

impl PlanArgs {
    /// Plays the migration, and draws it if that was asked for.
    ///
    /// # Errors
    /// What was asked for cannot be, or a file cannot be read or written.
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

/// What is shown of a plan.
struct Shown<'a> {
    scenario: &'a Scenario,
    plan: &'a Plan,
    /// Where it gives up.
    remedies: Option<Remedies>,
}
