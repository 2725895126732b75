//! The oracle is QEMU: the leaves that a guest of its TCG reads, and its models under KVM.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use minivmm::cpu::{FLAGS, Feature, MODELS, Model, Place};
use minivmm::kvm::cpuid::{self, Offer};
use serde_json::{Value, json};
use vmstate_lab::process::Process;
use vmstate_lab::qmp::Qmp;
use vmstate_lab::tiny::cpuid::{Leaf, bzimage};
use vmstate_lab::{host, qemu, skip};

use crate::{TIMEOUT, assert_same, choose, lasting, leaves, run};

/// Differences of a model under TCG and under KVM: QEMU switches `svm` and `monitor` off and `x2apic` on where the accelerator
/// is KVM (target/i386/kvm/kvm-cpu.c, target/i386/tcg/tcg-cpu.c).
const AS_UNDER_KVM: &str = ",-svm,-monitor,+x2apic";

/// Returns the leaves that a guest reads with QEMU's `-cpu CPU`, and the features that TCG reports as missing.
fn on_qemu(kernel: &Path, cpu: &str, cpus: u8) -> Option<(Vec<Leaf>, Vec<String>)> {
    let qemu = qemu::at_least(qemu::NEEDED).map_err(skip::skip).ok()?;
    let mut command = Command::new(qemu);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio", "-m", "16"]);
    command.args(["-M", "microvm,acpi=on,pcie=off,ioapic2=off,auto-kernel-cmdline=off,accel=tcg"]);
    command.args(["-smp", &cpus.to_string(), "-cpu", &format!("{cpu}{AS_UNDER_KVM}"), "-kernel"]).arg(kernel);
    let (console, errors) = run(&mut command);
    let shown = vmstate_lab::tiny::cpuid::leaves(&console).unwrap_or_else(|| panic!("{cpu}: {console:?}: {errors}"));
    // "… TCG doesn't support requested feature: CPUID.01H:ECX.sse4.1 [bit 19]"
    let lacking = errors.lines().filter_map(|line| line.split_once("TCG doesn't support requested feature: CPUID."));
    let lacking = lacking.filter_map(|(_, place)| place.split_once('.')?.1.split(' ').next().map(str::to_owned));
    Some((lasting(shown), lacking.collect()))
}

/// A host of this vendor, in EBX, ECX and EDX, with all features, and with the XSAVE offsets of QEMU's TCG.
fn host(vendor: [u32; 3], qemu: &[Leaf]) -> Offer {
    let entry = |function, index, [eax, ebx, ecx, edx]: [u32; 4]| kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    let all = |flags: &minivmm::cpu::Flags| match flags.place {
        Place::Cpuid { function, index, .. } => Some((function, index)),
        Place::Msr { .. } => None,
    };
    let mut entries: Vec<_> =
        FLAGS.iter().filter_map(all).map(|(function, index)| entry(function, index, [!0; 4])).collect();
    entries.dedup_by_key(|entry| (entry.function, entry.index));
    let [ebx, ecx, edx] = vendor;
    entries.push(entry(0, 0, [0x20, ebx, ecx, edx]));
    // KVM's page tables cover all physical address bits.
    entries.retain(|entry| entry.function != 0x8000_0008);
    entries.push(entry(0x8000_0008, 0, [0, !0, !0, !0]));
    let parts = qemu.iter().filter(|([function, index], _)| *function == 0xd && *index > 1);
    entries.extend(parts.map(|([function, index], registers)| entry(*function, *index, *registers)));
    Offer::new(&CpuId::from_entries(&entries).unwrap(), true, [[0; 4]; 3])
}

