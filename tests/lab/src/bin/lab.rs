//! The lab by itself.
#![forbid(unsafe_code)]
use std::process::ExitCode;
use std::time::Duration;
use vmstate_lab::{l1, packages, roles, tree::Tree};
fn main() -> ExitCode {
    if let Some(code) = roles::dispatch() { return code; }
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let own = std::env::current_exe().unwrap();
    let host = l1::L1 { qemu: packages::qemu().unwrap(), kernel: packages::kernel().unwrap(), roles: own, memory_mib: 2048 };
    let mut files = Tree::new();
    let p = std::path::PathBuf::from(&args[0]);
    files.program("/job/busybox", &p).unwrap();
    args[0] = "/job/busybox".into();
    let o = host.run(l1::Job { argv: args, env: vec![], files, time: Duration::from_secs(60) }).unwrap();
    eprintln!("{} {:?}", o.code, o.artifacts.iter().map(|a| (&a.0, a.1.len())).collect::<Vec<_>>());
    ExitCode::from(o.code as u8)
}
