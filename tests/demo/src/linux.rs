//! The demo's course with a Linux guest, on a machine that runs such guests.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::demo::{completed, show_migration};
use crate::findings::Findings;
use crate::progress::Progress;
use crate::report::DemoReport;
use crate::signals;
use vmstate_lab::bench::{Bench, Guest};
use vmstate_lab::error::{Error, Result};
use vmstate_lab::guest::net::Peer;
use vmstate_lab::kernel::Kernel;
use vmstate_lab::network::Network;
use vmstate_lab::vmm::{Program, Vmm};

/// The guest works this long before the migration, and again after it.
const WORK: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(30);
const MIGRATION: Duration = Duration::from_secs(60);

/// Boots, migrates, verifies.
pub(crate) fn migrate(
    scratch: &Path,
    roles: &Path,
    program: Program,
    kernel: &Kernel,
    guest: &Guest,
) -> Result<DemoReport> {
    let mut progress = Progress::new();
    // Before any thread: a user namespace is for a process that has none.
    let network = Network::enter();
    signals::remove_on_interrupt(scratch.to_owned());
    let refused = |error| Error::failed(format!("the network's peer: {error}"));
    let peer = network.as_ref().ok().map(|_| Peer::start()).transpose().map_err(refused)?;

    progress.show("booting Linux", &kernel.version);
    let mut bench = Bench::new(scratch, roles, program, kernel, guest, network.as_ref().ok())?;
    let booting = Instant::now();
    let mut source = bench.boot()?;
    let boot = booting.elapsed();
    work(&mut progress, "letting it work");

    progress.show("starting the destination", "");
    let (mut destination, uri) = bench.incoming()?;
    let before = Mark::take(&mut source)?;
    source.start_migration(&uri)?;
    let end = Instant::now() + MIGRATION;
    let migration = completed(source.follow_migration(end, |info| show_migration(&mut progress, info))?)?;
    destination.await_status("running", Instant::now() + ANSWER)?;
    let left_behind = source.status()?;
    source.process().kill();

    work(&mut progress, "letting it work on at the destination");
    progress.show("verifying", "");
    let after = Mark::take(&mut destination)?;
    let verified = destination.ask("report", Instant::now() + ANSWER)?;
    // Sending went on after the verification.
    let sent = verified["net"]["sent"].as_u64().unwrap_or(0);
    let packets = match (network, peer) {
        (Err(reason), _) => Err(reason.to_string()),
        (Ok(_), peer) => Ok(peer.map(|peer| peer.tally().of_first(sent).report()).unwrap_or_default()),
    };
    destination.type_in("poweroff\n")?;
    let off = destination.process().wait(Instant::now() + ANSWER)?.success();
    progress.end();
    Ok(Findings { boot, before, after, verified, migration, left_behind, packets, off }.report())
}

fn work(progress: &mut Progress, step: &str) {
    let begun = Instant::now();
    while let Some(left) = WORK.checked_sub(begun.elapsed()) {
        progress.show(step, &format!("{:.0} s", left.as_secs_f64().ceil()));
        std::thread::sleep(left.min(Duration::from_millis(500)));
    }
}

/// The guest's clocks, ticks and complaints, and between which instants of the host it read its clocks.
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
}
