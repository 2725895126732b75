//! The fault matrix with Linux: a guest that dirties memory, writes files and prints numbers.
//!
//! A surviving guest is used for the next case. An ordinary run covers [`SAMPLE`]; [`FAULTS`] selects more.

use std::time::{Duration, Instant};

use vmstate_lab::bench::Guest;
use vmstate_lab::error::{Error, Result};
use vmstate_lab::faults::case;
use vmstate_lab::faults::cell::{Cell, Fault, Phase};
use vmstate_lab::faults::setup::{Memory, Setup, TestGuest};
use vmstate_lab::faults::side::Side;
use vmstate_lab::faults::table::TABLE;
use vmstate_lab::guest;
use vmstate_lab::vmm::{Program, Vmm};

use crate::place::{self, case_in_parts};
use crate::world::{ANSWER, World, dirtying, ensure, verify, within};

/// Environment variable: `all`, or names of faults separated by commas, whose rows of the table are run, each in an
/// emulated host of its own.
pub(crate) const FAULTS: &str = "VMSTATE_FAULTS";
/// Time limit for one row, or for the sample.
const TIME: Duration = Duration::from_secs(240);
const NAME: &str = "matrix::linux_goes_through_the_faults";

/// The cases of an ordinary run: the commit first, and cases that end the guest last, because the guest must be booted
/// again after them.
const SAMPLE: &[(Fault, Phase)] = &[
    (Fault::DestinationKilled, Phase::Eof),
    (Fault::WireStalls, Phase::SwitchOver),
    (Fault::Cancel, Phase::SwitchOver),
    (Fault::ImageCopied, Phase::Setup),
    (Fault::Stop, Phase::Rounds),
    (Fault::LockTaken, Phase::Eof),
    (Fault::LoadRefused, Phase::SwitchOver),
    (Fault::WireCut, Phase::Shut),
    (Fault::SourceKilled, Phase::Eof),
    (Fault::EofLateAfterQuit, Phase::Eof),
];

const LINUX: TestGuest = TestGuest {
    banner: "@lab {\"ready\":",
    passes: guest::counted,
    silence: Duration::from_millis(500),
    complaint: |console| console.contains("Kernel panic").then(|| "the guest's kernel panics".into()),
    verify: |vmm| everything_is_right(vmm).map_err(|error| error.to_string()),
    power_off: "poweroff\n",
    reboot: "reboot\n",
    pass_on_disk: None,
};

fn everything_is_right(vmm: &mut Vmm) -> Result<()> {
    verify(vmm)?;
    let mark = vmm.ask("mark", within(ANSWER))?;
    ensure(mark["log"] == serde_json::json!([]), || format!("the guest's kernel complains: {}", mark["log"]))?;
    ensure(mark["tick"]["backward"] == 0, || format!("a clock went backward: {}", mark["tick"]))
}

/// The cases of one part: a row of the table, or the sample.
fn cases(part: &str) -> Result<Vec<(Fault, Phase)>> {
    if part == "sample" {
        return Ok(SAMPLE.to_vec());
    }
    let row = TABLE.iter().find(|row| format!("{:?}", row.fault) == part);
    let row = row.ok_or_else(|| Error::failed(format!("{FAULTS}: there is no fault {part}")))?;
    Ok(Phase::ALL.map(|phase| (row.fault, phase)).to_vec())
}

fn walk(world: &World, part: &str) -> Result<()> {
    let mut guest = Guest { disk: true, ..dirtying(16, 1000) };
    guest.options.counts = true;
    let bench = world.bench(&guest)?;
    let mut config = bench.config().clone();
    // Reboot by a triple fault: through the FADT's reset register a reboot took more than a minute in an emulated host.
    config.append = format!("reboot=t {}", config.append);
    let program = Program::Minivmm(place::minivmm().to_owned());
    let setup = Setup {
        test_guest: LINUX,
        launcher: Some(place::lab().to_owned()),
        program: program.clone(),
        peer: program,
        memory: Memory::Main,
        copied_to: None,
        config,
    };
    let mut survivor: Option<Side> = None;
    let mut failures = Vec::new();
    for (fault, phase) in cases(part)? {
        let row = TABLE.iter().find(|row| row.fault == fault);
        let cell = row.and_then(|row| Phase::ALL.iter().zip(&row.cells).find(|(known, _)| **known == phase));
        let Some((_, cell @ Cell::Ends { .. })) = cell else { continue };
        let begun = Instant::now();
        let source = survivor.take().map_or_else(|| Side::boot(&setup), Ok);
        let booted = begun.elapsed();
        let ended = source.and_then(|source| case::run(&setup, source, fault, phase, cell));
        println!("matrix: {fault:?}, {phase:?}: {booted:?} to boot, {:?} in all", begun.elapsed());
        match ended {
            Ok(side) => survivor = side,
            Err(why) => {
                println!("matrix: FAILED: {why}");
                failures.push(format!("{fault:?}, {phase:?}: {why}"));
            }
        }
    }
    ensure(failures.is_empty(), || failures.join("\n"))
}

#[test]
fn linux_goes_through_the_faults() {
    let asked = std::env::var(FAULTS).unwrap_or_else(|_| "sample".into());
    // A row without a console loses the guest's numbers, and Linux's disk does not have them.
    let rows = TABLE.iter().map(|row| row.fault).filter(|fault| *fault != Fault::DiskFull);
    let parts = match asked.as_str() {
        "all" => rows.map(|fault| format!("{fault:?}")).collect(),
        some => some.split(',').map(str::to_owned).collect::<Vec<_>>(),
    };
    case_in_parts(NAME, FAULTS, &parts, TIME, walk);
}