/// Each model with one vCPU and with several, three of which are no power of two, on hosts of either vendor.
#[test]
fn leaves_are_those_of_qemus_models() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("cpuid");
    std::fs::write(&kernel, bzimage()).unwrap();
    for model in MODELS {
        for (vendor, cpus) in [("AuthenticAMD", 1), ("AuthenticAMD", 3), ("GenuineIntel", 2)] {
            // TCG leaves the feature out unless it is requested.
            let vme = if model.features.contains("vme") { "on" } else { "off" };
            let cpu = format!("{},vendor={vendor},vme={vme}", model.qemu);
            let Some((mut qemu, lacking)) = on_qemu(&kernel, &cpu, cpus) else { return };
            let word = |at: usize| u32::from_le_bytes(vendor.as_bytes()[at..at + 4].try_into().unwrap());
            let offer = host([word(0), word(8), word(4)], &qemu);
            let known = lacking.iter().filter(|name| Feature::find(name).is_some());
            let off: String = known.map(|name| format!(",-{name}")).collect();
            let choice = choose(&format!("{}{off}", model.names[0]));
            let mut ours = lasting(leaves(&cpuid::show(&offer, &choice, cpus).unwrap()));
            // These leaves depend on the accelerator.
            for leaves in [&mut qemu, &mut ours] {
                leaves.retain(|([function, _], _)| !(0x4000_0000..0x8000_0000).contains(function));
            }
            assert_same(&format!("{cpu}, {cpus} vCPUs"), &ours, &qemu);
        }
    }
}

/// Features and identity of QEMU's models under KVM. The model is not started, so any KVM will do.
#[test]
fn models_are_those_of_qemu_under_kvm() {
    if let Err(reason) = host::has_kvm() {
        return skip::skip(reason);
    }
    let qemu = match qemu::at_least(qemu::NEEDED) {
        Ok(qemu) => qemu,
        Err(error) => return skip::skip(error),
    };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp");
    let mut process = Process::spawn(None, &qemu, |command| {
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-S", "-M", "microvm,accel=kvm", "-qmp"]);
        command.arg(format!("unix:{},server=on,wait=off", socket.display())).stderr(Stdio::null());
    })
    .unwrap();
    let deadline = Instant::now() + TIMEOUT;
    let mut qmp = loop {
        match Qmp::connect(&socket, Instant::now() + Duration::from_millis(200)) {
            Ok(qmp) => break qmp,
            Err(error) => assert!(Instant::now() < deadline && process.ended().is_none(), "{error}"),
        }
    };
    for model in MODELS {
        let (name, more) = model.qemu.split_once(",+").unwrap_or((model.qemu, ""));
        let more = more.split(",+").filter(|name| !name.is_empty());
        let changes: serde_json::Map<_, _> = more.map(|name| (name.to_owned(), json!(true))).collect();
        let question = json!({ "type": "full", "model": { "name": name, "props": changes } });
        let answer = qmp.execute("query-cpu-model-expansion", question).unwrap();
        compare(model, &answer["model"]["props"]);
    }
    process.kill();
}

fn compare(model: &Model, qemu: &Value) {
    let name = model.names[0];
    let number = |property: &str| qemu[property].as_u64().unwrap_or_else(|| panic!("{name}: {property}")) as u32;
    let (family, kind) = (number("family"), number("model"));
    // Intel SDM volume 2, CPUID leaf 1: family and model are split.
    let (low, high) = if family > 0xf { (0xf, family - 0xf) } else { (family, 0) };
    let signature = high << 20 | (kind >> 4) << 16 | low << 8 | (kind & 0xf) << 4 | number("stepping");
    assert_eq!(
        (model.signature, model.level, model.extended_level, Some(model.brand)),
        (signature, number("level"), number("xlevel"), qemu["model-id"].as_str()),
        "{name}"
    );
    let ours: Vec<&str> = model.features().map(Feature::name).collect();
    let mut compared = 0;
    let mut differing = Vec::new();
    for flags in FLAGS {
        for feature in (0..32).filter_map(|bit| flags.name(bit)).filter_map(Feature::find).map(Feature::name) {
            if let Some(theirs) = qemu[feature].as_bool() {
                compared += 1;
                if theirs != ours.contains(&feature) {
                    differing.push((feature, theirs));
                }
            }
        }
    }
    assert!(differing.is_empty(), "{name}: QEMU says {differing:?}");
    assert!(compared > 150, "{name}: QEMU answered for {compared} features only");
}
