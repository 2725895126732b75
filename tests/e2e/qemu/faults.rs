//! Kills and connection cuts with a QEMU at one end, in each phase of a migration: the expected monitor runs the guest,
//! and no other.

use std::path::PathBuf;

use vmstate_lab::error::Result;
use vmstate_lab::faults::case;
use vmstate_lab::faults::cell::Phase;
use vmstate_lab::faults::qemu::{Direction, QEMU_TABLE, QemuRow};
use vmstate_lab::faults::setup::{Memory, Setup, TINY};
use vmstate_lab::faults::side::Side;
use vmstate_lab::qemu;
use vmstate_lab::tiny;
use vmstate_lab::vmm::{Config, Program};

use super::peer::failed;
use crate::matrix::FAULTS;
use crate::place::{self, case_with_qemu, minivmm, scratch};
use crate::world::ensure;

/// Number of pages that the guest rewrites in each pass, and the pass's length in 65536 ticks.
const LOAD: (u64, u64) = (16, 0x800);

/// The phases of an ordinary run; `VMSTATE_FAULTS=all` selects all phases.
const COMMIT: [Phase; 2] = [Phase::Eof, Phase::Shut];

fn setup(directory: &std::path::Path, direction: Direction) -> Result<Setup> {
    let (kernel, disk) = (directory.join("tiny"), directory.join("disk"));
    std::fs::write(&kernel, tiny::bzimage()).map_err(failed)?;
    std::fs::write(&disk, [0; 64 << 10]).map_err(failed)?;
    let config = Config {
        kernel,
        initrd: None,
        append: tiny::command_line_with_disk(LOAD.0, LOAD.1),
        memory_mib: 16,
        cpus: 1,
        disk: Some(disk),
        card: None,
        uso: true,
        control: PathBuf::new(),
        incoming: None,
        more: Vec::new(),
    };
    let (ours, theirs) = (Program::Minivmm(minivmm().to_owned()), Program::Qemu(qemu::at_least(qemu::NEEDED)?, "kvm"));
    let (program, peer) = if direction == Direction::ToQemu { (ours, theirs) } else { (theirs, ours) };
    let launcher = Some(place::lab().to_owned());
    Ok(Setup { test_guest: TINY, launcher, program, peer, memory: Memory::Main, copied_to: None, config })
}

/// Runs each case with a guest of its own; returns a sentence for each deviation from the row.
fn walk(row: &QemuRow, phases: &[Phase]) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    for (phase, cell) in row.cells.iter().filter(|(phase, _)| phases.contains(phase)) {
        let begun = std::time::Instant::now();
        let directory = scratch()?;
        let setup = setup(directory.path(), row.direction)?;
        let outcome = Side::boot(&setup).and_then(|mut source| {
            if row.direction == Direction::FromQemu {
                source.vmm.listen(true).map_err(|error| error.to_string())?;
            }
            case::run(&setup, source, row.fault, *phase, cell)
        });
        println!("{:?}, {:?}, {phase:?}: {:?}", row.direction, row.fault, begun.elapsed());
        if let Err(why) = outcome {
            println!("FAILED: {why}");
            failures.push(format!("{:?}, {:?}, {phase:?}: {why}", row.direction, row.fault));
        }
    }
    Ok(failures)
}

#[test]
fn kills_and_cuts_leave_one_guest_at_most() {
    case_with_qemu("qemu::faults::kills_and_cuts_leave_one_guest_at_most", |_| {
        let phases = match std::env::var(FAULTS).as_deref() {
            Ok("all") => &Phase::ALL[..],
            _ => &COMMIT,
        };
        let mut failures = Vec::new();
        for row in QEMU_TABLE {
            failures.extend(walk(row, phases)?);
        }
        ensure(failures.is_empty(), || failures.join("\n"))
    });
}
