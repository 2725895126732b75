//! `minivmm to-qemu` and `from-qemu` as commands: QEMU accepts the line, and a shell parses it.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use vmstate_lab::process::Process;
use vmstate_lab::qmp::Qmp;
use vmstate_lab::{qemu, skip};

const TIMEOUT: Duration = Duration::from_secs(120);

fn minivmm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_minivmm")).args(arguments).output().unwrap()
}

/// Returns the line that a translation prints.
fn line(arguments: &[&str]) -> String {
    let output = minivmm(arguments);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().strip_suffix('\n').unwrap().to_owned()
}

#[test]
fn parts_without_a_match_are_lines_on_stderr_and_exit_code_2() {
    let output = minivmm(&["from-qemu", "--", "qemu-system-x86_64", "-M", "q35", "-vnc", ":0"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    let text = String::from_utf8(output.stderr).unwrap();
    let begins = ["minivmm: -vnc :0: ", "minivmm: -M: ", "minivmm: -accel: "];
    assert_eq!(text.lines().count(), begins.len(), "{text}");
    assert!(begins.iter().all(|begin| text.lines().any(|line| line.starts_with(begin))), "{text}");
}

/// A machine with two vCPUs of a model that TCG supports, and two disks whose paths contain special characters of a shell and
/// of QEMU's options.
#[test]
fn qemu_takes_the_line_that_is_printed() {
    let Ok(program) = qemu::at_least(qemu::NEEDED).map_err(skip::skip) else { return };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    let (kernel, disk, scratch, socket) = (at("tiny"), at("a,b 'c'.img"), at("$d.img"), at("qmp"));
    std::fs::write(&kernel, vmstate_lab::tiny::bzimage()).unwrap();
    for image in [&disk, &scratch] {
        std::fs::write(image, [0; 65536]).unwrap();
    }
    let (disk, scratch) = (disk.replace(',', ",,"), format!("{},readonly", scratch.replace(',', ",,")));
    let control = format!("unix:{socket}");
    let ours = [
        "run",
        "--kernel",
        &kernel,
        "--cpu",
        "qemu64",
        "--append",
        "console=ttyS0 it's",
        "--cpus",
        "2",
        "--memory",
        "64M",
    ];
    let ours = [&ours[..], &["--disk", &disk, "--disk", &scratch, "--serial", "none", "--control", &control]].concat();
    let theirs = line(&[&["to-qemu", "--"][..], &ours].concat());

    // The line runs qemu-system-x86_64; the tests may use another one. Under KVM a host may lack a feature.
    let shell = theirs.replacen("qemu-system-x86_64", "\"$QEMU\"", 1).replacen("accel=kvm", "accel=tcg", 1);
    let mut process = Process::spawn(None, Path::new("sh"), |command| {
        command.args(["-c", &format!("exec {shell} -S")]).env("QEMU", &program).stderr(Stdio::inherit());
    })
    .unwrap();
    let deadline = Instant::now() + TIMEOUT;
    let mut qmp = loop {
        match Qmp::connect(Path::new(&socket), Instant::now() + Duration::from_millis(200)) {
            Ok(qmp) => break qmp,
            Err(error) => assert!(Instant::now() < deadline && process.ended().is_none(), "{theirs}: {error}"),
        }
    };
    let blocks = qmp.execute("query-block", json!({})).unwrap();
    let files = |read_only: bool| {
        let blocks = blocks.as_array().unwrap().iter().map(|block| &block["inserted"]);
        blocks
            .filter(|inserted| inserted["ro"] == json!(read_only))
            .map(|inserted| inserted["file"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!((files(false), files(true)), (vec![json!(at("a,b 'c'.img"))], vec![json!(at("$d.img"))]));
    assert_eq!(qmp.execute("query-cpus-fast", json!({})).unwrap().as_array().unwrap().len(), 2);
    let memory = qmp.execute("query-memory-size-summary", json!({})).unwrap();
    assert_eq!(memory["base-memory"], json!(64 << 20));
    qmp.execute("quit", json!({})).unwrap();
    assert_eq!(process.wait(Instant::now() + TIMEOUT).unwrap().code(), Some(0));

    // The reverse direction: the shell splits the line.
    let words = Command::new("sh").args(["-c", &format!("printf '%s\\n' {theirs}")]).output().unwrap();
    let words = String::from_utf8(words.stdout).unwrap();
    let back = line(&[&["from-qemu", "--"][..], &words.lines().collect::<Vec<_>>()].concat());
    let words = Command::new("sh").args(["-c", &format!("printf '%s\\n' {back}")]).output().unwrap();
    let words = String::from_utf8(words.stdout).unwrap();
    assert_eq!(line(&[&["to-qemu", "--"][..], &words.lines().collect::<Vec<_>>()].concat()), theirs);
}
