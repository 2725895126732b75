//! Migrations in each mode over each kind of connection, between two confined processes. A thread that makes a system call
//! which its sandbox forbids is killed, and in post-copy the guest's missing pages with it.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use minivmm::certificates::{Wanted, make};
use minivmm::control::Client;
use serde_json::{Value, json};
use vmstate_lab::wait::until;

use super::{Running, minivmm};

/// How a migration is made.
#[derive(Clone, Copy)]
struct Mode {
    name: &'static str,
    /// Capabilities of both sides.
    capabilities: &'static [&'static str],
    /// Compression of page channels.
    compression: &'static str,
    /// Options of `minivmm migrate`.
    options: &'static [&'static str],
}

const MODES: [Mode; 6] = [
    Mode { name: "pre-copy", capabilities: &[], compression: "none", options: &[] },
    Mode { name: "XBZRLE", capabilities: &["xbzrle"], compression: "none", options: &[] },
    Mode { name: "page channels", capabilities: &["multifd"], compression: "none", options: &[] },
    Mode { name: "compressed page channels", capabilities: &["multifd"], compression: "zstd", options: &[] },
    Mode { name: "post-copy", capabilities: &["postcopy-ram"], compression: "none", options: &["--postcopy"] },
    Mode {
        name: "post-copy with a second connection",
        capabilities: &["postcopy-ram", "postcopy-preempt"],
        compression: "none",
        options: &["--postcopy"],
    },
];

/// An address of this host without a listener; `None` if the host lacks the family.
fn free(host: &str) -> Option<String> {
    let listener = TcpListener::bind((host, 0)).ok()?;
    let port = listener.local_addr().unwrap().port();
    Some(if host.contains(':') { format!("tcp:[{host}]:{port}") } else { format!("tcp:{host}:{port}") })
}

/// Migrates a guest from one process to another; `false` without KVM.
fn migrates(at: &str, certificates: Option<&Path>, mode: Mode) -> bool {
    let Mode { name, capabilities, compression, options } = mode;
    let Some(mut here) = Running::start(&[], Stdio::null()) else { return false };
    let there = Running::start(&["--incoming", "defer"], Stdio::null()).unwrap();
    here.await_banner();
    let (mut source, mut destination) = (here.control(), there.control());
    for client in [&mut source, &mut destination] {
        let capabilities: Vec<Value> =
            capabilities.iter().map(|capability| json!({ "capability": capability, "state": true })).collect();
        client.execute("migrate-set-capabilities", json!({ "capabilities": capabilities })).unwrap();
        let mut parameters = json!({ "multifd-compression": compression });
        if let Some(directory) = certificates {
            parameters["tls-creds"] = json!(directory);
            parameters["tls-hostname"] = json!("there");
        }
        client.execute("migrate-set-parameters", parameters).unwrap();
    }
    destination.execute("migrate-incoming", json!({ "uri": at })).unwrap();
    let control = format!("unix:{}/qmp", here.directory.path().display());
    let output = minivmm(&[&["migrate", "--control", &control, at], options].concat());
    assert_eq!(output.status.code(), Some(0), "{name} over {at}: {output:?}");
    for (client, status) in [(&mut source, "postmigrate"), (&mut destination, "running")] {
        assert_eq!(client.execute("query-status", json!({})).unwrap()["status"], status, "{name} over {at}");
    }
    true
}

#[test]
fn a_guest_goes_over_unix_sockets_in_each_mode() {
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        if !migrates(&format!("unix:{}/incoming", directory.path().display()), None, mode) {
            return;
        }
    }
}

#[test]
fn a_guest_goes_over_tcp_in_each_mode() {
    for (mode, host) in MODES.into_iter().flat_map(|mode| ["127.0.0.1", "::1"].map(|host| (mode, host))) {
        let Some(at) = free(host) else { continue };
        if !migrates(&at, None, mode) {
            return;
        }
    }
}

#[test]
fn a_guest_goes_encrypted_in_each_mode() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = directory.path().join("certificates");
    let hosts = vec!["there".into()];
    make(&Wanted { directory: certificates.clone(), hosts, days: 1, self_signed: false }).unwrap();
    for mode in MODES {
        if !migrates(&free("127.0.0.1").unwrap(), Some(&certificates), mode) {
            return;
        }
    }
}

/// The listening socket of a recovery and the second connection to it are made by confined threads as well.
#[test]
fn post_copy_is_recovered_over_tcp() {
    let Some(mut here) = Running::start(&[], Stdio::null()) else { return };
    let there = Running::start(&["--incoming", "defer"], Stdio::null()).unwrap();
    here.await_banner();
    let (mut source, mut destination) = (here.control(), there.control());
    let postcopy = json!({ "capabilities": [{ "capability": "postcopy-ram", "state": true }] });
    for client in [&mut source, &mut destination] {
        client.execute("migrate-set-capabilities", postcopy.clone()).unwrap();
    }
    // The records of the zero pages alone take longer than the test.
    source.execute("migrate-set-parameters", json!({ "max-postcopy-bandwidth": 1000 })).unwrap();
    let at = free("127.0.0.1").unwrap();
    destination.execute("migrate-incoming", json!({ "uri": at })).unwrap();
    source.execute("migrate", json!({ "uri": at })).unwrap();
    source.execute("migrate-start-postcopy", json!({})).unwrap();
    let await_status = |client: &mut Client, status: &str| {
        until(status, || client.execute("query-migrate", json!({})).unwrap()["status"] == status);
    };
    await_status(&mut source, "postcopy-active");
    source.execute("migrate-pause", json!({})).unwrap();
    await_status(&mut source, "postcopy-paused");
    await_status(&mut destination, "postcopy-paused");
    source.execute("migrate-set-parameters", json!({ "max-postcopy-bandwidth": 0 })).unwrap();
    let again = free("127.0.0.1").unwrap();
    destination.execute("migrate-recover", json!({ "uri": again })).unwrap();
    source.execute("migrate", json!({ "uri": again, "resume": true })).unwrap();
    await_status(&mut source, "completed");
    assert_eq!(destination.execute("query-status", json!({})).unwrap()["status"], "running");
}
