//! CPU models of the built command, with a guest on this host's KVM.

use std::path::Path;
use std::process::Command;

use minivmm::kvm::cpuid::{self, Offer};
use vmstate_lab::tiny::cpuid::{Leaf, bzimage, leaves};

use crate::{assert_same, choose, lasting, run};

/// Returns the leaves that the guest reads, or minivmm's refusal.
fn shown(kernel: &Path, cpu: &str) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command.args(["run", "--memory", "16M", "--cpus", "2", "--cpu", cpu, "--kernel"]).arg(kernel);
    let (console, errors) = run(&mut command);
    if errors.is_empty() { Ok(console) } else { Err(errors) }
}

fn lab() -> Option<tempfile::TempDir> {
    if let Err(error) = minivmm::kvm::open() {
        vmstate_lab::skip::skip(error);
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cpuid"), bzimage()).unwrap();
    Some(dir)
}

/// Selects the leaves that are equal on every KVM. On some KVMs guests execute CPUID themselves: they read the hardware's
/// features whatever was set, but nothing that the hardware lacks.
fn certain(leaves: Vec<Leaf>) -> Vec<Leaf> {
    let leaves = lasting(leaves).into_iter().filter(|([function, _], _)| !matches!(function, 0x7 | 0xd));
    leaves
        .map(
            |(number, registers)| {
                if number == [0x1, 0] { (number, [registers[0], registers[1], 0, 0]) } else { (number, registers) }
            },
        )
        .collect()
}

/// A host that lacks a feature of a model names the features to leave out, and starts without them.
#[test]
fn a_guest_reads_the_model_that_was_chosen() {
    let Some(dir) = lab() else { return };
    let kernel = dir.path().join("cpuid");
    let offer = Offer::read(&minivmm::kvm::open().unwrap()).unwrap();
    for model in ["host", "qemu64", "EPYC", "x86-64-v3", "qemu64,-apic,-lahf_lm"] {
        let mut cpu = model.to_owned();
        let console = shown(&kernel, &cpu).or_else(|refusal| {
            let (_, off) = refusal.split_once("leave them out (").unwrap_or_else(|| panic!("{model}: {refusal}"));
            cpu.push_str(off.split(')').next().unwrap());
            shown(&kernel, &cpu)
        });
        let console = console.unwrap_or_else(|refusal| panic!("{cpu}: {refusal}"));
        let read = leaves(&console).unwrap_or_else(|| panic!("{cpu}: {console}"));
        let expected = cpuid::show(&offer, &choose(&cpu), 2).unwrap();
        assert_same(&cpu, &certain(read), &certain(crate::leaves(&expected)));
    }
}

/// Only Xeon Phi ever had AVX512PF, and no processor has both it and AMD's 3DNow! extensions.
#[test]
fn a_host_that_cannot_give_a_feature_refuses_to_start_by_its_name() {
    let Some(dir) = lab() else { return };
    let error = shown(&dir.path().join("cpuid"), "qemu64,+avx512pf,+3dnowext").unwrap_err();
    for part in ["--cpu: ", "qemu64-v1", "avx512pf (leaf 0x7 EBX bit 26)", "3dnowext (leaf 0x80000001 EDX bit 30)"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(error.lines().count(), 1, "{error}");
}
