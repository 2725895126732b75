//! The demo with a Linux guest, on a machine that can run such guests.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use minivmm::cli::report::Record;
use serde_json::{Value, json};

use crate::demo::{completed, show_migration};
use crate::findings::Findings;
use crate::in_place;
use crate::mode::{Destination, Means, Mode, load};
use crate::progress::Progress;
use crate::report::{Check, DemoReport, Times};
use crate::route::{Monitor, Route};
use crate::signals;
use crate::tick_gap::{self, ClockOffset, QUIET, TickGap};
use crate::waits::Waits;
use vmstate_lab::bench::{Bench, Guest};
use vmstate_lab::error::{Error, Result};
use vmstate_lab::guest::net::Peer;
use vmstate_lab::kernel::Kernel;
use vmstate_lab::l1;
use vmstate_lab::network::{Network, Way};
use vmstate_lab::vmm::{Program, Vmm};

/// Time that the guest works before the first migration, and after each.
const WORK: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(60);
const MIGRATION: Duration = Duration::from_secs(120);

/// Downtime limit of a second attempt, if minivmm gave up the first one: on a busy host the pause alone may exceed
/// minivmm's default limit. The guest goes on running at the source meanwhile.
const LIMIT_MS: u64 = 3000;

/// The programs of a route.
#[derive(Debug)]
pub(crate) struct Programs {
    /// An executable with the lab's roles.
    pub(crate) roles: PathBuf,
    pub(crate) minivmm: PathBuf,
    /// QEMU, if the route has one.
    pub(crate) qemu: Option<PathBuf>,
}

impl Programs {
    pub(crate) fn of(&self, monitor: Monitor) -> Program {
        match (monitor, &self.qemu) {
            (Monitor::Qemu, Some(qemu)) => Program::Qemu(qemu.clone(), "kvm"),
            _ => Program::Minivmm(self.minivmm.clone()),
        }
    }
}

/// Boots the guest, migrates it along the route, and verifies it after each migration.
pub(crate) fn migrate(
    scratch: &Path,
    programs: &Programs,
    route: &Route,
    kernel: &Kernel,
    guest: &Guest,
    way: Way,
    means: Means,
) -> Result<DemoReport> {
    let mut progress = Progress::new();
    // Before any thread is started: only a process without threads can enter a user namespace.
    let network = Network::enter();
    signals::remove_on_interrupt(scratch.to_owned());
    let refused = |error| Error::failed(format!("the network's peer: {error}"));
    let peer = network.as_ref().ok().map(|_| Peer::start()).transpose().map_err(refused)?;

    progress.show(&format!("booting Linux {} in {}", kernel.version, route.first), "");
    let program = programs.of(route.first);
    let mut bench = Bench::new(scratch, &programs.roles, program, kernel, guest, network.as_ref().ok())?;
    bench.go_by(way);
    bench.give(means.mode.arguments());
    let booting = Instant::now();
    let mut vmm = bench.boot()?;
    let ready = Instant::now();
    let cpus = if guest.cpus == 1 { "1 vCPU".into() } else { format!("{} vCPUs", guest.cpus) };
    let machine = format!("Linux {}, {cpus}, {} MiB", kernel.version, guest.memory_mib);
    let first = vmm.name()?;
    progress.end();
    let mut report = DemoReport::begin(machine, first, ready - booting);
    work(&mut progress, "letting the guest work");

    let peer = peer.as_ref().ok_or_else(|| network.as_ref().err().map(ToString::to_string).unwrap_or_default());
    let mut journey = Journey { bench, programs, means, ready, peer, way, verified: Value::Null };
    let mut from = route.first;
    for (number, &to) in (1..).zip(&route.then) {
        let moved = journey.hop(&mut progress, vmm, from, to);
        let (arrived, findings) =
            moved.map_err(|error| Error::failed(format!("hop {number}, {from} to {to}: {error}")))?;
        progress.end();
        report.add(findings.hop());
        (vmm, from) = (arrived, to);
    }
    vmm.type_in("poweroff\n")?;
    let off = vmm.process().wait(Instant::now() + ANSWER)?.success();
    report.end(Check::off(off));
    Ok(report)
}

