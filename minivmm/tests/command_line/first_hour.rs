//! Runs the commands of docs/first-hour.md unchanged, in namespaces of their own, with the tiny guest, which also runs on a
//! `/dev/kvm` that cannot run Linux.

use std::fs::{self, OpenOptions};
use std::path::Path;

use vmstate_lab::first_hour::{Guest, REFUSALS, script, shell};
use vmstate_lab::{skip, tiny};

#[test]
fn the_page_on_the_first_hour_holds() {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return skip::skip(format!("/dev/kvm: {error}"));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("vmlinuz"), tiny::bzimage()).unwrap();
    fs::write(path("initrd.img"), [0; 512]).unwrap();
    let (script, machines) = script(Guest::There);
    assert_eq!(machines, ["a", "b", "wrong", "c", "d", "e"], "the page has other machines now");
    let script = script.replace("console=ttyS0", &tiny::command_line(512, 16));
    let mut command = shell(directory.path(), Path::new(env!("CARGO_BIN_EXE_minivmm")), &script).unwrap();
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.starts_with("unshare: ") {
        return skip::skip(errors);
    }
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}\n{errors}{said}", output.status);

    // The oracle is the guest: its pass numbers continue from machine to machine, also in the middle of a line, and its memory
    // was right in each pass.
    let consoles: String = ["a", "b", "c", "d", "e"].map(|name| console(&path(&format!("{name}.console")))).concat();
    assert!(!consoles.contains('E'), "{consoles}");
    let mut last = 0;
    for pass in tiny::passes(&consoles) {
        assert_eq!(pass, last + 1, "{consoles}");
        last = pass;
    }
    assert!(last > 0, "the guest did nothing");
    for refusal in REFUSALS {
        assert!(said.contains(refusal), "{refusal}: {said}");
    }
    assert!(fs::read_to_string(path("move.html")).unwrap().contains("<html"));
}

fn console(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}
