//! Shared parts of the cases: a guest with its monitors, and the guest's verification.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use vmstate_lab::bench::{Bench, Guest};
use vmstate_lab::error::{Error, Result};
use vmstate_lab::guest;
use vmstate_lab::guest::net::Peer;
use vmstate_lab::kernel::Kernel;
use vmstate_lab::network::Network;
use vmstate_lab::vmm::{Program, Vmm};

use crate::place;

/// Time limit for an answer of the guest or of a monitor.
pub(crate) const ANSWER: Duration = Duration::from_secs(60);
/// Time limit for a migration.
pub(crate) const MIGRATION: Duration = Duration::from_secs(120);
/// Difference of the clocks that is allowed beyond the uncertainty of the measurement.
const DRIFT: Duration = Duration::from_millis(20);

/// The directory and network of one case.
#[derive(Debug)]
pub(crate) struct World {
    scratch: TempDir,
    kernel: Kernel,
    program: Program,
    network: Option<Network>,
}

impl World {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { scratch: place::scratch()?, kernel: place::kernel()?, program: place::monitor()?, network: None })
    }

    /// Gives the guests of this world a network with a peer.
    pub(crate) fn connect(&mut self) -> Result<Peer> {
        self.network = Some(Network::enter()?);
        Peer::start().map_err(|error| Error::failed(format!("the network's peer: {error}")))
    }

    /// A bench for one guest and its monitors.
    pub(crate) fn bench(&self, guest: &Guest) -> Result<Bench<'_>> {
        let (program, network) = (self.program.clone(), self.network.as_ref());
        Bench::new(self.scratch.path(), place::lab(), program, &self.kernel, guest, network)
    }
}

/// A guest with 256 MiB and one vCPU, without work.
pub(crate) fn idle() -> Guest {
    Guest { memory_mib: 256, cpus: 1, options: guest::Options::default(), disk: false }
}

/// A guest that dirties `mib` MiB, at `rate` pages a second or without limit for 0.
pub(crate) fn dirtying(mib: usize, rate: u64) -> Guest {
    Guest { options: guest::Options { memory_mib: mib, rate, ..guest::Options::default() }, ..idle() }
}

/// The deadline after `time` from now.
pub(crate) fn within(time: Duration) -> Instant {
    Instant::now() + time
}

/// Fails the case with a sentence unless `holds`.
pub(crate) fn ensure(holds: bool, sentence: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::failed(sentence())) }
}

/// Migrates and compares the guest's clocks across the migration; the source's process has ended when this returns.
pub(crate) fn migrate(bench: &mut Bench<'_>, source: Vmm) -> Result<(Vmm, Value)> {
    let migrated = migrate_watched(bench, source, |_| ())?;
    Ok((migrated.destination, migrated.info))
}

/// A migration that completed.
#[derive(Debug)]
pub(crate) struct Migrated {
    pub(crate) destination: Vmm,
    /// The last figures of `query-migrate` at the source.
    pub(crate) info: Value,
    /// The guest's mark before and after the migration.
    pub(crate) marks: [Value; 2],
}

/// As [`migrate`]; `watch` is called with the figures during the migration.
pub(crate) fn migrate_watched(bench: &mut Bench<'_>, source: Vmm, watch: impl FnMut(&Value)) -> Result<Migrated> {
    migrate_forgiving(bench, source, &[], DRIFT, watch)
}

/// As [`migrate`], in post-copy: the limits leave no time for rounds and no acceptable pause.
pub(crate) fn postcopy(bench: &mut Bench<'_>, mut source: Vmm) -> Result<Vmm> {
    source.allow_postcopy()?;
    source.qmp.execute("migrate-set-parameters", json!({ "deadline": 1, "downtime-limit": 0 }))?;
    let mut was_postcopy = false;
    let migrated = migrate_watched(bench, source, |info| was_postcopy |= info["status"] == "postcopy-active")?;
    ensure(was_postcopy, || format!("the migration did not switch to post-copy: {}", migrated.info))?;
    Ok(migrated.destination)
}

/// As [`migrate`], in place: a new process takes over the guest's memory and its tap. No page is sent.
pub(crate) fn update(bench: &mut Bench<'_>, source: Vmm) -> Result<Vmm> {
    let (started, uri) = bench.update()?;
    let Migrated { destination, info, .. } = moved(source, &uri, || started.connect(), &[], DRIFT, |_| ())?;
    let ram = &info["ram"];
    ensure(ram["normal"] == 0 && ram["duplicate"] == 0, || format!("pages of the guest's memory were sent: {info}"))?;
    Ok(destination)
}

/// As [`migrate_watched`], between two kinds of monitors: lines of the kernel's log with one of these `words` are
/// expected, and the guest's clock may be `off` by this much of the time measured outside.
pub(crate) fn migrate_forgiving(
    bench: &mut Bench<'_>,
    source: Vmm,
    words: &[&str],
    off: Duration,
    watch: impl FnMut(&Value),
) -> Result<Migrated> {
    let (destination, uri) = bench.incoming()?;
    moved(source, &uri, || Ok(destination), words, off, watch)
}

