//! The demo with the ticking guest: bare metal, no download, on any `/dev/kvm`, in seconds.
//!
//! The guest checks a page in each tick and prints the tick's number. So its console shows when the guest ran, whether
//! it went on at the tick where it stopped, and whether its memory is right.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use minivmm::cli::report::Record;
use serde_json::{Value, json};

use crate::demo::{completed, show_migration};
use crate::linux::{self, Programs};
use crate::mode::{Destination, Means, Mode, load};
use crate::progress::Progress;
use crate::report::{Check, DemoReport, Hop, Times};
use crate::route::{Monitor, Route};
use crate::signals;
use crate::tick_gap::{self, TickGap};
use crate::waits::Waits;
use vmstate_lab::error::{Error, FileContext, Result};
use vmstate_lab::guest::waits::figures;
use vmstate_lab::tiny::tick::{self, ticks_and_waits};
use vmstate_lab::vmm::{Config, Program, Started, Vmm};

/// Pages of the guest: 8 MiB, which take half a second.
const PAGES: u64 = 2048;
/// Time between two ticks: some 5000 ticks and pages a second, as the Linux guest dirties memory; 0.2 ms with a time
/// stamp counter of 2.6 GHz.
const SPAN: u64 = 8;
/// Time stamp counter ticks above which an access to a page is a wait: a tick's time. To map a page that is there takes less.
const WAIT: u64 = SPAN << 16;
/// Number of ticks after which every page has been checked.
const PASS: usize = PAGES as usize;
/// Number of ticks that are watched before a migration.
const WATCHED: usize = 1000;
const TIMEOUT: Duration = Duration::from_secs(60);

/// Time after an arrival in which the monitors are not queried.
const QUIET: Duration = Duration::from_millis(200);

/// Boots the guest, migrates it along the route, and verifies it after each migration.
pub(crate) fn migrate(scratch: &Path, programs: &Programs, route: &Route, means: Means) -> Result<DemoReport> {
    signals::remove_on_interrupt(scratch.to_owned());
    let mut progress = Progress::new();
    let kernel = scratch.join("tick");
    fs::write(&kernel, tick::bzimage()).doing("write", &kernel)?;
    let config = Config {
        kernel,
        initrd: None,
        append: tick::command_line_with_waits(PAGES, SPAN, WAIT),
        memory_mib: 16,
        cpus: 1,
        disk: None,
        card: None,
        uso: true,
        control: scratch.join("control0"),
        incoming: None,
        more: Vec::new(),
    };
    let mut journey =
        Journey { scratch, programs, means, config, started: 0, ready: Instant::now(), tick: Duration::ZERO };
    progress.show("booting the tiny guest", "");
    let booting = Instant::now();
    let mut vmm = journey.start(route.first, None)?.connect()?;
    await_ticks(&vmm, 1)?;
    journey.ready = Instant::now();
    let first = vmm.name()?;
    progress.end();
    let machine = "a bare-metal program, 1 vCPU, 16 MiB".into();
    let mut report = DemoReport::begin(machine, first, journey.ready - booting);
    // Wait until each page is written.
    let watched = await_ticks(&vmm, PASS)?;
    journey.tick = journey.ready.elapsed() / u32::try_from(watched).unwrap_or(u32::MAX).max(1);

    let mut from = route.first;
    for (number, &to) in (1..).zip(&route.then) {
        let hop = journey.hop(&mut progress, vmm, from, to);
        let (arrived, hop) = hop.map_err(|error| Error::failed(format!("hop {number}, {from} to {to}: {error}")))?;
        progress.end();
        report.add(hop);
        (vmm, from) = (arrived, to);
    }
    vmm.type_in("q")?;
    let off = vmm.process().wait(Instant::now() + TIMEOUT)?.success();
    report.end(Check::off(off));
    Ok(report)
}

/// A guest and what it migrates with.
struct Journey<'a> {
    scratch: &'a Path,
    programs: &'a Programs,
    means: Means,
    config: Config,
    /// Number of monitors started.
    started: usize,
    /// When the guest was ready.
    ready: Instant,
    /// Time between two ticks.
    tick: Duration,
}

