//! Argument vectors, and the configuration or the error text that a user gets.

use std::path::{Path, PathBuf};

use crate::cli::{Command, Parsed, parse};
use crate::config::{Address, Config, Disk, ListenAt, Net, Network, Rate, RateLimits, Restore, Serial};

fn command(line: &[&str]) -> Result<Command, String> {
    let arguments = std::iter::once("minivmm").chain(line.iter().copied());
    match parse(arguments).map_err(|error| error.to_string())? {
        Parsed::Command(command) => Ok(*command),
        Parsed::Text(text) => panic!("help in place of a command: {text}"),
    }
}

fn run(line: &[&str]) -> Result<Config, String> {
    let line: Vec<&str> = std::iter::once("run").chain(line.iter().copied()).collect();
    match command(&line)? {
        Command::Run(arguments) => arguments.into_config().map_err(|error| error.to_string()),
        other => panic!("not a run: {other:?}"),
    }
}

/// This source file stands for any file that can be read.
const READABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/main.rs");

#[test]
fn a_whole_machine() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("a,b.raw");
    std::fs::write(&image, []).unwrap();
    let image_flag = image.to_str().unwrap().replace(',', ",,");
    let config = run(&[
        "--kernel",
        READABLE,
        "--initrd",
        READABLE,
        "--append",
        "-x console=ttyS0",
        "--memory",
        "1G",
        "--cpus",
        "8",
        "--disk",
        &format!("{image_flag},bytes-per-second=100M,bytes-burst=1G,ops-per-second=500"),
        "--disk",
        &format!("{READABLE},readonly"),
        "--lease",
        "/tmp/lease",
        "--net",
        "tap=tap0,vhost=on,mac=52:54:00:ab:CD:ef",
        "--net",
        "tap=tap1,uso=off,ops-burst=7,ops-per-second=70000",
        "--net",
        "stream=/run/passt,,1",
        "--serial",
        "file:/tmp/x:y",
        "--control",
        "unix:/tmp/qmp",
        "--incoming",
        "tcp:[::1]:4444",
        "--restore",
        "eager",
    ])
    .unwrap();
    assert_eq!(config.kernel, Some(PathBuf::from(READABLE)));
    assert_eq!(config.initrd, Some(PathBuf::from(READABLE)));
    assert_eq!(config.append, "-x console=ttyS0");
    assert_eq!(config.memory, 1_073_741_824);
    assert_eq!(config.cpus, 8);
    let rate = |per_second: u64, burst: u64| {
        Some(Rate { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
    };
    let limits = RateLimits { bytes: rate(104_857_600, 1_073_741_824), operations: rate(500, 500) };
    let unlimited = RateLimits { bytes: None, operations: None };
    assert_eq!(
        config.disks,
        [
            Disk { path: image, read_only: false, create: None, limits },
            Disk { path: READABLE.into(), read_only: true, create: None, limits: unlimited }
        ]
    );
    assert_eq!(config.lease, Some("/tmp/lease".into()));
    assert_eq!(
        config.nets,
        [
            Net {
                network: Network::Tap("tap0".into()),
                mac: Some([0x52, 0x54, 0, 0xab, 0xcd, 0xef]),
                uso: true,
                vhost: true,
                limits: unlimited
            },
            Net {
                network: Network::Tap("tap1".into()),
                mac: None,
                uso: false,
                vhost: false,
                limits: RateLimits { bytes: None, operations: rate(70_000, 7) }
            },
            Net {
                network: Network::Stream("/run/passt,1".into()),
                mac: None,
                uso: true,
                vhost: false,
                limits: unlimited
            }
        ]
    );
    assert_eq!(config.serial, Serial::File { path: "/tmp/x:y".into(), max: None });
    assert_eq!(config.control, Some("/tmp/qmp".into()));
    assert_eq!(config.incoming, Some(ListenAt::Address(Address::Tcp("[::1]:4444".into()))));
    assert_eq!(config.restore, Restore::Eager);
}

#[test]
fn the_least_machine() {
    let config = run(&["--incoming", "unix:/tmp/in"]).unwrap();
    assert_eq!((config.kernel, config.memory, config.cpus), (None, 268_435_456, 1));
    assert_eq!((config.append.as_str(), config.serial, config.control), ("", Serial::Stdio, None));
    assert_eq!(config.incoming, Some(ListenAt::Address(Address::Unix("/tmp/in".into()))));
    assert_eq!(config.restore, Restore::Lazy);
}

#[test]
fn a_console_in_a_file_has_a_limit_on_request() {
    let serial = |text| run(&["--kernel", READABLE, "--serial", text]).unwrap().serial;
    assert_eq!(serial("file:/tmp/a,,b"), Serial::File { path: "/tmp/a,b".into(), max: None });
    assert_eq!(serial("file:/tmp/a,max=64K"), Serial::File { path: "/tmp/a".into(), max: Some(65536) });
}

/// Where only a path can follow, a path that looks like a descriptor is taken as a path. No descriptor was passed, so one would
/// be refused.
#[test]
fn a_path_that_looks_like_a_descriptor_is_a_path() {
    let config = run(&["--incoming", "unix:fd:1", "--serial", "file:fd:2", "--control", "unix:fd:3"]).unwrap();
    assert_eq!(config.incoming, Some(ListenAt::Address(Address::Unix("fd:1".into()))));
    assert_eq!(config.serial, Serial::File { path: "./fd:2".into(), max: None });
    assert_eq!(config.control, Some("./fd:3".into()));
    let refused = run(&["--kernel", "./fd:900"]).unwrap_err();
    assert!(refused.starts_with("--kernel ./fd:900: No such file"), "{refused}");
}

#[test]
fn each_mistake_gets_one_sentence() {
    let incoming = ["--incoming", "unix:/tmp/in"];
    let mistakes: &[(&[&str], &str)] = &[
        (
            &["--memory", "64.5G"],
            "invalid value '64.5G' for '--memory <SIZE>': write a number of bytes, or one with K, M, G or T, as 256M",
        ),
        (
            &["--memory", "+1M"],
            "invalid value '+1M' for '--memory <SIZE>': write a number of bytes, or one with K, M, G or T, as 256M",
        ),
        (
            &["--memory", "M"],
            "invalid value 'M' for '--memory <SIZE>': write a number of bytes, or one with K, M, G or T, as 256M",
        ),
        (
            &["--memory", ""],
            "invalid value '' for '--memory <SIZE>': write a number of bytes, or one with K, M, G or T, as 256M",
        ),
        (&["--memory", "65G"], "invalid value '65G' for '--memory <SIZE>': guest RAM is 1M to 64G"),
        (&["--memory", "1048575"], "invalid value '1048575' for '--memory <SIZE>': guest RAM is 1M to 64G"),
        (
            &["--memory", "1048577"],
            "invalid value '1048577' for '--memory <SIZE>': guest RAM is whole pages; give a multiple of 4K",
        ),
        (
            &["--memory", "99999999999G"],
            "invalid value '99999999999G' for '--memory <SIZE>': that is more than 64 bits can count",
        ),
        (&["--cpus", "0"], "invalid value '0' for '--cpus <N>': the machine has 1 to 8 vCPUs"),
        (&["--cpus", "9"], "invalid value '9' for '--cpus <N>': the machine has 1 to 8 vCPUs"),
        (
            &["--disk", "/nowhere/a.raw"],
            "--disk /nowhere/a.raw: No such file or directory (os error 2); give a raw disk image that may be written, or add ,readonly",
        ),
        (&["--disk", "/,readonly"], "--disk /: it is a directory; give a raw disk image"),
        (
            &["--disk", "a.raw,create=1000"],
            "invalid value 'a.raw,create=1000' for '--disk <FILE>': create=1000: a disk has sectors of 512 bytes, one at least",
        ),
        (
            &["--disk", "a.raw,create=1G,readonly"],
            "invalid value 'a.raw,create=1G,readonly' for '--disk <FILE>': the content of a disk with create= is written: leave out readonly",
        ),
        (
            &["--disk", "a.raw,ro"],
            "invalid value 'a.raw,ro' for '--disk <FILE>': 'ro' is unknown; write FILE or FILE,readonly (a comma in FILE as ,,)",
        ),
        (
            &["--disk", "a.raw,bps=1M"],
            "invalid value 'a.raw,bps=1M' for '--disk <FILE>': 'bps=1M' is unknown; limits are bytes-per-second=SIZE, bytes-burst=SIZE, ops-per-second=N, ops-burst=N",
        ),
        (
            &["--disk", "a.raw,bytes-per-second=fast"],
            "invalid value 'a.raw,bytes-per-second=fast' for '--disk <FILE>': bytes-per-second: write a number of bytes, or one with K, M, G or T, as 256M",
        ),
        (
            &["--disk", "a.raw,bytes-burst=1M"],
            "invalid value 'a.raw,bytes-burst=1M' for '--disk <FILE>': bytes-burst is of no use without bytes-per-second; add it",
        ),
        (
            &["--net", "tap=t,ops-per-second=0"],
            "invalid value 'tap=t,ops-per-second=0' for '--net <tap=NAME|stream=PATH>': ops-per-second: 0 would stop the device; leave it out",
        ),
        (
            &["--net", "tap=t,ops-per-second=1K"],
            "invalid value 'tap=t,ops-per-second=1K' for '--net <tap=NAME|stream=PATH>': ops-per-second: write a number",
        ),
        (
            &["--net", "mac=52:54:00:12:34:56"],
            "invalid value 'mac=52:54:00:12:34:56' for '--net <tap=NAME|stream=PATH>': write tap=NAME or stream=PATH, and ,mac=52:54:00:12:34:56 behind it if you like",
        ),
        (
            &["--net", "tap=t,stream=s"],
            "invalid value 'tap=t,stream=s' for '--net <tap=NAME|stream=PATH>': a card has one network; give --net once more for another card",
        ),
        (
            &["--net", "stream=s,vhost=on"],
            "invalid value 'stream=s,vhost=on' for '--net <tap=NAME|stream=PATH>': vhost=on is for a tap: the kernel moves frames between the guest and that; leave it out",
        ),
        (
            &["--net", "tap=t,vhost=on,ops-per-second=9"],
            "invalid value 'tap=t,vhost=on,ops-per-second=9' for '--net <tap=NAME|stream=PATH>': minivmm sees no frame that the kernel moves, and cannot limit their rate: leave out vhost=on or the limits, and limit the tap with tc(8)",
        ),
        (&["--net", "stream="], "invalid value 'stream=' for '--net <tap=NAME|stream=PATH>': write stream=PATH"),
        (
            &["--net", "tap=sixteen-letters!"],
            "invalid value 'tap=sixteen-letters!' for '--net <tap=NAME|stream=PATH>': 'sixteen-letters!' is no interface name; use 1 to 15 letters or digits",
        ),
        (
            &["--net", "tap=t,mac=53:54:00:12:34:56"],
            "invalid value 'tap=t,mac=53:54:00:12:34:56' for '--net <tap=NAME|stream=PATH>': '53:54:00:12:34:56' is a multicast address; choose one with an even first byte, as 52:54:00:12:34:56",
        ),
        (
            &["--net", "tap=t,mac=52:54:00:12:34"],
            "invalid value 'tap=t,mac=52:54:00:12:34' for '--net <tap=NAME|stream=PATH>': '52:54:00:12:34' is no MAC address; write six bytes, as 52:54:00:12:34:56",
        ),
        (&["--serial", "tty"], "invalid value 'tty' for '--serial <WHERE>': write stdio, file:PATH, fd:N, pty or none"),
        (
            &["--serial", "file:x,min=1"],
            "invalid value 'file:x,min=1' for '--serial <WHERE>': 'min=1' is unknown; write file:PATH or file:PATH,max=SIZE (a comma in PATH as ,,)",
        ),
        (
            &["--serial", "file:x,max=4095"],
            "invalid value 'file:x,max=4095' for '--serial <WHERE>': max is 4096 bytes or more",
        ),
        (
            &["--control", "tcp:localhost:1"],
            "invalid value 'tcp:localhost:1' for '--control <unix:PATH>': write unix:PATH or fd:N",
        ),
        (&["--restore", "now"], "invalid value 'now' for '--restore <eager|lazy>': write eager or lazy"),
        (&["--kvm", "/dev/kvm"], "invalid value '/dev/kvm' for '--kvm <fd:N>': write fd:N or fd:NAME"),
        (
            &["--kernel", "/nowhere/vmlinuz"],
            "--kernel /nowhere/vmlinuz: No such file or directory (os error 2); give a Linux bzImage or an ELF image with a PVH entry",
        ),
        (
            &["--kernel", READABLE, "--initrd", "/nowhere/initrd"],
            "--initrd /nowhere/initrd: No such file or directory (os error 2); give an initial RAM disk",
        ),
        (&["--smp", "2"], "unexpected argument '--smp' found; see minivmm --help"),
        (&["--cpus"], "a value is required for '--cpus <N>' but none was supplied; see minivmm --help"),
        (
            &["--cpus", "1", "--cpus", "2"],
            "the argument '--cpus <N>' cannot be used multiple times; see minivmm --help",
        ),
    ];
    for (flags, sentence) in mistakes {
        let line: Vec<&str> = incoming.iter().chain(*flags).copied().collect();
        assert_eq!(run(&line).unwrap_err(), *sentence, "for {flags:?}");
    }
}

#[test]
fn a_disk_is_made_for_a_guest_that_arrives_only() {
    let disks = run(&["--incoming", "unix:/tmp/in", "--disk", "/nowhere/a.raw,create=1G"]).unwrap().disks;
    assert_eq!((disks[0].create, disks[0].read_only), (Some(1 << 30), false));
    let refusal = run(&["--kernel", READABLE, "--disk", "a.raw,create=1G"]).unwrap_err();
    assert!(refusal.starts_with("--disk a.raw: create= is for a disk whose content a migration sends"), "{refusal}");
}

#[test]
fn addresses_are_checked() {
    let wrong = |address: &str| run(&["--incoming", address]).unwrap_err();
    let start = |address: &str| format!("invalid value '{address}' for '--incoming <ADDRESS>': '{address}' ");
    for address in ["", "unix:", "/tmp/in", "exec:"] {
        assert_eq!(
            wrong(address),
            start(address)
                + "is no address; write unix:PATH, tcp:HOST:PORT, vsock:CID:PORT, local:PATH, exec:COMMAND, fd:NAME or file:PATH[,offset=N]"
        );
    }
    for address in ["tcp:host", "tcp::", "tcp::65536", "tcp:host:65536", "tcp:host:"] {
        assert_eq!(wrong(address), start(address) + "lacks a host or a port of 0 to 65535; write tcp:HOST:PORT");
    }
    // Without a host only this host can connect.
    let incoming = |address: &str| run(&["--incoming", address]).unwrap().incoming;
    assert_eq!(incoming("tcp::4444"), Some(ListenAt::Address(Address::Tcp("127.0.0.1:4444".into()))));
    let refusal = run(&["--incoming", "defer"]).unwrap_err();
    assert!(refusal.ends_with("without a QMP socket the address cannot be given; give --control as well"), "{refusal}");
    assert_eq!(run(&["--incoming", "defer", "--control", "unix:q"]).unwrap().incoming, Some(ListenAt::Deferred));
}

/// Parameters of TLS are parsed with the command line: a wrong one is refused with its name.
#[test]
fn the_parameters_of_tls_are_options_of_a_machine() {
    let pin = "AB".repeat(32);
    let line = ["--incoming", "tcp::1", "--tls-creds", "certs", "--tls-authz", "CN=a;CN=b", "--tls-pin", &pin];
    let tls = run(&line).unwrap().tls;
    assert_eq!((tls.creds.as_deref(), tls.authz.len(), tls.pin.len()), (Some(Path::new("certs")), 2, 1));
    let refusal = run(&["--incoming", "tcp::1", "--tls-pin", "ab"]).unwrap_err();
    assert!(refusal.contains("'--tls-pin") && refusal.contains("64 hexadecimal digits"), "{refusal}");
}

/// Keys are readable for their owner only, and no file is replaced.
#[test]
fn certificates_are_made_once_and_keys_are_the_users_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    let words = ["tls", "init", certs.to_str().unwrap(), "--host", "b.example", "--host", "10.0.0.2", "--days", "2"];
    let make = || match command(&words).unwrap() {
        Command::Tls(command) => command.carry_out().map_err(|error| error.to_string()),
        other => panic!("not tls: {other:?}"),
    };
    let said = make().unwrap();
    assert!(said.contains("server-cert.pem  SHA-256 ") && said.contains("ca-key.pem"), "{said}");
    let names = ["ca-cert.pem", "ca-key.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem"];
    for name in names {
        let mode = certs.join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if name.ends_with("key.pem") { 0o600 } else { 0o644 }, "{name}");
    }
    let before: Vec<_> = names.map(|name| std::fs::read(certs.join(name)).unwrap()).into();
    let refusal = make().unwrap_err();
    assert!(refusal.contains("ca-cert.pem: it is there already, and is kept"), "{refusal}");
    let after: Vec<_> = names.map(|name| std::fs::read(certs.join(name)).unwrap()).into();
    assert!(before == after);
}