/// A guest and what it migrates with.
struct Journey<'a> {
    bench: Bench<'a>,
    programs: &'a Programs,
    means: Means,
    /// When the guest's workload began.
    ready: Instant,
    /// The network's peer, or why there is none.
    peer: std::result::Result<&'a Peer, String>,
    /// How the guest's card is connected to the network.
    way: Way,
    /// The guest's last verification.
    verified: Value,
}

impl Journey<'_> {
    /// Migrates to the next monitor, lets the guest work there, and verifies it.
    fn hop(&mut self, progress: &mut Progress, mut source: Vmm, from: Monitor, to: Monitor) -> Result<(Vmm, Findings)> {
        if from == Monitor::Qemu {
            source.listen(true)?;
        }
        let emulated = std::env::var_os(l1::INSIDE).is_some();
        let in_place = match emulated {
            true => {
                progress.show("rewriting its memory in place", "");
                in_place::measure(&mut source, u64::from(self.bench.config().memory_mib) << 20)?
            }
            false => None,
        };
        let mut attempt = self.attempt(progress, &mut source, to)?;
        let gave_up = gave_up(&attempt.migration);
        if gave_up.is_some() {
            raise_limit(&mut source)?;
            attempt = self.attempt(progress, &mut source, to)?;
        }
        let Attempt { mut destination, before, clock, begun, migration, record } = attempt;
        let migration = completed(migration)?;
        std::thread::sleep(QUIET);
        destination.await_status("running", Instant::now() + ANSWER)?;
        let arrived = self.ready.elapsed().saturating_sub(tick_gap::since_resume(&destination));
        let arrival = Mark::take(&mut destination)?;
        let clocks = [clock, ClockOffset::measure(&mut destination)?];
        let left_behind = source.status()?;
        let stopped = tick_gap::stopped(&source, &destination);
        let felt = TickGap::new(&arrival.content, clocks, stopped);
        // In a file the guest's clocks are stopped, and no monitor counts that as downtime. A QEMU in post-copy does
        // not count what follows its command to run, and does not answer such a command from another program.
        let is_unmeasured = match self.means.mode {
            Mode::Snapshot => true,
            Mode::Postcopy => [from, to].contains(&Monitor::Qemu),
            Mode::Precopy | Mode::Update => false,
        };
        let stopped_time = match stopped {
            Some([stop, resume]) if is_unmeasured => resume.saturating_sub(stop),
            _ => Duration::from_millis(migration["downtime"].as_u64().unwrap_or(0)),
        };
        let waits = match self.means.mode {
            Mode::Postcopy => Waits::of(&arrival.content["memory"]).zip(Waits::of(&before.content["memory"])),
            Mode::Precopy | Mode::Update | Mode::Snapshot => None,
        };
        let waits = waits.map(|(across, usual)| [across, usual]);
        let names = (source.name()?, destination.name()?);
        let record = ended(record, [&names.0, &names.1], &migration, &mut source);
        source.process().kill();

        work(progress, "letting the guest work at the destination");
        progress.show("verifying", "");
        let after = Mark::take(&mut destination)?;
        let verified = destination.ask("report", Instant::now() + ANSWER)?;
        let times = Times { begun, arrived, verified: self.ready.elapsed() };
        // The guest went on sending after the verification.
        let sent = verified["net"]["sent"].as_u64().unwrap_or(0);
        let packets = self.peer.clone().map(|peer| peer.tally().of_first(sent).report());
        let earlier = std::mem::replace(&mut self.verified, verified.clone());
        let (from, to, at) = (names.0, names.1, to);
        let findings = Findings {
            from,
            to,
            at,
            gave_up,
            times,
            before,
            arrival,
            felt,
            stopped_time,
            in_place,
            waits,
            after,
            earlier,
            verified,
            migration,
            record,
            left_behind,
            packets,
            way: self.way,
        };
        Ok((destination, findings))
    }

    /// Starts a destination and migrates to it; returns how that ended.
    fn attempt(&mut self, progress: &mut Progress, source: &mut Vmm, to: Monitor) -> Result<Attempt> {
        progress.show(&format!("starting the destination, {to}"), "");
        self.bench.change_to(self.programs.of(to));
        let (destination, uri) = match self.means.mode {
            Mode::Precopy if self.means.copy_disk => {
                self.bench.incoming_with_disk().map(|(vmm, uri)| (Destination::Ready(vmm.into()), uri))?
            }
            Mode::Precopy => self.bench.incoming().map(|(vmm, uri)| (Destination::Ready(vmm.into()), uri))?,
            Mode::Postcopy => {
                let means = self.means;
                let (vmm, uri) = self.bench.incoming_prepared(|vmm| means.allow(vmm))?;
                (Destination::Ready(vmm.into()), uri)
            }
            Mode::Update => self.bench.update().map(|(started, uri)| (Destination::Awaiting(started), uri))?,
            Mode::Snapshot => (Destination::Later, self.bench.file()),
        };
        let clock = ClockOffset::measure(source)?;
        let before = Mark::take(source)?;
        let begun = self.ready.elapsed();
        let mut record = Record::default();
        self.means.start(source, &uri)?;
        let destination = destination.connect()?;
        let migration = source.follow_migration(Instant::now() + MIGRATION, |info| {
            show_migration(progress, info);
            record.look(info);
            if info["status"] == "device" {
                std::thread::sleep(QUIET);
            }
        })?;
        let destination = match destination {
            Some(destination) => destination,
            None => {
                completed(migration.clone())?;
                load(self.bench.start(Some("defer".into()))?, &uri)?
            }
        };
        Ok(Attempt { destination, before, clock, begun, migration, record })
    }
}

