//! The commands of docs/first-hour.md as a script, and a shell that runs it. One test runs it with the tiny guest, one
//! with Linux.

use std::fmt::Write;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::l1;

const PAGE: &str = include_str!("../../../docs/first-hour.md");

/// The errors of the two migrations that the page shows refused.
pub const REFUSALS: [&str; 2] =
    ["(start it with --memory 256M); the guest runs on", "it speaks TLS, and this side does not; the guest runs on"];

/// Time limit for the whole page, in seconds.
const TIME: &str = "220";

/// The script's beginning: names of `ip netns` are kept below /run, so it is mounted anew. Each wait has a bound, and
/// the machines' consoles are files.
const OPENING: &str = r#"exec 2>&1
set -eux
mount -t tmpfs none /run
wait_for() { { set +x; } 2> /dev/null; for _ in $(seq 1200); do ! "$@" || { set -x; return 0; }; sleep 0.05; done; echo "in vain: $*"; cat *.errors; exit 1; }
"#;

/// A stand-in for sudo: the test is root in its namespaces already.
const SUDO: &str = "#!/bin/bash\n[ \"$1\" != -u ] || shift 2\nexec \"$@\"\n";

/// The guest that the page's commands run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// `vmlinuz` and `initrd.img` exist already, and nothing is typed at the guest's console.
    There,
    /// Linux, made by the page's commands. The page's text is typed at its console, and it prints numbers from then on.
    Linux,
}

/// The page's commands as a script, and the names of its machines in order. The console of the machine `a` is the file
/// `a.console`, and minivmm's standard error is `a.errors`. Each block with `minivmm run` has a terminal of its own on
/// the page: the script starts the machine in the background and goes on once its control socket answers. In the end
/// each machine must have exited with success.
///
/// # Panics
/// When the page does not have the form that this function reads.
#[must_use]
pub fn script(guest: Guest) -> (String, Vec<&'static str>) {
    let mut script = OPENING.to_owned();
    let mut machines = Vec::new();
    for block in PAGE.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        if guest == Guest::There && block.contains("root/init") {
            continue;
        }
        if block.contains("minivmm) run") || block.starts_with("minivmm run") {
            let name = machine(block).expect("a machine has a control socket");
            script += &start(block.trim_end(), name, guest == Guest::Linux && machines.is_empty());
            machines.push(name);
        } else if block.contains("<<") {
            script += block;
        } else {
            for line in block.lines() {
                script += &command(line, guest);
            }
        }
    }
    for name in &machines {
        // Writing to a string does not fail.
        let _ = writeln!(script, "wait ${name} || {{ echo \"{name} ended with $?: $(cat {name}.errors)\"; exit 1; }}");
    }
    (script, machines)
}

/// Starts a machine in the background; with `types`, the page's text is typed at its console.
fn start(block: &str, name: &str, types: bool) -> String {
    // A destination that takes a guest over in place makes its control socket only afterwards.
    let awaited = match block.split_once("--incoming local:") {
        Some((_, path)) => path.to_owned(),
        None => format!("{name}.qmp"),
    };
    // Open for writing as well, so that the reader of the pipe sees no end of file.
    let (keyboard, stdin) = if types { ("mkfifo keyboard\nexec 9<>keyboard\n", "keyboard") } else { ("", "/dev/null") };
    let mut script = format!("{keyboard}{block} < {stdin} > {name}.console 2> {name}.errors &\n{name}=$!\n");
    let _ = writeln!(script, "wait_for test -S {awaited}");
    if types {
        let typed = PAGE.split("something that can be seen: `").nth(1).and_then(|rest| rest.split('`').next());
        let typed = typed.expect("the page says what to type");
        let _ = writeln!(script, "wait_for grep -q 'in the guest' {name}.console\necho '{typed}' >&9");
    }
    script
}

/// A command in the page's other terminal. Before a command about a Linux guest, the script waits until that guest
/// counts.
fn command(line: &'static str, guest: Guest) -> String {
    let mut script = String::new();
    let asks = ["migrate", "snapshot", "status"].iter().any(|word| line.contains(&format!("minivmm {word} ")));
    if let Some(name) = machine(line).filter(|_| asks && guest == Guest::Linux) {
        let _ = writeln!(script, "wait_for grep -q '^[0-9]' {name}.console");
    }
    // A plain `! COMMAND` does not end the shell when the command succeeds.
    let _ = match line.strip_prefix("! ") {
        Some(refused) => writeln!(script, "if {refused}; then echo 'not refused: {refused}'; exit 1; fi"),
        None => writeln!(script, "{line}"),
    };
    script
}

/// The name of the machine that `command` addresses, from its control socket.
fn machine(command: &'static str) -> Option<&'static str> {
    command.split("--control unix:").nth(1)?.split_whitespace().next()?.strip_suffix(".qmp")
}

/// A shell that runs the script in `folder`, with `minivmm` in the path and in namespaces of its own, so that every
/// process it starts ends with it. An emulated host serves this job alone and needs no namespaces. All output goes to
/// standard output.
///
/// # Errors
/// When a file in `folder` cannot be written.
pub fn shell(folder: &Path, minivmm: &Path, script: &str) -> io::Result<Command> {
    let bin = folder.join("bin");
    fs::create_dir(&bin)?;
    symlink(minivmm, bin.join("minivmm"))?;
    fs::write(bin.join("sudo"), SUDO)?;
    fs::set_permissions(bin.join("sudo"), Permissions::from_mode(0o755))?;
    let mut command = Command::new("timeout");
    command.arg(TIME);
    if std::env::var_os(l1::INSIDE).is_none() {
        command.args(["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        if !nix::unistd::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
    }
    command.args(["bash", "-c", script]).current_dir(folder).stdin(Stdio::null());
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("USER", "root").env("PATH", format!("{}:/sbin:{path}", bin.display()));
    Ok(command)
}
