//! The units of docs/systemd agree with one another and with their manual page.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use minivmm::cli::{self, Command, Parsed};

use crate::service::Unit;

fn docs() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs"))
}

/// Each passed descriptor is named on the command line, each name is passed, and nothing else is passed.
#[test]
fn each_command_names_just_what_its_unit_passes() {
    let boots = Unit::read("minivmm.service");
    let awaits = Unit::read("minivmm.service").with("minivmm.service.d/incoming.conf");
    for unit in [boots, awaits] {
        let sockets = unit.values("Sockets").into_iter().map(Unit::read);
        let mut passed: BTreeSet<String> = sockets
            .map(|socket| {
                assert_eq!((socket.value("Service"), socket.value("SocketMode")), ("minivmm.service", "0600"));
                socket.value("FileDescriptorName").to_owned()
            })
            .collect();
        let files = unit.values("OpenFile").into_iter();
        passed.extend(files.map(|file| file.split(':').nth(1).unwrap().to_owned()));
        let command = unit.command();
        let named: BTreeSet<String> =
            command.iter().filter_map(|word| word.strip_prefix("fd:")).map(str::to_owned).collect();
        assert_eq!(named, passed);
        for word in command.iter().skip(1).filter(|word| word.contains('/')) {
            assert!(word.contains("root=/dev/vda"), "{word} is a path");
        }
        let parsed = cli::parse(command.iter()).unwrap();
        let Parsed::Command(command) = parsed else { panic!("{command:?}") };
        let Command::Run(arguments) = *command else { panic!("{command:?}") };
        assert!(arguments.confined());
        // Both ends have the same guest.
        let size = |flag| unit.command().iter().skip_while(|word| *word != flag).nth(1).cloned();
        assert_eq!((size("--memory"), size("--cpus")), (Some("512M".into()), Some("2".into())));
    }
}

#[test]
fn the_process_has_no_right() {
    let unit = Unit::read("minivmm.service").with("minivmm.service.d/incoming.conf");
    for (key, value) in [
        ("DynamicUser", "yes"),
        ("CapabilityBoundingSet", ""),
        ("NoNewPrivileges", "yes"),
        ("DevicePolicy", "closed"),
        ("PrivateDevices", "yes"),
        ("ProtectSystem", "strict"),
        ("PrivateNetwork", "yes"),
        ("MemoryDenyWriteExecute", "yes"),
    ] {
        assert_eq!(unit.value(key), value, "{key}");
    }
    assert_eq!(unit.values("DeviceAllow"), ["/dev/kvm rw"]);
    for key in ["AmbientCapabilities", "SupplementaryGroups", "ReadWritePaths"] {
        assert_eq!(unit.values(key), [""; 0], "{key}");
    }
}

#[test]
fn the_page_has_a_link_to_each_file() {
    let page = fs::read_to_string(docs().join("sandbox.md")).unwrap();
    for folder in ["systemd", "systemd/minivmm.service.d"] {
        for entry in fs::read_dir(docs().join(folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let is_file = entry.file_type().unwrap().is_file();
            assert!(!is_file || page.contains(&format!("({folder}/{name})")), "no link to {folder}/{name}");
        }
    }
}
