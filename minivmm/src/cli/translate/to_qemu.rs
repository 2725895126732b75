//! Translates a command line of minivmm to one of QEMU.

use std::path::Path;

use serde_json::json;

use super::options::escape;
use super::{Translation, USO};
use crate::cli::{Command, Parsed, parse};
use crate::config::{Config, ListenAt, Network, RateLimits, Serial};
use crate::cpu::Choice;
use crate::devices::virtio::blk::node_name;
use crate::memory::RAM_BLOCK;
use crate::passed;

/// Translates minivmm's `words`, which begin with `run` or with the program, to a command line of QEMU.
///
/// # Errors
/// A sentence for each part that has no match, or for the mistake in the command line.
pub fn to_qemu(words: &[String]) -> Translation {
    let named = words.first().is_some_and(|word| word.rsplit('/').next() == Some("minivmm"));
    let program = if named { None } else { Some("minivmm".to_owned()) };
    match parse(program.into_iter().chain(words.iter().cloned())) {
        Ok(Parsed::Command(command)) => match *command {
            Command::Run(arguments) => qemu(&arguments.config()),
            _ => Err(vec!["only minivmm run has a match".into()]),
        },
        Ok(Parsed::Text(_)) => Err(vec!["help has no match".into()]),
        Err(error) => Err(vec![error.to_string()]),
    }
}

fn qemu(config: &Config) -> Translation {
    let mut unmatched = Vec::new();
    let mut words: Vec<String> = vec!["qemu-system-x86_64".into()];
    let mut flag = |name: &str, value: String| words.extend([name.to_owned(), value]);
    // The options with which QEMU hands memory over, or takes it (mode `cpr-transfer`).
    let shares = config.shares_memory || matches!(config.incoming, Some(ListenAt::Transfer { .. }));
    let memory = format!("{}K", config.memory >> 10);
    let backend = if shares { format!(",memory-backend={RAM_BLOCK},aux-ram-share=on") } else { String::new() };
    flag("-M", format!("microvm,acpi=on,pcie=off,ioapic2=off,rtc=off,auto-kernel-cmdline=off,accel=kvm{backend}"));
    if shares {
        flag("-object", format!("memory-backend-memfd,id={RAM_BLOCK},size={memory},share=on"));
    }
    flag("-global", "virtio-mmio.force-legacy=false".into());
    match Choice::new(&config.cpu) {
        Ok(choice) => flag("-cpu", choice.qemu()),
        Err(why) => unmatched.push(format!("--cpu: {why}")),
    }
    flag("-m", memory);
    flag("-smp", config.cpus.to_string());
    flag("-display", "none".into());
    match &config.serial {
        Serial::Stdio => flag("-serial", "stdio".into()),
        Serial::Pty => flag("-serial", "pty".into()),
        Serial::None => flag("-serial", "null".into()),
        Serial::File { path, max } => {
            flag("-chardev", format!("file,id=serial,path={}", escape(&file(&mut unmatched, "--serial", path))));
            flag("-serial", "chardev:serial".into());
            if max.is_some() {
                unmatched.push("--serial max: QEMU's file has no limit".into());
            }
        }
    }
    for (name, path) in [("-kernel", &config.kernel), ("-initrd", &config.initrd)] {
        if let Some(path) = path {
            flag(name, file(&mut unmatched, &format!("-{name}"), path));
        }
    }
    if !config.append.is_empty() {
        flag("-append", config.append.clone());
    }
    for (n, disk) in config.disks.iter().enumerate() {
        let path = escape(&file(&mut unmatched, "--disk", &disk.path));
        let read_only = if disk.read_only { ",readonly=on" } else { "" };
        // The name under which dirty bitmaps of the disk migrate.
        let id = node_name(n);
        flag("-drive", format!("id={id},if=none,format=raw,file={path}{read_only}"));
        flag("-device", format!("virtio-blk-device,drive={id}"));
        if disk.create.is_some() {
            unmatched.push(format!(
                "--disk number {}: QEMU cannot receive the content of a disk; copy the image there first",
                n + 1
            ));
        }
        unmatched.extend(limited(disk.limits).map(|why| format!("--disk number {}: {why}", n + 1)));
    }
    for (n, net) in config.nets.iter().enumerate() {
        let name = escape(&file(&mut unmatched, "--net", net.network.name()));
        flag(
            "-netdev",
            match net.network {
                Network::Tap(_) => {
                    let vhost = if net.vhost { ",vhost=on" } else { "" };
                    format!("tap,id=net{n},ifname={name},script=no,downscript=no{vhost}")
                }
                Network::Stream(_) => format!("stream,id=net{n},server=off,addr.type=unix,addr.path={name}"),
            },
        );
        let mac = net.mac.map(|mac| format!(",mac={}", mac.map(|byte| format!("{byte:02x}")).join(":")));
        let uso = if net.uso { String::new() } else { USO.map(|property| format!(",{property}=off")).concat() };
        flag("-device", format!("virtio-net-device,netdev=net{n}{}{uso}", mac.unwrap_or_default()));
        unmatched.extend(limited(net.limits).map(|why| format!("--net number {}: {why}", n + 1)));
    }
    if let Some(path) = &config.control {
        flag("-qmp", format!("unix:{},server=on,wait=off", escape(&file(&mut unmatched, "--control", path))));
    }
    match &config.incoming {
        Some(ListenAt::Address(address)) => flag("-incoming", address.to_string()),
        Some(ListenAt::Transfer { main, cpr }) => {
            flag("-incoming", main.to_string());
            let address = json!({"transport": "socket", "type": "unix", "path": cpr});
            flag("-incoming", json!({"channel-type": "cpr", "addr": address}).to_string());
        }
        Some(ListenAt::Deferred) => flag("-incoming", "defer".into()),
        Some(ListenAt::Passed(path)) => drop(file(&mut unmatched, "--incoming", path)),
        None => {}
    }
    if let Some(path) = &config.kvm {
        file(&mut unmatched, "--kvm", path);
    }
    if config.lease.is_some() {
        unmatched.push("--lease: QEMU has only the locks of its images".into());
    }
    words.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
    if unmatched.is_empty() { Ok(words) } else { Err(unmatched) }
}

/// The file's name for a command line; a passed descriptor has none.
fn file(unmatched: &mut Vec<String>, flag: &str, path: &Path) -> String {
    if passed::reference(path).is_some() {
        unmatched.push(format!("{flag} {}: give a name in place of a passed descriptor", path.display()));
    }
    path.display().to_string()
}

fn limited(limits: RateLimits) -> Option<&'static str> {
    (limits != RateLimits::default()).then_some("limits are not translated: see QEMU's throttling")
}
