//! Linux detects by its generation id that it is a clone, and detects none after a migration.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmstate_lab::bench::Guest;
use vmstate_lab::error::Result;
use vmstate_lab::guest;
use vmstate_lab::vmm::Vmm;

use crate::place::case;
use crate::world::{ANSWER, MIGRATION, World, ensure, idle, within};

/// The line that the kernel logs once it is notified of another id (`add_vmfork_randomness`, drivers/char/random.c).
const RESEEDED: &str = "crng reseeded due to virtual machine fork";

fn wait(vmm: &Vmm, text: &str, until: Instant) -> Result<()> {
    while !vmm.console().contains(text) {
        ensure(Instant::now() < until, || format!("no {text:?} on the console: {}", vmm.console()))?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Number of times that the guest's kernel was reseeded; `turn` makes the answer unique.
fn reseeds(vmm: &mut Vmm, turn: usize) -> Result<usize> {
    // The terminal echoes the command, so the expected answer must not be part of it.
    vmm.type_in(&format!("echo turn{turn}=$(busybox dmesg | busybox grep -c '{RESEEDED}').\n"))?;
    let answer = |console: &str| {
        let (_, rest) = console.rsplit_once(&format!("turn{turn}="))?;
        rest.split_once('.')?.0.parse().ok()
    };
    let until = within(ANSWER);
    loop {
        if let Some(count) = answer(&vmm.console()) {
            return Ok(count);
        }
        ensure(Instant::now() < until, || format!("no answer on the console: {}", vmm.console()))?;
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn clones(world: &mut World) -> Result<()> {
    let options = guest::Options { shell: true, ..guest::Options::default() };
    let mut bench = world.bench(&Guest { options, ..idle() })?;
    let mut source = bench.start(None)?;
    wait(&source, "# ", within(Duration::from_secs(180)))?;
    let file = bench.file();
    source.qmp.execute("migrate", json!({ "uri": file, "keep-running": true }))?;
    let info = source.follow_migration(within(MIGRATION), |_| ())?;
    ensure(info["status"] == "completed", || format!("the snapshot did not complete: {info}"))?;

    let mut clone = bench.start(Some(file))?;
    clone.await_status("running", within(ANSWER))?;
    let (until, mut turn) = (within(ANSWER), 1);
    while reseeds(&mut clone, turn)? == 0 {
        ensure(Instant::now() < until, || format!("the clone's kernel was not reseeded: {}", clone.console()))?;
        turn += 1;
    }
    clone.qmp.execute("stop", Value::Null)?;
    drop(clone);

    let (mut moved, uri) = bench.incoming()?;
    source.start_migration(&uri)?;
    let info = source.follow_migration(within(MIGRATION), |_| ())?;
    ensure(info["status"] == "completed", || format!("the migration did not complete: {info}"))?;
    drop(source);
    moved.await_status("running", within(ANSWER))?;
    let count = reseeds(&mut moved, 0)?;
    ensure(count == 0, || format!("the guest that moved was reseeded {count} times"))
}

#[test]
fn linux_reseeds_itself_as_a_clone() {
    case("clones::linux_reseeds_itself_as_a_clone", clones);
}
