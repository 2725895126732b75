//! CPU models, compared with QEMU's, and as a guest on this host sees them.

mod guest;
mod qemu;

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kvm_bindings::CpuId;
use minivmm::config::Cpu;
use minivmm::cpu::Choice;
use vmstate_lab::tiny::cpuid::Leaf;

const TIMEOUT: Duration = Duration::from_secs(120);

fn choose(text: &str) -> Choice {
    Choice::new(&text.parse::<Cpu>().unwrap()).unwrap()
}

/// Runs a VMM whose guest powers off; returns its standard output and error.
fn run(command: &mut Command) -> (String, String) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let gather = |mut stream: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            stream.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let output = gather(Box::new(child.stdout.take().unwrap()));
    let errors = gather(Box::new(child.stderr.take().unwrap()));
    let deadline = Instant::now() + TIMEOUT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    (output.join().unwrap(), errors.join().unwrap())
}

/// The leaves of `cpuid` that are not all zeros, as the CPUID guest prints them.
fn leaves(cpuid: &CpuId) -> Vec<Leaf> {
    let leaves =
        cpuid.as_slice().iter().map(|leaf| ([leaf.function, leaf.index], [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]));
    leaves.filter(|(_, registers)| *registers != [0; 4]).collect()
}

/// Removes what depends on the moment instead of the model: bits that the guest set in CR4, and levels of leaf 0xb that do not
/// exist.
fn lasting(leaves: Vec<Leaf>) -> Vec<Leaf> {
    let leaves = leaves.into_iter().filter(|([function, index], _)| *function != 0xb || *index < 3);
    let leaves = leaves.map(|(number, mut registers)| {
        match number {
            [0x1, 0] => registers[2] &= !(1 << 27),
            [0x7, 0] => registers[2] &= !(1 << 4),
            _ => {}
        }
        (number, registers)
    });
    leaves.filter(|(_, registers)| *registers != [0; 4]).collect()
}

/// Fails with the leaves that differ.
fn assert_same(what: &str, shown: &[Leaf], expected: &[Leaf]) {
    let lines = |ours: &[Leaf], theirs: &[Leaf]| -> Vec<String> {
        let only = ours.iter().filter(|leaf| !theirs.contains(leaf));
        only.map(|([function, index], registers)| format!("{function:#x}.{index} {registers:08x?}")).collect()
    };
    let (ours, theirs) = (lines(shown, expected), lines(expected, shown));
    assert!(ours.is_empty() && theirs.is_empty(), "{what}: shown only {ours:#?}, expected only {theirs:#?}");
}
