//! The commands of docs/first-hour.md, as they stand there, in namespaces of their own. The guest is the tiny one, which a
//! `/dev/kvm` runs that runs no Linux.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use vmstate_lab::{skip, tiny};

const PAGE: &str = include_str!("../../../docs/first-hour.md");
/// Longest for the whole page, in seconds.
const TIME: &str = "240";

/// Ends what it started however it ends: a process of the namespace does not outlive the first one.
const OPENING: &str = r#"set -eu
mount -t tmpfs none /run
until_there() { for _ in $(seq 2000); do [ -S "$1" ] && return; sleep 0.02; done; echo "no $1" >&2; exit 1; }
"#;

/// The page's commands as one script. A block with `minivmm run` has a terminal of its own on the page, and is gone on from once
/// the machine can be spoken to; in the end each of them must have ended well.
fn script() -> String {
    let mut script = OPENING.to_owned();
    let mut machines = Vec::new();
    for block in PAGE.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
        if block.contains("minivmm) run") || block.starts_with("minivmm run") {
            let control =
                block.split("--control unix:").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
            let name = control.trim_end_matches(".qmp");
            // One whose guest is handed over is there to be asked afterwards.
            let awaited = block.split("--incoming local:").nth(1).map_or(control, str::trim);
            script +=
                &format!("{} > {name}.console 2> {name}.errors & {name}=$!\nuntil_there {awaited}\n", block.trim_end());
            machines.push(name);
        } else {
            // A shell does not end at a command behind `!` that goes well.
            for line in block.lines() {
                match line.strip_prefix("! ") {
                    Some(refused) => {
                        script += &format!("if {refused}; then echo 'not refused: {refused}' >&2; exit 1; fi\n")
                    }
                    None => script += &format!("{line}\n"),
                }
            }
        }
    }
    for name in &machines {
        script += &format!("wait ${name} || {{ echo \"{name} ended with $?: $(cat {name}.errors)\" >&2; exit 1; }}\n");
    }
    assert_eq!(machines.len(), 6, "the page has other machines now");
    script.replace("console=ttyS0", &tiny::command_line(512, 16))
}

#[test]
fn the_page_on_the_first_hour_holds() {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return skip::skip(format!("/dev/kvm: {error}"));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("vmlinuz"), tiny::bzimage()).unwrap();
    fs::write(path("initrd.img"), [0; 512]).unwrap();
    fs::create_dir(path("bin")).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_minivmm"), path("bin/minivmm")).unwrap();
    // Whoever runs the test is root in its namespaces already.
    fs::write(path("bin/sudo"), "#!/bin/sh\n[ \"$1\" != -u ] || shift 2\nexec \"$@\"\n").unwrap();
    fs::set_permissions(path("bin/sudo"), Permissions::from_mode(0o755)).unwrap();

    let mut command = Command::new("timeout");
    command.args([TIME, "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["bash", "-c", &script()]).current_dir(&directory).stdin(Stdio::null());
    command.env("USER", "root").env("PATH", format!("{}:{}", path("bin").display(), std::env::var("PATH").unwrap()));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.starts_with("unshare: ") {
        return skip::skip(said);
    }
    assert!(output.status.success(), "{}\n{said}\n{}", output.status, String::from_utf8_lossy(&output.stdout));

    // The guest's own word: its passes go on from machine to machine, also in the middle of a line, and what its memory held was right
    // each time.
    let consoles: String = ["a", "b", "c", "d", "e"].map(|name| console(&path(&format!("{name}.console")))).concat();
    assert!(!consoles.contains('E'), "{consoles}");
    let mut last = 0;
    for pass in tiny::passes(&consoles) {
        assert_eq!(pass, last + 1, "{consoles}");
        last = pass;
    }
    assert!(last > 0, "the guest did nothing");
    for why in
        ["(start it with --memory 256M); the guest runs on", "it speaks TLS, and this side does not; the guest runs on"]
    {
        assert!(said.contains(why), "{why}: {said}");
    }
    assert!(fs::read_to_string(path("move.html")).unwrap().contains("<html"));
}

fn console(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}