impl Journey<'_> {
    fn start(&mut self, monitor: Monitor, incoming: Option<String>) -> Result<Started> {
        let program = self.programs.of(monitor);
        self.config.control = self.scratch.join(format!("control{}", self.started));
        self.config.incoming = incoming;
        // Some KVMs that this guest is meant for refuse the register that this flag selects, and QEMU then exits.
        let more = match program {
            Program::Qemu(..) => &["-cpu", "host,-arch-capabilities"],
            Program::Minivmm(_) => self.means.mode.arguments(),
        };
        self.config.more = more.iter().map(|&word| word.to_owned()).collect();
        self.started += 1;
        Started::spawn(Some(&self.programs.roles), &program, &self.config)
    }

    /// Migrates, and lets the guest work at the destination.
    fn hop(&mut self, progress: &mut Progress, mut source: Vmm, from: Monitor, to: Monitor) -> Result<(Vmm, Hop)> {
        if from == Monitor::Qemu {
            source.listen(true)?;
        }
        let mut begun = self.ready.elapsed();
        let undisturbed = ticks_and_waits(&source.console()).0.len();
        let (mut destination, mut migration, mut record) = self.attempt(progress, &mut source, to)?;
        let gave_up = linux::gave_up(&migration);
        if gave_up.is_some() {
            linux::raise_limit(&mut source)?;
            begun = self.ready.elapsed();
            (destination, migration, record) = self.attempt(progress, &mut source, to)?;
        }
        let migration = completed(migration)?;
        std::thread::sleep(QUIET);
        destination.await_status("running", Instant::now() + TIMEOUT)?;
        let arrived = self.ready.elapsed().saturating_sub(tick_gap::since_resume(&destination));
        let left_behind = source.status()?;
        let stopped = tick_gap::stopped(&source, &destination);
        let (from, to) = (source.name()?, destination.name()?);
        let record = linux::ended(record, [&from, &to], &migration, &mut source);
        // Quit the source and read its console to the end, so that the guest's last tick there is included.
        source.qmp.execute("quit", Value::Null)?;
        source.wait_end(Instant::now() + TIMEOUT)?;

        progress.show("letting the guest work at the destination", "");
        await_ticks(&destination, PASS)?;
        let consoles = [source.console(), destination.console()];
        let (ticks, waits) = ticks_and_waits(&consoles.concat());
        let (before, earlier) = ticks_and_waits(&consoles[0]);
        let counted = [before.len(), ticks.len() - before.len()];
        let undisturbed = undisturbed.saturating_sub(WATCHED)..undisturbed;
        let usual = earlier.iter().filter(|(tick, _)| undisturbed.contains(tick));
        let waits = match self.means.mode {
            Mode::Postcopy => self.waits(&waits[earlier.len()..]).zip(self.waits(usual)),
            Mode::Precopy | Mode::Update | Mode::Snapshot => None,
        };
        let waits = waits.map(|(across, usual)| [across, usual]);
        let times = [source.console_times(), destination.console_times()];
        let watched = &times[0][times[0].len().saturating_sub(WATCHED)..];
        let felt = TickGap::between([&times[0], &times[1]], stopped);
        let in_turn = tick::in_turn(&ticks);
        let checks = vec![
            Check::new("memory", !ticks.contains(tick::WRONG), format!("each of {PAGES} pages")),
            Check::new("went on where it stopped", in_turn, format!("{} ticks, then {}", counted[0], counted[1])),
            Check::new("one guest", left_behind == "postmigrate", format!("the source is {left_behind}")),
        ];
        let times = Times { begun, arrived, verified: self.ready.elapsed() };
        let said = json!({ "ticks": counted[1] });
        let gaps = felt.map(|felt| [felt.total(), tick_gap::largest_gap(watched)]);
        Ok((
            destination,
            Hop { from, to, gave_up, times, migration, record, gaps, felt, in_place: None, waits, checks, said },
        ))
    }

    /// The figures of waits that the guest printed.
    fn waits<'w>(&self, waits: impl IntoIterator<Item = &'w (usize, u64)>) -> Option<Waits> {
        let time = |counted: u64| self.tick.mul_f64(counted as f64 / (SPAN << 16) as f64);
        Waits::of(&figures(waits.into_iter().map(|&(_, wait)| time(wait)).collect()))
    }

    /// Starts a destination and migrates to it; returns how that ended.
    fn attempt(&mut self, progress: &mut Progress, source: &mut Vmm, to: Monitor) -> Result<(Vmm, Value, Record)> {
        progress.show("starting the destination", "");
        let socket = self.scratch.join(format!("migration{}", self.started));
        let at = socket.display();
        let (destination, uri) = match self.means.mode {
            Mode::Precopy | Mode::Postcopy => {
                let uri = format!("unix:{at}");
                let mut vmm = self.start(to, Some("defer".into()))?.connect()?;
                self.means.allow(&mut vmm)?;
                let mut vmm = load(vmm, &uri)?;
                vmm.await_status("inmigrate", Instant::now() + TIMEOUT)?;
                (Destination::Ready(vmm.into()), uri)
            }
            Mode::Update => {
                let uri = format!("local:{at}");
                let started = self.start(to, Some(uri.clone()))?.await_socket(&socket)?;
                (Destination::Awaiting(started), uri)
            }
            Mode::Snapshot => (Destination::Later, format!("file:{at}")),
        };
        let mut record = Record::default();
        self.means.start(source, &uri)?;
        let destination = destination.connect()?;
        let migration = source.follow_migration(Instant::now() + TIMEOUT, |info| {
            show_migration(progress, info);
            record.look(info);
        })?;
        let destination = match destination {
            Some(destination) => destination,
            None => {
                completed(migration.clone())?;
                load(self.start(to, Some("defer".into()))?.connect()?, &uri)?
            }
        };
        Ok((destination, migration, record))
    }
}

/// Waits until the guest has printed so many ticks in this monitor, and returns their number then.
fn await_ticks(vmm: &Vmm, ticks: usize) -> Result<usize> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let console = vmm.console();
        let counted = ticks_and_waits(&console).0.len();
        if counted >= ticks {
            return Ok(counted);
        }
        if Instant::now() > deadline {
            let sentence = format!("the guest does not get to tick {ticks}; console: {console:?}");
            return Err(Error::failed(format!("{sentence}; monitor: {:?}", vmm.errors())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
