//! Clones of Linux: it detects by its generation id that it is one, and detects nothing after a migration; saved with its disk, the
//! guest and its clone both go on, each with a disk of its own.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmstate_lab::bench::Guest;
use vmstate_lab::error::Result;
use vmstate_lab::guest;
use vmstate_lab::vmm::Vmm;

use crate::place::case;
use crate::world::{ANSWER, MIGRATION, World, dirtying, ensure, goes_on, idle, verify, within};

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

fn save(source: &mut Vmm, how: Value) -> Result<()> {
    source.qmp.execute("migrate", how)?;
    let info = source.follow_migration(within(MIGRATION), |_| ())?;
    ensure(info["status"] == "completed", || format!("the snapshot did not complete: {info}"))
}

fn clones(world: &mut World) -> Result<()> {
    let options = guest::Options { shell: true, ..guest::Options::default() };
    let mut bench = world.bench(&Guest { options, ..idle() })?;
    let mut source = bench.start(None)?;
    wait(&source, "# ", within(Duration::from_secs(180)))?;
    let file = bench.file();
    save(&mut source, json!({ "uri": file, "keep-running": true }))?;

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

/// The guest's own check covers its files: the clone's have to be those of the moment at which its memory was saved.
#[test]
fn guest_and_clone_go_on_with_a_disk_each() {
    case("clones::guest_and_clone_go_on_with_a_disk_each", |world| {
        let mut bench = world.bench(&Guest { disk: true, ..dirtying(16, 2000) })?;
        let mut source = bench.boot()?;
        std::thread::sleep(Duration::from_secs(2));
        let file = bench.file();
        save(&mut source, json!({ "uri": file, "keep-running": true, "copy-disk": true }))?;
        goes_on(&mut source)?;
        bench.change_disk(format!("{}.virtio0", file.trim_start_matches("file:")).into());
        let mut clone = bench.start(Some(file))?;
        clone.await_status("running", within(ANSWER))?;
        goes_on(&mut clone)?;
        let writes = |report: &Value| report["disk"]["writes"].as_u64();
        let before = writes(&verify(&mut clone)?);
        std::thread::sleep(Duration::from_secs(2));
        ensure(writes(&verify(&mut clone)?) > before, || "the clone writes no files".into())?;
        goes_on(&mut source)
    });
}
