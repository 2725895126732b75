//! Dirty bitmaps that go through a QEMU, and come from one in post-copy. Oracle: QEMU's own bitmaps, their count and their
//! SHA-256.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use minivmm::config::Address;
use minivmm::vm::{MigrationStatus, Request, RunState};
use serde_json::{Value, json};
use vmstate_lab::vmm::{Config, Program, Vmm};
use vmstate_lab::{qemu, skip, tiny};

use super::{Ground, Seen, bitmaps, check, renamed, seen, set_mapping};
use crate::machine::{PAGES, TIMEOUT, unix_address, until};

/// Returns the ground and QEMU's program, where KVM and QEMU are present.
fn ground_and_qemu() -> Option<(Ground, PathBuf)> {
    let ground = Ground::new()?;
    match qemu::at_least(qemu::NEEDED) {
        Ok(program) => Some((ground, program)),
        Err(error) => {
            skip::skip(error);
            None
        }
    }
}

/// QEMU's disk and bitmaps have other names.
#[test]
fn mapped_bitmaps_go_to_a_qemu_and_back() {
    let Some((ground, program)) = ground_and_qemu() else { return };
    let (mut there, address) = Qemu::wait(&ground, &program, 1);
    // QEMU's name of the node, which is not that of its drive.
    let node = there.execute("query-block", Value::Null)[0]["inserted"]["node-name"].as_str().unwrap().to_owned();
    let bitmap = |name: &str, alias: &str| json!({"name": name, "alias": alias});
    let names = [bitmap("theirs", "f"), bitmap("mine", "c")];
    let mapping = json!([{"node-name": node, "alias": "disk", "bitmaps": names}]);
    there.execute("migrate-set-parameters", json!({"block-bitmap-mapping": mapping}));
    set_mapping(&ground.source, "disk", &[("fine", "f"), ("coarse", "c")]);
    assert_eq!(ground.source.migrate(&address), MigrationStatus::Completed, "{:?}", ground.source.handle.migration());
    there.await_passes();
    let before = there.seen();
    assert_eq!(before, renamed(&seen(&bitmaps(&ground.source)), &[("fine", "theirs"), ("coarse", "mine")]));

    there.execute("block-dirty-bitmap-add", json!({"node": "virtio0", "name": "stays"}));
    let back = ground.destination();
    set_mapping(&back, "disk", &[("fine", "f"), ("rough", "c")]);
    there.migrate(&ground.address, false);
    back.await_passes(1);
    assert_eq!(seen(&bitmaps(&back)), renamed(&before, &[("theirs", "fine"), ("mine", "rough")]));
    back.quit();
    ground.source.quit();
}

/// A QEMU that waits for the guest, with bitmaps as its monitor shows them.
struct Qemu(Vmm);