/// A migration that has ended, completed or not.
struct Attempt {
    destination: Vmm,
    before: Mark,
    /// The guest's clock at the source.
    clock: ClockOffset,
    begun: Duration,
    /// The source's last figures.
    migration: Value,
    record: Record,
}

/// The figures for the HTML page on a finished migration; without those that the source has no query for.
pub(crate) fn ended(record: Record, [from, to]: [&str; 2], migration: &Value, source: &mut Vmm) -> Value {
    let sentence = format!("The guest runs at the destination. It came from {from}.");
    record.end((to, &sentence), migration.clone(), |query| source.qmp.execute(query, Value::Null).unwrap_or_default())
}

/// The reason with which minivmm gave up a migration because its pause would be too long, if it did.
pub(crate) fn gave_up(migration: &Value) -> Option<String> {
    migration["error-desc"].as_str().filter(|reason| reason.starts_with("gave up")).map(str::to_owned)
}

/// Raises the downtime limit for a second attempt.
pub(crate) fn raise_limit(source: &mut Vmm) -> Result<()> {
    source.qmp.execute("migrate-set-parameters", json!({ "downtime-limit": LIMIT_MS })).map(|_| ())
}

fn work(progress: &mut Progress, step: &str) {
    let begun = Instant::now();
    while let Some(left) = WORK.checked_sub(begun.elapsed()) {
        progress.show(step, &format!("{:.0} s", left.as_secs_f64().ceil()));
        std::thread::sleep(left.min(Duration::from_millis(500)));
    }
}

/// A reading of the guest's clocks, ticks and complaints, with the host's times around the reading of the clocks.
#[derive(Debug)]
pub(crate) struct Mark {
    pub(crate) asked: Instant,
    pub(crate) answered: Instant,
    pub(crate) content: Value,
}

impl Mark {
    fn take(vmm: &mut Vmm) -> Result<Self> {
        let asked = Instant::now();
        let content = vmm.ask("mark", asked + ANSWER)?;
        Ok(Self { asked, answered: Instant::now(), content })
    }
    /// A figure of the tick since the previous mark.
    pub(crate) fn tick(&self, figure: &str) -> Option<u64> {
        self.content["tick"][figure].as_u64()
    }
}
