//! Named dirty bitmaps of the guest's disk migrate with the guest, between two minivmms and through a QEMU. The guest rewrites
//! the first sector of the disk in each pass, and nothing else.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use minivmm::config::{Address, Disk, RateLimits};
use minivmm::devices::virtio::blk::Bitmaps;
use minivmm::vm::{DiskCopies, MigrationStatus, Request, RunState, Terms};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use vmstate_lab::vmm::{Config, Program, Vmm};
use vmstate_lab::{qemu, skip, tiny};

use crate::machine::{Machine, PAGES, TIMEOUT, lab, unix_address, until};
use crate::proxy::{Proxy, Word};

/// Bytes of the guest's disk.
const BYTES: u64 = 40 << 20;

fn disk(path: &Path) -> Disk {
    Disk { path: path.into(), read_only: false, create: None, limits: RateLimits::default() }
}

fn bitmaps(machine: &Machine) -> Arc<Bitmaps> {
    Arc::clone(&machine.handle.inventory().disks[0].bitmaps)
}

/// A bitmap: its name, dirty bytes, granularity, whether it records, whether it is busy, and the SHA-256 of its bits.
type Seen = (String, u64, u64, bool, bool, String);

fn seen(bitmaps: &Bitmaps) -> Vec<Seen> {
    let mut all = bitmaps.each(|bitmap| {
        let bytes: Vec<u8> = bitmap.words().iter().flat_map(|word| word.to_le_bytes()).collect();
        let hash = digest(&SHA256, &bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let (name, granularity) = (bitmap.name().to_owned(), bitmap.granularity().into());
        (name, bitmap.dirty_bytes(), granularity, bitmap.is_recording(), bitmap.is_busy(), hash)
    });
    all.sort();
    all
}

/// A machine whose guest writes to its disk, with three bitmaps.
struct Ground {
    dir: tempfile::TempDir,
    source: Machine,
    disk: PathBuf,
    address: Address,
}

impl Ground {
    fn new() -> Option<Self> {
        let dir = lab()?;
        let path = dir.path().join("disk");
        std::fs::File::create(&path).unwrap().set_len(BYTES).unwrap();
        let source = Machine::start_writing(dir.path(), None, disk(&path), None);
        source.await_passes(1);
        let bitmaps = bitmaps(&source);
        bitmaps.add("fine", 512, true).unwrap();
        bitmaps.add("coarse", 1 << 20, true).unwrap();
        // As if the guest had written there.
        [(4096, 5 << 20), (20 << 20, 1), (BYTES - 1, 1)]
            .into_iter()
            .for_each(|(offset, len)| bitmaps.mark(offset, len));
        // So the guest's own write is in them, and its further writes change nothing.
        source.await_passes(2);
        bitmaps.add("off", 65536, false).unwrap();
        bitmaps.merge("off", &[(Arc::clone(&bitmaps), "fine")]).unwrap();
        source.handle.set_sends_dirty_bitmaps(true);
        let address = unix_address(dir.path(), "incoming");
        Some(Self { dir, source, disk: path, address })
    }

    fn destination(&self) -> Machine {
        Machine::start_writing(self.dir.path(), Some(&self.address), disk(&self.disk), None)
    }

    /// Checks that the source still has the bitmaps, that users can change them, and that the guest's writes are recorded.
    fn assert_stayed(&self) {
        assert_eq!(self.source.handle.run_state(), RunState::Running);
        let bitmaps = bitmaps(&self.source);
        let off = seen(&bitmaps).into_iter().find(|bitmap| bitmap.0 == "off").unwrap();
        bitmaps.clear("fine").unwrap();
        self.source.await_passes(2);
        bitmaps.set_recording("fine", false).unwrap();
        let all = seen(&bitmaps);
        assert_eq!((all[1].0.as_str(), all[1].1), ("fine", 512));
        assert_eq!(all[2], off);
    }
}

/// The guest's writes before and after the migration are in the bitmaps that record, and no others.
fn check(before: &[Seen], bitmaps: &Bitmaps, passes: impl FnOnce()) {
    assert_eq!(seen(bitmaps), before);
    bitmaps.clear("fine").unwrap();
    passes();
    let now = seen(bitmaps);
    assert_eq!(now[0], before[0]);
    assert_eq!((now[1].0.as_str(), now[1].1, now[1].3), ("fine", 512, true), "the first sector");
    assert_eq!(now[2], before[2]);
}

#[test]
fn bitmaps_go_with_the_guest_and_go_on_recording() {
    let Some(ground) = Ground::new() else { return };
    let destination = ground.destination();
    assert_eq!(ground.source.migrate(&ground.address), MigrationStatus::Completed);
    // All places that the guest writes were dirty before.
    let before = seen(&bitmaps(&ground.source));
    let count = |name: &str| before.iter().find(|bitmap| bitmap.0 == name).unwrap().1;
    assert_eq!((count("fine"), count("coarse")), ((5 << 20) + 3 * 512, 8 << 20));
    check(&before, &bitmaps(&destination), || destination.await_passes(2));
    destination.quit();
    ground.source.quit();
}

#[test]
fn bitmaps_go_through_a_file_and_stay_with_a_guest_that_is_taken_back() {
    let Some(ground) = Ground::new() else { return };
    let file = |name: &str| Address::File { path: ground.dir.path().join(name), offset: 0 };
    assert_eq!(ground.source.migrate(&file("first")), MigrationStatus::Completed);
    ground.source.handle.ask(Request::Cont).unwrap();
    ground.assert_stayed();
    bitmaps(&ground.source).set_recording("fine", true).unwrap();
    assert_eq!(ground.source.migrate(&file("second")), MigrationStatus::Completed);
    let restored = Machine::start_writing(ground.dir.path(), Some(&file("second")), disk(&ground.disk), None);
    restored.await_passes(1);
    check(&seen(&bitmaps(&ground.source)), &bitmaps(&restored), || restored.await_passes(2));
    restored.quit();
    ground.source.quit();
}

/// The steps of the page on devices, before and after a migration. Oracle: the image.
#[test]
fn an_incremental_backup_goes_on_after_a_migration() {
    let Some(ground) = Ground::new() else { return };
    let backup = ground.dir.path().join("backup");
    let image = || std::fs::read(&ground.disk).unwrap();
    // The full backup.
    ground.source.handle.ask(Request::Stop).unwrap();
    std::fs::copy(&ground.disk, &backup).unwrap();
    bitmaps(&ground.source).add("backup", 512, true).unwrap();
    ground.source.handle.ask(Request::Cont).unwrap();
    ground.source.await_passes(2);
    let destination = ground.destination();
    let increment = |machine: &Machine| {
        machine.await_passes(2);
        machine.handle.ask(Request::Stop).unwrap();
        let bitmaps = bitmaps(machine);
        let ranges: Vec<_> = bitmaps.with("backup", |bitmap| bitmap.ranges(0).collect()).unwrap();
        let file = std::fs::File::options().write(true).open(&backup).unwrap();
        assert!(image() != std::fs::read(&backup).unwrap(), "the guest has written");
        for range in &ranges {
            let part = &image()[range.start as usize..range.end as usize];
            file.write_all_at(part, range.start).unwrap();
        }
        assert!(image() == std::fs::read(&backup).unwrap());
        bitmaps.clear("backup").unwrap();
        machine.handle.ask(Request::Cont).unwrap();
        ranges.into_iter().map(|range| (range.start, range.end)).collect::<Vec<_>>()
    };
    assert_eq!(increment(&ground.source), [(0, 512)]);
    assert_eq!(ground.source.migrate(&ground.address), MigrationStatus::Completed);
    assert_eq!(increment(&destination), [(0, 512)]);
    destination.quit();
    ground.source.quit();
}

/// The copier of the disk's content writes to all of the destination's image, which is not the guest's doing.
#[test]
fn bitmaps_go_with_a_copied_disk() {
    let Some(ground) = Ground::new() else { return };
    let copy = Disk { create: Some(BYTES), ..disk(&ground.dir.path().join("copy")) };
    let destination = Machine::start_writing(ground.dir.path(), Some(&ground.address), copy, None);
    let terms = Terms { copies: DiskCopies::All, ..Terms::default() };
    ground.source.handle.ask(Request::Migrate(ground.address.clone(), terms)).unwrap();
    assert_eq!(ground.source.await_end(), MigrationStatus::Completed, "{:?}", ground.source.handle.migration());
    destination.await_passes(1);
    check(&seen(&bitmaps(&ground.source)), &bitmaps(&destination), || destination.await_passes(2));
    destination.quit();
    ground.source.quit();
}

#[test]
fn bitmaps_stay_without_the_capability() {
    let Some(ground) = Ground::new() else { return };
    ground.source.handle.set_sends_dirty_bitmaps(false);
    let destination = ground.destination();
    assert_eq!(ground.source.migrate(&ground.address), MigrationStatus::Completed);
    destination.await_passes(1);
    assert!(seen(&bitmaps(&destination)).is_empty());
    destination.quit();
    ground.source.quit();
}

#[test]
fn bitmaps_go_in_post_copy() {
    let Some(ground) = Ground::new() else { return };
    let destination = ground.destination();
    let parameters = minivmm::vm::ParameterChange::default().with("postcopy-ram", true);
    ground.source.handle.ask(Request::MigrateSetParameters(parameters)).unwrap();
    ground.source.limit(Duration::from_millis(1), 4 << 20);
    ground.source.handle.ask(Request::Migrate(ground.address.clone(), Terms::default())).unwrap();
    ground.source.handle.ask(Request::MigrateStartPostcopy).unwrap();
    assert_eq!(ground.source.await_end(), MigrationStatus::Completed);
    check(&seen(&bitmaps(&ground.source)), &bitmaps(&destination), || destination.await_passes(2));
    destination.quit();
    ground.source.quit();
}

#[test]
fn bitmaps_stay_with_a_guest_whose_migration_is_cancelled() {
    let Some(ground) = Ground::new() else { return };
    let destination = ground.destination();
    ground.source.limit(Duration::from_millis(1), 4 << 20);
    ground.source.handle.ask(Request::Migrate(ground.address.clone(), Terms::default())).unwrap();
    let busy = || seen(&bitmaps(&ground.source)).iter().all(|bitmap| bitmap.4);
    until(busy, || format!("{:?}", ground.source.handle.migration()));
    until(|| !seen(&bitmaps(&destination)).is_empty(), || format!("{:?}", ground.source.handle.migration()));
    ground.source.handle.ask(Request::MigrateCancel).unwrap();
    ground.assert_stayed();
    destination.end();
    // A second migration of the same bitmaps.
    ground.source.limit(TIMEOUT, 0);
    let destination = ground.destination();
    assert_eq!(ground.source.migrate(&ground.address), MigrationStatus::Completed);
    assert_eq!(seen(&bitmaps(&destination)), seen(&bitmaps(&ground.source)));
    destination.quit();
    ground.source.quit();
}

#[test]
fn bitmaps_stay_with_a_guest_whose_destination_is_lost_once_it_has_loaded_everything() {
    let Some(ground) = Ground::new() else { return };
    let destination = ground.destination();
    let proxy = Proxy::holding(Word::Ready, ground.dir.path(), &ground.address);
    ground.source.handle.ask(Request::Migrate(proxy.address.clone(), Terms::default())).unwrap();
    until(|| proxy.holds(), || format!("{:?}", ground.source.handle.migration()));
    assert!(seen(&bitmaps(&destination)).iter().all(|bitmap| bitmap.4));
    proxy.cut();
    assert_eq!(ground.source.await_end(), MigrationStatus::Failed);
    ground.assert_stayed();
    destination.end();
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
    let Some(ground) = Ground::new() else { return };
    let program = match qemu::at_least(qemu::NEEDED) {
        Ok(program) => program,
        Err(error) => return skip::skip(error),
    };
    let (mut there, address) = Qemu::wait(&ground, &program, 1);
    assert_eq!(ground.source.migrate(&address), MigrationStatus::Completed, "{:?}", ground.source.handle.migration());
    there.await_passes();
    let back = ground.destination();
    // The pages that a running guest waits for have no limit.
    there.execute("stop", Value::Null);
    there.execute("migrate-set-parameters", json!({"max-postcopy-bandwidth": 1 << 20}));
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

/// Oracle: QEMU's own bitmaps, their count and their SHA-256.
fn there_and_back(in_postcopy: bool) {
    let Some(ground) = Ground::new() else { return };
    let program = match qemu::at_least(qemu::NEEDED) {
        Ok(program) => program,
        Err(error) => return skip::skip(error),
    };
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