#[test]
fn a_machine_needs_a_kernel_or_a_migration() {
    assert_eq!(
        run(&["--cpus", "1"]).unwrap_err(),
        "the following required arguments were not provided: --kernel <FILE>; see minivmm --help"
    );
}

#[test]
fn the_machine_has_eight_windows() {
    let mut line = vec!["--incoming", "unix:/tmp/in", "--net", "tap=t"];
    line.extend(["--disk", concat!(env!("CARGO_MANIFEST_DIR"), "/src/main.rs,readonly")].repeat(7));
    assert_eq!(run(&line).unwrap().disks.len(), 7);
    line.extend(["--net", "tap=u"]);
    assert_eq!(run(&line).unwrap_err(), "--disk, --net: 9 devices, but the machine has room for 8; leave some out");
}

#[test]
fn disks_to_copy_are_all_or_named_ones() {
    let parsed =
        |flags: &[&str]| match command(&[&["migrate", "--control", "unix:/qmp"], flags, &["tcp:far:1"]].concat()) {
            Ok(Command::Migrate(arguments)) => arguments.copy_disk,
            other => panic!("{other:?}"),
        };
    assert_eq!(parsed(&[]), None);
    assert_eq!(parsed(&["--copy-disk"]), Some(vec![]));
    assert_eq!(parsed(&["--copy-disk=virtio1,virtio3"]), Some(vec!["virtio1".into(), "virtio3".into()]));
}