/// As [`migrate_forgiving`], to `uri`, where a monitor waits; `connect` returns that monitor once the source migrates.
fn moved(
    mut source: Vmm,
    uri: &str,
    connect: impl FnOnce() -> Result<Vmm>,
    words: &[&str],
    off: Duration,
    watch: impl FnMut(&Value),
) -> Result<Migrated> {
    let earliest = Instant::now();
    let before = source.ask("mark", within(ANSWER))?;
    let begun = Instant::now();
    source.start_migration(uri)?;
    let mut destination = connect()?;
    let info = source.follow_migration(within(MIGRATION), watch)?;
    ensure(info["status"] == "completed", || format!("the migration did not complete: {info}"))?;
    destination.await_status("running", within(ANSWER))?;
    let state = source.status()?;
    ensure(state == "postmigrate", || format!("the source is {state} after the migration"))?;
    drop(source);

    let asked = Instant::now();
    let after = destination.ask("mark", within(ANSWER))?;
    let answered = Instant::now();
    let clock = |mark: &Value| Duration::from_nanos(mark["clock"]["monotonic_ns"].as_u64().unwrap_or(0));
    let passed = clock(&after).saturating_sub(clock(&before));
    let downtime = Duration::from_millis(info["downtime"].as_u64().unwrap_or(0));
    let (least, most) = ((asked - begun).saturating_sub(downtime + off), answered - earliest + off);
    ensure((least..=most).contains(&passed), || {
        format!("the guest's clock advanced by {passed:?} in {least:?} to {most:?}")
    })?;
    let tick = &after["tick"];
    ensure(tick["backward"] == 0, || format!("a clock went backward: {tick}"))?;
    ensure(tick["max_apart_us"].as_u64().is_some_and(|us| us < 1000), || format!("the guest's clocks differ: {tick}"))?;
    no_complaints(&before, &after, words)?;
    println!(
        "migrated in {} ms, down {} ms, felt {} us, usual {} us, {} rounds, {} bytes",
        info["total-time"],
        info["downtime"],
        tick["max_gap_us"],
        before["tick"]["max_gap_us"],
        info["ram"]["dirty-sync-count"],
        info["ram"]["transferred"]
    );
    Ok(Migrated { destination, info, marks: [before, after] })
}

/// Checks that the kernel's log has no new complaint between two marks, except lines with one of these `words`.
pub(crate) fn no_complaints(before: &Value, after: &Value, words: &[&str]) -> Result<()> {
    let is_new = |line: &&str| !lines(before).contains(line) && !words.iter().any(|word| line.contains(word));
    let new: Vec<_> = lines(after).into_iter().filter(is_new).collect();
    ensure(new.is_empty(), || format!("the guest's kernel complains: {new:?}"))
}

fn lines(mark: &Value) -> Vec<&str> {
    mark["log"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Lets the guest verify all of its work, which must not be empty.
pub(crate) fn verify(vmm: &mut Vmm) -> Result<Value> {
    let report = vmm.ask("report", within(ANSWER))?;
    for (load, wrong) in [("memory", "mismatches"), ("disk", "bad")] {
        let load = &report[load];
        if !load.is_null() {
            ensure(load[wrong] == 0 && load["writes"].as_u64() > Some(0), || format!("the guest found {report}"))?;
        }
    }
    for load in ["disk", "net"] {
        let errors = report[load].get("errors").cloned().unwrap_or(json!([]));
        ensure(errors == json!([]), || format!("{load} of the guest: {errors}"))?;
    }
    Ok(report)
}

/// Lets the guest work for a moment: its timers must fire, and its work until then must be right.
pub(crate) fn goes_on(vmm: &mut Vmm) -> Result<()> {
    let state = vmm.status()?;
    ensure(state == "running", || format!("the guest does not run: {state}"))?;
    let writes = |report: &Value| report["memory"]["writes"].as_u64().unwrap_or(0);
    let before = writes(&verify(vmm)?);
    vmm.ask("mark", within(ANSWER))?;
    std::thread::sleep(Duration::from_millis(500));
    let tick = vmm.ask("mark", within(ANSWER))?["tick"].take();
    let after = writes(&verify(vmm)?);
    ensure(after > before && tick["ticks"].as_u64() > Some(10), || {
        format!("the guest does not work: {before} writes, then {after}, meanwhile {tick}")
    })
}

/// Powers the guest off; the monitor must end with success.
pub(crate) fn power_off(mut vmm: Vmm) -> Result<()> {
    vmm.type_in("poweroff\n")?;
    let status = vmm.process().wait(within(ANSWER))?;
    ensure(status.success(), || format!("the monitor ended with {status}: {}", vmm.errors()))
}
