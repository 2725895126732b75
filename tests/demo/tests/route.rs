//! The demo's command along a route, with the tiny guest: its exit code, its report, its files.

use std::fs;
use std::process::Command;

use serde_json::Value;
use vmstate_lab::{host, qemu, skip};

const LAB: &str = env!("CARGO_BIN_EXE_lab");

/// Runs a demo with the tiny guest and these options, which must succeed; returns its output and its report.
fn reported(options: &[&str]) -> (String, Value) {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("report.json");
    let mut demo = Command::new(LAB);
    demo.args(["demo", "--guest", "tiny", "--json"]).arg(&json).args(options);
    let output = demo.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    (said, serde_json::from_slice(&fs::read(json).unwrap()).unwrap())
}

/// Oracle: the guest verifies its memory in each pass, and numbers the passes.
#[test]
fn a_guest_migrates_along_a_route_and_each_hop_is_reported_and_drawn() {
    if let Err(reason) = host::has_kvm() {
        return skip::skip(reason);
    }
    let directory = tempfile::tempdir().unwrap();
    let picture = directory.path().join("route.svg");
    let drawn = ["--route", "minivmm,minivmm,minivmm", "--picture", picture.to_str().unwrap()];
    let (said, report) = reported(&drawn);

    let name = concat!("minivmm ", env!("CARGO_PKG_VERSION"));
    for hop in 1..=2 {
        assert!(said.contains(&format!("\nhop {hop}: {name} → {name}\n")), "{said}");
    }
    assert!(!said.contains("hop 3") && said.ends_with("The guest did not notice.\n"), "{said}");
    let hops = report["hops"].as_array().unwrap();
    assert_eq!((hops.len(), &report["holds"]), (2, &Value::Bool(true)), "{report}");
    for hop in hops {
        assert_eq!(hop["migration"]["status"], "completed", "{report}");
    }
    let picture = fs::read_to_string(picture).unwrap();
    assert_eq!(picture.matches(&format!(">{name}</text>")).count(), 3, "a lane for each monitor: {picture}");
}

/// Oracle: each numbered tick is on the console of one monitor; the gap without ticks contains the time between STOP
/// and RESUME of the monitors.
#[test]
fn a_tiny_guest_goes_on_in_a_qemu_and_its_felt_downtime_is_reported() {
    if let Err(reason) = host::has_kvm() {
        return skip::skip(reason);
    }
    if let Err(reason) = qemu::at_least(qemu::NEEDED) {
        return skip::skip(reason);
    }
    let (_, report) = reported(&["--route", "minivmm,qemu"]);
    let hop = &report["hops"][0];
    assert!(hop["to"].as_str().unwrap().starts_with("QEMU "), "{hop}");
    let felt = |part: &str| hop["felt"][part].as_f64().unwrap();
    assert!(felt("stopped_ms") > 0.0 && felt("total_ms") >= felt("stopped_ms"), "{hop}");
}

/// Oracle: the guest verifies its memory, and the count of pages shows that none was sent.
#[test]
fn a_guest_is_taken_over_without_a_copy_of_its_memory() {
    if let Err(reason) = host::has_kvm() {
        return skip::skip(reason);
    }
    let (_, report) = reported(&["--mode", "update"]);
    let ram = &report["hops"][0]["migration"]["ram"];
    assert_eq!((ram["normal"].as_u64(), ram["duplicate"].as_u64()), (Some(0), Some(0)), "{report}");
}

/// Oracle: the guest verifies its memory, and its ticks continue in order. Its process was started after the save.
#[test]
fn a_guest_goes_on_from_a_file_in_a_process_started_afterwards() {
    if let Err(reason) = host::has_kvm() {
        return skip::skip(reason);
    }
    let (said, report) = reported(&["--mode", "snapshot", "--route", "minivmm*3"]);
    let hops = report["hops"].as_array().unwrap();
    assert_eq!((hops.len(), said.contains("The guest did not notice.")), (2, true), "{said}");
    for hop in hops {
        assert!(hop["migration"]["ram"]["normal"].as_u64() > Some(2048), "all pages that the guest writes: {hop}");
        // The time in the file does not count as downtime of the source.
        let stood = hop["felt"]["stopped_ms"].as_f64().unwrap();
        assert!(stood > hop["migration"]["downtime"].as_f64().unwrap(), "{hop}");
    }
}

#[test]
fn an_invalid_route_is_refused_with_one_sentence_before_anything_runs() {
    let refusal = |route: &str| {
        let output = Command::new(LAB).args(["demo", "--guest", "tiny", "--route", route]).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{route}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refusal("minivmm").contains("a route has at least two monitors"));
    assert!(refusal("minivmm,bochs").contains("no monitor is called `bochs`"));
    let qemu = refusal("qemu,minivmm");
    assert_eq!(qemu, "demo: the tiny guest boots in minivmm only: begin the --route with `minivmm`\n");
}
