//! What the cases share: a guest with its monitors, and the guest's own verdict.

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

/// For an answer of the guest or of a monitor.
pub(crate) const ANSWER: Duration = Duration::from_secs(60);
/// For a migration.
pub(crate) const MIGRATION: Duration = Duration::from_secs(120);
/// Clocks may differ by this much more than what the measurement leaves open.
const DRIFT: Duration = Duration::from_millis(20);

/// A place for one case.
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

    /// Gives the guests of this world a network, and the peer there.
    pub(crate) fn connect(&mut self) -> Result<Peer> {
        self.network = Some(Network::enter()?);
        Peer::start().map_err(|error| Error::failed(format!("the network's peer: {error}")))
    }

    /// A guest and what its monitors share.
    pub(crate) fn bench(&self, guest: &Guest) -> Result<Bench<'_>> {
        let (program, network) = (self.program.clone(), self.network.as_ref());
        Bench::new(self.scratch.path(), place::lab(), program, &self.kernel, guest, network)
    }
}

/// A guest with 256 MiB and one vCPU that has nothing to do.
pub(crate) fn idle() -> Guest {
    Guest { memory_mib: 256, cpus: 1, options: guest::Options::default(), disk: false }
}

/// One that dirties `mib` MiB, `rate` pages a second or as fast as it can.
pub(crate) fn dirtying(mib: usize, rate: u64) -> Guest {
    Guest { options: guest::Options { memory_mib: mib, rate, ..guest::Options::default() }, ..idle() }
}

/// A deadline from now on.
pub(crate) fn within(time: Duration) -> Instant {
    Instant::now() + time
}

/// Fails the case with a sentence unless `holds`.
pub(crate) fn ensure(holds: bool, sentence: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::failed(sentence())) }
}

/// Migrates, with the guest's clocks compared across it; the source's process has ended then.
pub(crate) fn migrate(bench: &mut Bench<'_>, source: Vmm) -> Result<(Vmm, Value)> {
    let migrated = migrate_watched(bench, source, |_| ())?;
    Ok((migrated.destination, migrated.info))
}

/// A migration that completed.
#[derive(Debug)]
pub(crate) struct Migrated {
    pub(crate) destination: Vmm,
    /// The last figures of the source.
    pub(crate) info: Value,
    /// The guest's mark before and after it.
    pub(crate) marks: [Value; 2],
}

/// As [`migrate`]; `watch` sees the figures on the way.
pub(crate) fn migrate_watched(bench: &mut Bench<'_>, source: Vmm, watch: impl FnMut(&Value)) -> Result<Migrated> {
    migrate_forgiving(bench, source, &[], DRIFT, watch)
}

/// As [`migrate`], in post-copy: the source has no time for rounds, and no pause is short enough.
pub(crate) fn postcopy(bench: &mut Bench<'_>, mut source: Vmm) -> Result<Vmm> {
    source.allow_postcopy()?;
    source.qmp.execute("migrate-set-parameters", json!({ "deadline": 1, "downtime-limit": 0 }))?;
    let mut was_late = false;
    let migrated = migrate_watched(bench, source, |info| was_late |= info["status"] == "postcopy-active")?;
    ensure(was_late, || format!("it did not go in post-copy: {}", migrated.info))?;
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

/// As [`migrate_watched`], between monitors of two kinds: lines of the kernel's log with one of these `words` are none of this
/// migration's faults, and the clock may be `off` by so much of what was measured from outside.
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

/// The same to `uri`, where somebody waits; `connect` gives that monitor once the source migrates.
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
    ensure((least..=most).contains(&passed), || format!("the guest's clock went {passed:?} in {least:?} to {most:?}"))?;
    let tick = &after["tick"];
    ensure(tick["backward"] == 0, || format!("a clock went backward: {tick}"))?;
    ensure(tick["max_apart_us"].as_u64().is_some_and(|us| us < 1000), || format!("the clocks went apart: {tick}"))?;
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

/// Between two marks the kernel's log got no complaint but those with one of these `words`.
pub(crate) fn no_complaints(before: &Value, after: &Value, words: &[&str]) -> Result<()> {
    let is_new = |line: &&str| !lines(before).contains(line) && !words.iter().any(|word| line.contains(word));
    let new: Vec<_> = lines(after).into_iter().filter(is_new).collect();
    ensure(new.is_empty(), || format!("the guest's kernel complains: {new:?}"))
}

fn lines(mark: &Value) -> Vec<&str> {
    mark["log"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The guest verifies everything it did, and it did something.
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

/// The guest works on for a moment, its timers fire, and what it did until then is right.
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
        format!("the guest stands still: {before} writes, then {after}, meanwhile {tick}")
    })
}

/// Powers the guest off; the monitor ends well.
pub(crate) fn power_off(mut vmm: Vmm) -> Result<()> {
    vmm.type_in("poweroff\n")?;
    let status = vmm.process().wait(within(ANSWER))?;
    ensure(status.success(), || format!("the monitor ended with {status}: {}", vmm.errors()))
}