#[test]
fn migrate_and_no_command() {
    match command(&["migrate", "--control", "unix:/tmp/qmp", "tcp:far:1"]).unwrap() {
        Command::Migrate(arguments) => {
            assert_eq!(arguments.machine.control, PathBuf::from("/tmp/qmp"));
            assert_eq!(arguments.to, Some(Address::Tcp("far:1".into())));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        command(&["migrate", "unix:/tmp/in"]).unwrap_err(),
        "the following required arguments were not provided: --control <unix:PATH>; see minivmm --help"
    );
    assert_eq!(
        command(&[]).unwrap_err(),
        "no command given; say run, migrate, status or another one of minivmm --help"
    );
    assert_eq!(command(&["start"]).unwrap_err(), "unrecognized subcommand 'start'; see minivmm --help");
}

/// Each line of an example parses, except lines that a shell or a file completes.
#[test]
fn each_command_has_examples_that_it_takes() {
    fn look(command: &clap::Command) {
        if command.has_subcommands() {
            command.get_subcommands().for_each(look);
            if command.get_name() != "minivmm" {
                return;
            }
        }
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples: Vec<_> = help.lines().filter(|line| line.starts_with("  minivmm ")).collect();
        assert!(!examples.is_empty(), "{}: {help}", command.get_name());
        let takes_shell = |example: &str| example.contains(['>', '|', '\'']) || example.contains("--config");
        for example in examples.iter().filter(|example| !takes_shell(example)) {
            let parsed = super::parse(example.split_whitespace());
            assert!(parsed.is_ok(), "{example}: {parsed:?}");
        }
    }
    look(&<super::Cli as clap::CommandFactory>::command());
}
