//! The CPUID leaves that a guest sees must be the same in QEMU and in minivmm.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use vmstate_lab::error::Result;
use vmstate_lab::process::Process;
use vmstate_lab::tiny::cpuid::{self, Leaf};

use super::peer::failed;
use crate::place::{case_with_qemu, lab, minivmm, scratch};
use crate::world::{ANSWER, ensure, within};

const QEMU: &str = "/bin/qemu-system-x86_64";
const QEMU_ARGUMENTS: &str = "-nodefaults -no-user-config -display none -no-reboot -serial stdio -m 16 -smp 2 -M \
                              microvm,acpi=on,pcie=off,ioapic2=off,auto-kernel-cmdline=off,accel=kvm -kernel";
const MINIVMM_ARGUMENTS: &str = "run --memory 16M --cpus 2 --kernel";

/// Runs a monitor whose guest powers off; returns its standard output and its standard error.
fn run(program: &Path, arguments: &str, kernel: &Path, more: &[&str]) -> Result<(String, String)> {
    let mut process = Process::spawn(Some(lab()), program, |command: &mut Command| {
        command.args(arguments.split_whitespace()).arg(kernel).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    })?;
    let gather = |mut stream: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stream.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let closed = || failed("the monitor's streams are closed");
    let output = gather(Box::new(process.child().stdout.take().ok_or_else(closed)?));
    let errors = gather(Box::new(process.child().stderr.take().ok_or_else(closed)?));
    process.wait(within(ANSWER))?;
    let text = |reader: std::thread::JoinHandle<String>| reader.join().map_err(|_| failed("a reader panicked"));
    Ok((text(output)?, text(errors)?))
}

/// The leaves on the console, without absent levels of leaf 0xb, and without `left_out`.
fn leaves(console: &str, errors: &str, left_out: &[u32]) -> Result<Vec<Leaf>> {
    let leaves = cpuid::leaves(console).ok_or_else(|| failed(format!("no leaves: {console:?}; {errors:?}")))?;
    let kept = |function: u32, index: u32| !left_out.contains(&function) && (function != 0xb || index < 3);
    Ok(leaves.into_iter().filter(|([function, index], _)| kept(*function, *index)).collect())
}

/// Compares the leaves in QEMU and in minivmm. minivmm runs first and names the features of the model that this host
/// lacks, which are then left out in QEMU as well. The leaves in `left_out` are not compared, nor the bits in `bits`,
/// each with its leaf and its register.
fn compare(kernel: &Path, model: &str, left_out: &[u32], bits: &[(u32, usize, u32)]) -> Result<()> {
    let (mut console, mut errors) = run(minivmm(), MINIVMM_ARGUMENTS, kernel, &["--cpu", model])?;
    let mut cpu = model.to_owned();
    if let Some((_, off)) = errors.split_once("leave them out (") {
        cpu.push_str(off.split(')').next().unwrap_or_default());
        (console, errors) = run(minivmm(), MINIVMM_ARGUMENTS, kernel, &["--cpu", &cpu])?;
    }
    let mut ours = leaves(&console, &errors, left_out)?;
    let qemu = cpu.replace("x86-64-v2", "qemu64-v1,+popcnt,+sse4.1,+sse4.2,+ssse3");
    let (console, errors) = run(Path::new(QEMU), QEMU_ARGUMENTS, kernel, &["-cpu", &qemu])?;
    let mut theirs = leaves(&console, &errors, left_out)?;
    for ([function, _], registers) in ours.iter_mut().chain(&mut theirs) {
        bits.iter().filter(|bit| bit.0 == *function).for_each(|(_, register, mask)| registers[*register] &= !mask);
    }
    let only = |these: &[Leaf], those: &[Leaf]| -> Vec<String> {
        let leaves = these.iter().filter(|leaf| !those.contains(leaf));
        leaves.map(|([function, index], registers)| format!("{function:#x}.{index} {registers:08x?}")).collect()
    };
    let (ours, theirs) = (only(&ours, &theirs), only(&theirs, &ours));
    ensure(ours.is_empty() && theirs.is_empty(), || format!("{cpu}: minivmm shows {ours:#?}, QEMU {theirs:#?}"))
}

#[test]
fn leaves_are_qemus() {
    case_with_qemu("qemu::processor::leaves_are_qemus", |_| {
        let directory = scratch()?;
        let kernel = directory.path().join("cpuid");
        std::fs::write(&kernel, cpuid::bzimage()).map_err(failed)?;
        for model in ["qemu64", "x86-64-v2", "EPYC", "Skylake-Server"] {
            compare(&kernel, model, &[], &[])?;
        }
        // The differences that docs/cpu.md lists: caches are the host's, nested virtualization (SVM, bit 2) is not
        // offered, and features without a name in QEMU are.
        let caches = [0x8000_0005, 0x8000_0006, 0x8000_001d];
        let (nested, unnamed) = ([0x8000_000a], [(0x8000_0001, 2, 1 << 2), (0x8000_0021, 0, 1 << 9)]);
        compare(&kernel, "host", &[&caches[..], &nested].concat(), &unnamed)
    });
}
