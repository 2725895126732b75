//! Runs the commands of docs/first-hour.md unchanged, with a Linux that is made, booted and typed at as the page says.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use vmstate_lab::error::{Error, Result};
use vmstate_lab::first_hour::{Guest, REFUSALS, script, shell};
use vmstate_lab::{l1, packages};

use crate::place::{self, case};
use crate::world::{World, ensure};

fn walk(_: &mut World) -> Result<()> {
    let scratch = place::scratch()?;
    let file = |name: &str| scratch.path().join(name);
    let failed = |error: io::Error| Error::failed(format!("running the page's commands: {error}"));
    let (kernel, busybox) = (place::kernel()?.image, packages::busybox()?);
    if env::var_os(l1::INSIDE).is_some() {
        // Installs all of busybox's programs that are missing; the few programs there stay.
        Command::new(&busybox).args(["--install", "-s", "/bin"]).status().map_err(failed)?;
    }

    let (script, machines) = script(Guest::Linux);
    // Use the lab's kernel and busybox, which need not be installed.
    let script = script
        .replace("/boot/vmlinuz-$(uname -r)", &kernel.display().to_string())
        .replace("cp /bin/busybox ", &format!("cp {} ", busybox.display()));
    let mut command = shell(scratch.path(), place::minivmm(), &script).map_err(failed)?;
    symlink(&busybox, file("bin/cpio")).map_err(failed)?;
    let mut walk = command.stdout(Stdio::piped()).spawn().map_err(failed)?;
    let mut said = String::new();
    for line in walk.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
        let line = line.map_err(failed)?;
        println!("{line}");
        said += &(line + "\n");
    }
    let status = walk.wait().map_err(failed)?;
    let mut consoles = String::new();
    for name in machines {
        // A machine that was never started has no console.
        consoles += &String::from_utf8_lossy(&fs::read(file(&format!("{name}.console"))).unwrap_or_default());
    }
    ensure(status.success(), || format!("{status}; on the consoles: {consoles}"))?;

    // Oracle: the guest counts on from machine to machine; a number may be the rest of a line.
    let numbers: Vec<u64> = consoles.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let counted = !numbers.is_empty() && numbers.iter().zip(1..).all(|(&number, expected)| number == expected);
    ensure(counted, || format!("a line is missing or there twice: {consoles}"))?;
    for refusal in REFUSALS {
        ensure(said.contains(refusal), || format!("{refusal:?} was not printed"))?;
    }
    let report = fs::read_to_string(file("move.html")).map_err(failed)?;
    ensure(report.contains("<html"), || "the report is no HTML page".into())
}

#[test]
fn with_a_linux_guest() {
    case("first_hour::with_a_linux_guest", walk);
}
