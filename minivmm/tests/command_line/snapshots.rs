//! Snapshots of a running guest with its disks, by processes that are confined as by default. The guest checks in each pass what it
//! wrote to its disk in the pass before.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::json;
use vmstate_lab::tiny;

use super::{Running, minivmm};

/// Bytes of the disk.
const BYTES: u64 = 4 << 20;
/// Place of the data that the guest does not touch.
const DATA: u64 = 1 << 20;

fn data() -> Vec<u8> {
    (0..1_u32 << 20).map(|byte| (byte.wrapping_mul(0x9e37_79b9) >> 13) as u8 | 1).collect()
}

pub(super) fn disk(folder: &Path) -> PathBuf {
    let path = folder.join("disk");
    let file = File::create(&path).unwrap();
    file.set_len(BYTES).unwrap();
    file.write_all_at(&data(), DATA).unwrap();
    path
}

/// Starts a machine whose guest writes to `disk`.
pub(super) fn boot(disk: &Path) -> Option<Running> {
    let command_line = tiny::command_line_with_disk(16, 64);
    let mut machine = Running::start_guest(&tiny::bzimage(), &command_line, &["--disk", text(disk)], Stdio::null())?;
    machine.await_banner();
    machine.control();
    Some(machine)
}

/// Starts a machine with the guest of `state` on `disk`.
fn restore(state: &Path, disk: &Path) -> Running {
    let from = format!("file:{}", state.display());
    Running::start(&["--disk", text(disk), "--incoming", &from], Stdio::null()).unwrap()
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(super) fn control(machine: &Running) -> String {
    format!("unix:{}/qmp", machine.directory.path().display())
}

/// The guest prints more, and finds no error in its memory and on its disk.
pub(super) fn watch(machine: &mut Running) {
    let mut printed = [0; 40];
    machine.child.stdout.as_mut().unwrap().read_exact(&mut printed).unwrap();
    assert!(printed.contains(&b'p') && !printed.contains(&b'E'), "{}", String::from_utf8_lossy(&printed));
}

pub(super) fn end(machine: Running) {
    machine.control().execute("quit", json!({})).unwrap();
    let (code, printed) = machine.end();
    assert!(code == Some(0) && !printed.contains('E'), "{code:?} {printed}");
}

#[test]
fn a_guest_is_saved_with_its_disk_and_a_clone_runs_on_the_copy() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, state) = (disk(folder.path()), folder.path().join("state"));
    let Some(mut machine) = boot(&disk) else { return };
    let control = control(&machine);
    let save =
        |more: &[&str]| minivmm(&[&["snapshot", "save", "--control", &control][..], more, &[text(&state)]].concat());
    let refused = String::from_utf8(save(&["--copy-disk=virtio1"]).stderr).unwrap();
    assert!(refused.contains("disk 'virtio1' cannot be copied: the writable disks are virtio0"), "{refused}");
    let output = save(&["--copy-disk"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    let image = folder.path().join("state.virtio0");
    assert!(told.contains(&format!("is in {}, with its disks in {}", state.display(), image.display())), "{told}");
    watch(&mut machine);
    let (code, why) = restore(&state, &disk).end();
    assert!(code == Some(1) && why.contains("is not the one of the guest in the file"), "{code:?} {why}");
    let mut clone = restore(&state, &image);
    watch(&mut clone);
    let again = String::from_utf8(save(&["--copy-disk"]).stderr).unwrap();
    assert!(again.contains("it exists already"), "{again}");
    end(clone);
    watch(&mut machine);
    end(machine);
    assert!(fs::read(&image).unwrap()[DATA as usize..][..1 << 20] == data());
}
