//! Prints the published state for Prometheus, in the text format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).
//!
//! Names end with their unit, by Prometheus' convention: seconds, bytes, ratios of 0 to 1. A figure that a migration has not
//! measured has no sample.

use std::fmt::{Display, Write};
use std::time::Duration;

use vmstate::migrate::{Phase, Progress};

use crate::control::report;
use crate::kvm::exits::Reason;
use crate::memory::PAGE_SIZE;
use crate::migration::disk::DiskFigures;
use crate::vm::{Handle, MigrationStatus};

/// Prints all metrics of the machine. It reads what the driver has published, and never waits.
pub(super) fn page(handle: &Handle) -> String {
    let mut page = Page::default();
    page.gauge(
        "minivmm_build_info",
        "Release of minivmm; always 1.",
        [(format!("version=\"{}\"", env!("CARGO_PKG_VERSION")), 1)],
    );
    let state = handle.run_state().as_str();
    page.gauge("minivmm_guest_running", "Whether the guest's vCPUs run: 1 or 0.", [one(u8::from(state == "running"))]);
    page.gauge(
        "minivmm_run_state_info",
        "Run state of the machine, as the label; always 1.",
        [(format!("state=\"{state}\""), 1)],
    );
    exits(&mut page, handle);
    let info = handle.migration();
    let side = match info.phase {
        Phase::Source(_) => "source",
        Phase::Destination(_) => "destination",
        _ => "none",
    };
    let status = info.status();
    let labels = format!("side=\"{side}\",status=\"{}\"", status.as_str());
    page.gauge(
        "minivmm_migration_info",
        "The migration that runs, or the last one: its side and QMP's status; always 1.",
        [(labels, 1)],
    );
    let under_way = matches!(status, MigrationStatus::Active | MigrationStatus::Device | MigrationStatus::Cancelling);
    page.gauge("minivmm_migration_active", "Whether the guest is being migrated: 1 or 0.", [one(u8::from(under_way))]);
    migration(&mut page, &info.figures);
    disk(&mut page, info.disk);
    let limits = handle.parameters();
    page.gauge(
        "minivmm_migration_downtime_limit_seconds",
        "The longest pause at which a migration switches over.",
        [one(seconds(limits.downtime_limit))],
    );
    page.gauge(
        "minivmm_migration_max_bandwidth_bytes_per_second",
        "The most that a migration sends; 0 is no limit.",
        [one(limits.max_bandwidth.map_or(0, |limit| limit.get()))],
    );
    page.0
}

fn exits(page: &mut Page, handle: &Handle) {
    let vcpus = handle.inventory().vcpu_exits;
    let samples = vcpus.iter().enumerate().flat_map(|(vcpu, exits)| {
        Reason::ALL.map(|reason| (format!("vcpu=\"{vcpu}\",reason=\"{}\"", reason.as_str()), exits.get(reason)))
    });
    page.counter("minivmm_vcpu_exits_total", "Times that a vCPU left the guest for minivmm, by reason.", samples);
}

fn migration(page: &mut Page, figures: &Progress) {
    page.gauge(
        "minivmm_migration_elapsed_seconds",
        "Time since the migration began, or from its beginning to its end.",
        [one(seconds(figures.elapsed))],
    );
    page.gauge("minivmm_migration_rounds", "Rounds begun.", [one(figures.rounds)]);
    page.gauge("minivmm_migration_transferred_bytes", "Bytes on the wire so far.", [one(figures.bytes)]);
    page.gauge("minivmm_migration_remaining_bytes", "Guest memory still to send.", [one(figures.remaining_bytes)]);
    page.gauge("minivmm_migration_ram_bytes", "Guest memory in all.", [one(figures.ram_bytes)]);
    let changes = figures.xbzrle.map_or(0, |count| count.encoded);
    let kinds =
        [("normal", figures.normal_pages.saturating_sub(changes)), ("zero", figures.zero_pages), ("xbzrle", changes)];
    let kinds = kinds.map(|(kind, pages)| (format!("kind=\"{kind}\""), pages.saturating_mul(PAGE_SIZE)));
    page.gauge(
        "minivmm_migration_page_bytes",
        "Guest memory moved, by the form of its pages: whole, zero, or only their changes.",
        kinds,
    );
    page.gauge(
        "minivmm_migration_dirty_bytes_per_second",
        "Guest memory dirtied a second, over the last round.",
        [one(figures.dirty_pages_per_second.saturating_mul(PAGE_SIZE))],
    );
    page.gauge(
        "minivmm_migration_bandwidth_bytes_per_second",
        "Bytes on the wire a second.",
        [one(figures.bytes_per_second)],
    );
    page.gauge(
        "minivmm_migration_throttle_ratio",
        "Part by which the throttle lowers the guest's dirty rate.",
        [one(f64::from(figures.throttle_percent) / 100.0)],
    );
    page.gauge(
        "minivmm_migration_slowdown_ratio",
        "Part of the elapsed time for which a vCPU was stopped, on average, before the pause.",
        [one(figures.slowdown.share(figures.elapsed))],
    );
    page.gauge(
        "minivmm_migration_expected_downtime_seconds",
        "Predicted pause of the guest.",
        figures.expected_downtime.map(|time| one(seconds(time))),
    );
    page.gauge(
        "minivmm_migration_expected_total_seconds",
        "Predicted time from the beginning to the end.",
        figures.expected_total.map(|time| one(seconds(time))),
    );
    page.gauge(
        "minivmm_migration_downtime_seconds",
        "Measured pause of the guest, once it is over.",
        figures.downtime.map(|downtime| one(seconds(downtime.total()))),
    );
    let parts = figures.downtime.into_iter().flat_map(report::parts);
    page.gauge(
        "minivmm_migration_downtime_part_seconds",
        "Parts of the measured pause.",
        parts.map(|(part, time)| (format!("part=\"{part}\""), seconds(time))),
    );
}

fn disk(page: &mut Page, figures: Option<DiskFigures>) {
    let mut gauge =
        |name, help, of: fn(DiskFigures) -> u64| page.gauge(name, help, figures.map(|figures| one(of(figures))));
    gauge("minivmm_migration_disk_transferred_bytes", "Data of copied disks sent so far.", |disk| disk.transferred);
    gauge("minivmm_migration_disk_remaining_bytes", "Content of copied disks still to send.", |disk| disk.remaining);
    gauge("minivmm_migration_disk_bytes", "Size of the copied disks.", |disk| disk.total);
}

/// Text of the page so far.
#[derive(Default)]
struct Page(String);

impl Page {
    /// Adds a metric whose value goes up and down.
    fn gauge(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (String, impl Display)>) {
        self.family("gauge", (name, help), samples);
    }

    /// Adds a metric whose value goes up until the machine is reset.
    fn counter(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (String, impl Display)>) {
        self.family("counter", (name, help), samples);
    }

    /// Adds a family of samples: for each its labels, as written between braces, and its value.
    fn family(
        &mut self,
        kind: &str,
        (name, help): (&str, &str),
        samples: impl IntoIterator<Item = (String, impl Display)>,
    ) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in samples {
            let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
            let _ = writeln!(self.0, "{name}{open}{labels}{close} {value}");
        }
    }
}

/// Makes a sample without labels.
fn one<T>(value: T) -> (String, T) {
    (String::new(), value)
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}
