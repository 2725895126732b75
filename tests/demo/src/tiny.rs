//! The demo's course with the tiny guest: bare metal, no download, on any `/dev/kvm`, in seconds.
//!
//! The guest checks every page in each pass over its memory and prints the pass's number, so its console tells whether
//! it went on where it stood, and with the right memory.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::demo::{completed, show_migration};
use crate::progress::Progress;
use crate::report::{Check, DemoReport, Hop, Times};
use crate::signals;
use vmstate_lab::error::{Error, FileContext, Result};
use vmstate_lab::tiny;
use vmstate_lab::vmm::{Config, Program, Vmm};

/// 4 MiB, of which a software KVM rewrites some passes a second.
const PAGES: u64 = 1024;
/// Passes before the migration, and again after it.
const PASSES: u64 = 5;
const PATIENCE: Duration = Duration::from_secs(60);

/// Boots, migrates so many times, verifies after each migration.
pub(crate) fn migrate(scratch: &Path, launcher: &Path, minivmm: &Path, hops: usize) -> Result<DemoReport> {
    signals::remove_on_interrupt(scratch.to_owned());
    let mut progress = Progress::new();
    let kernel = scratch.join("tiny");
    fs::write(&kernel, tiny::bzimage()).doing("write", &kernel)?;
    let mut config = Config {
        kernel,
        initrd: None,
        append: tiny::command_line(PAGES, 0),
        memory_mib: 16,
        cpus: 1,
        disk: None,
        tap: None,
        uso: true,
        control: scratch.join("control0"),
        incoming: None,
        more: Vec::new(),
    };
    let program = Program::Minivmm(minivmm.to_owned());
    progress.show("booting the tiny guest", "");
    let booting = Instant::now();
    let mut vmm = Vmm::spawn(Some(launcher), &program, &config)?;
    await_pass(&vmm, 1)?;
    let ready = Instant::now();
    let first = vmm.name()?;
    progress.end();
    let mut report = DemoReport::begin("a bare-metal program, 1 vCPU, 16 MiB".into(), first, ready - booting);
    await_pass(&vmm, PASSES)?;

    for number in 1..=hops {
        progress.show("starting the destination", "");
        config.control = scratch.join(format!("control{number}"));
        let uri = format!("unix:{}", scratch.join(format!("migration{number}")).display());
        config.incoming = Some(uri.clone());
        let destination = Vmm::spawn(Some(launcher), &program, &config)?;
        let hop = hop(&mut progress, vmm, destination, &uri, ready);
        let (arrived, hop) = hop.map_err(|error| Error::failed(format!("hop {number}: {error}")))?;
        progress.end();
        report.add(hop);
        vmm = arrived;
    }
    vmm.type_in("q")?;
    let off = vmm.process().wait(Instant::now() + PATIENCE)?.success();
    report.end(Check::off(off));
    Ok(report)
}

/// Migrates, and lets the guest work on.
fn hop(
    progress: &mut Progress,
    mut source: Vmm,
    mut destination: Vmm,
    uri: &str,
    ready: Instant,
) -> Result<(Vmm, Hop)> {
    // A busy host needs more for the pause alone than the limit that minivmm has by itself, and minivmm then gives up.
    source.qmp.execute("migrate-set-parameters", json!({ "downtime-limit": 3000 }))?;
    let begun = ready.elapsed();
    source.start_migration(uri)?;
    let end = Instant::now() + PATIENCE;
    let migration = completed(source.follow_migration(end, |info| show_migration(progress, info))?)?;
    destination.await_status("running", Instant::now() + PATIENCE)?;
    let arrived = ready.elapsed();
    let left_behind = source.status()?;
    let (from, to) = (source.name()?, destination.name()?);
    // In order, and read to its end: its last pass is on the console then.
    source.qmp.execute("quit", Value::Null)?;
    source.wait_end(Instant::now() + PATIENCE)?;
    let last = tiny::passes(&source.console()).last().copied().unwrap_or(0);

    progress.show("letting it work on at the destination", "");
    await_pass(&destination, last + PASSES)?;
    let counted = tiny::passes(&destination.console());
    let first = counted.first().copied().unwrap_or(0);
    // The line printed across the switch-over begins at the source and ends at the destination.
    let in_turn = counted.windows(2).all(|two| two[1] == two[0] + 1) && (last + 1..=last + 2).contains(&first);
    let consoles = source.console() + &destination.console();
    let checks = vec![
        Check::new("memory", !consoles.contains('E'), format!("{PAGES} pages in each pass")),
        Check::new("went on where it stood", in_turn, format!("pass {last} at the source, then from pass {first} on")),
        Check::new("one guest", left_behind == "postmigrate", format!("the source is {left_behind}")),
    ];
    let times = Times { begun, arrived, verified: ready.elapsed() };
    let said = json!({ "passes": counted.len() });
    Ok((destination, Hop { from, to, gave_up: None, times, migration, gaps: None, felt: None, checks, said }))
}

fn await_pass(vmm: &Vmm, pass: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while tiny::passes(&vmm.console()).last().is_none_or(|last| *last < pass) {
        if Instant::now() > deadline {
            let sentence = format!("the guest does not get to pass {pass}; console: {:?}", vmm.console());
            return Err(Error::failed(format!("{sentence}; monitor: {:?}", vmm.errors())));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