impl Qemu {
    fn wait(ground: &Ground, program: &Path, number: usize) -> (Self, Address) {
        let address = unix_address(ground.dir.path(), &format!("qemu{number}"));
        let Address::Unix(path) = &address else { panic!("a unix socket") };
        let config = Config {
            // Not booted.
            kernel: ground.dir.path().join("kernel"),
            initrd: None,
            append: tiny::command_line_with_disk(PAGES, 0x800),
            memory_mib: 16,
            cpus: 1,
            disk: Some(ground.disk.clone()),
            card: None,
            uso: true,
            control: ground.dir.path().join(format!("qmp{number}")),
            incoming: Some(format!("unix:{}", path.display())),
            more: Vec::new(),
        };
        let mut vmm = Vmm::spawn(None, &Program::Qemu(program.into(), "kvm"), &config).unwrap();
        vmm.await_status("inmigrate", Instant::now() + TIMEOUT).unwrap();
        (Self(vmm), address)
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Value {
        self.0.qmp.execute(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    fn seen(&mut self) -> Vec<Seen> {
        let disks = self.execute("query-block", Value::Null);
        let bitmaps = disks[0]["inserted"]["dirty-bitmaps"].as_array().cloned().unwrap_or_default();
        let mut all: Vec<Seen> = bitmaps
            .iter()
            .map(|bitmap| {
                let name = bitmap["name"].as_str().unwrap().to_owned();
                let of = json!({"node": "virtio0", "name": name});
                let hash = self.execute("x-debug-block-dirty-bitmap-sha256", of)["sha256"].as_str().unwrap().to_owned();
                let [count, granularity] = ["count", "granularity"].map(|member| bitmap[member].as_u64().unwrap());
                let [recording, busy] = ["recording", "busy"].map(|member| bitmap[member].as_bool().unwrap());
                (name, count, granularity, recording, busy, hash)
            })
            .collect();
        all.sort();
        all
    }

    /// Waits until the guest has made passes here.
    fn await_passes(&self) {
        let passes = || tiny::passes(&self.0.console()).len();
        let wanted = passes() + 2;
        until(|| passes() >= wanted, || format!("{:?} {:?}", self.0.console(), self.0.errors()));
    }

    /// Migrates the guest, and ends the QEMU.
    fn migrate(mut self, address: &Address, in_postcopy: bool) {
        self.begin(address, in_postcopy);
        self.completes();
    }

    fn begin(&mut self, address: &Address, in_postcopy: bool) {
        self.0.listen(true).unwrap();
        let capability = json!({"capabilities": [{"capability": "dirty-bitmaps", "state": true}]});
        self.execute("migrate-set-capabilities", capability);
        self.execute("migrate-set-parameters", json!({"downtime-limit": 3000}));
        let Address::Unix(path) = address else { panic!("a unix socket") };
        let uri = format!("unix:{}", path.display());
        match in_postcopy {
            true => self.0.allow_postcopy().and_then(|()| self.0.start_postcopy(&uri)),
            false => self.0.start_migration(&uri),
        }
        .unwrap();
    }

    fn completes(mut self) {
        let end = self.0.follow_migration(Instant::now() + TIMEOUT, |_| ()).unwrap();
        assert_eq!(end["status"], "completed", "{end} {:?}", self.0.errors());
    }
}

#[test]
fn bitmaps_go_to_a_qemu_and_back() {
    there_and_back(false);
}

/// QEMU sends the bitmaps once its guest runs at the destination.
#[test]
fn bitmaps_come_from_a_qemu_in_post_copy() {
    there_and_back(true);
}

/// QEMU may have sent bits that were lost with the connection. A bitmap that lacks them would damage a backup.
#[test]
fn bitmaps_are_removed_where_the_connection_to_a_qemu_breaks_in_post_copy() {
    let Some((ground, program)) = ground_and_qemu() else { return };
    let (mut there, address) = Qemu::wait(&ground, &program, 1);
    assert_eq!(ground.source.migrate(&address), MigrationStatus::Completed, "{:?}", ground.source.handle.migration());
    there.await_passes();
    let back = ground.destination();
    // The pages that a running guest waits for have no limit.
    there.execute("stop", Value::Null);
    // The first round has a limit as well, since post-copy has nothing to send if that round ends before it is told to begin.
    there.execute("migrate-set-parameters", json!({"max-bandwidth": 1 << 20, "max-postcopy-bandwidth": 1 << 20}));
    there.begin(&ground.address, true);
    let status = || back.handle.migration().status();
    until(|| status() == MigrationStatus::PostcopyActive, || format!("{:?}", back.handle.migration()));
    until(|| back.handle.run_state() == RunState::Paused, || format!("{:?}", back.handle.migration()));
    assert_eq!(seen(&bitmaps(&back)).len(), 3);
    back.handle.pause_postcopy().unwrap();
    until(|| status() == MigrationStatus::PostcopyPaused, || format!("{:?}", back.handle.migration()));
    let paused = |there: &mut Qemu| there.execute("query-migrate", Value::Null)["status"] == "postcopy-paused";
    let deadline = Instant::now() + TIMEOUT;
    while !paused(&mut there) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    there.execute("migrate-set-parameters", json!({"max-postcopy-bandwidth": 0}));
    let Address::Unix(path) = &ground.address else { panic!("a unix socket") };
    there.execute("migrate", json!({"uri": format!("unix:{}", path.display()), "resume": true}));
    there.completes();
    back.await_end();
    back.handle.ask(Request::Cont).unwrap();
    back.await_passes(2);
    assert!(seen(&bitmaps(&back)).is_empty());
    back.quit();
    ground.source.quit();
}

fn there_and_back(in_postcopy: bool) {
    let Some((ground, program)) = ground_and_qemu() else { return };
    let (mut there, address) = Qemu::wait(&ground, &program, 1);
    assert_eq!(ground.source.migrate(&address), MigrationStatus::Completed, "{:?}", ground.source.handle.migration());
    there.await_passes();
    let before = seen(&bitmaps(&ground.source));
    assert_eq!(there.seen(), before, "all places that the guest writes were dirty before");
    there.execute("block-dirty-bitmap-clear", json!({"node": "virtio0", "name": "fine"}));
    there.await_passes();
    let mut before = there.seen();
    assert_eq!((before[1].0.as_str(), before[1].1), ("fine", 512), "the first sector");

    let back = ground.destination();
    there.migrate(&ground.address, in_postcopy);
    back.await_passes(1);
    back.await_end();
    check(&before, &bitmaps(&back), || back.await_passes(2));
    before.clear();

    // Without bitmaps, and with the capability, QEMU sends a START and no END.
    let at_home = bitmaps(&back);
    ["fine", "coarse", "off"].into_iter().for_each(|name| at_home.remove(name).unwrap());
    back.handle.set_sends_dirty_bitmaps(true);
    let (mut there, address) = Qemu::wait(&ground, &program, 2);
    assert_eq!(back.migrate(&address), MigrationStatus::Completed, "{:?}", back.handle.migration());
    there.await_passes();
    assert_eq!(there.seen(), before);
    let last = ground.destination();
    there.migrate(&ground.address, in_postcopy);
    last.await_passes(1);
    assert!(seen(&bitmaps(&last)).is_empty());
    last.quit();
    back.quit();
    ground.source.quit();
}
