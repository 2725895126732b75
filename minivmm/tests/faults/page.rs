//! Generates `docs/faults.md` from the table.

use std::fmt::Write;
use std::path::PathBuf;

use vmstate_lab::faults::cell::{Answer, Cell, Fault, Phase, Row, SideState};
use vmstate_lab::faults::channels::CHANNEL_TABLE;
use vmstate_lab::faults::copied::COPIED_TABLE;
use vmstate_lab::faults::in_place::IN_PLACE_TABLE;
use vmstate_lab::faults::postcopy::{Moment, POSTCOPY_TABLE};
use vmstate_lab::faults::qemu::QEMU_TABLE;
use vmstate_lab::faults::snapshot::{SNAPSHOT_TABLE, Step};
use vmstate_lab::faults::table::TABLE;
use vmstate_lab::faults::transfer::TRANSFER_TABLE;

const HEAD: &str = "# The guest after a fault

This page is generated from the table in `tests/lab/src/faults/table.rs`, which `cargo test -p minivmm --test faults` runs with two real
processes and a tiny guest, and `tests/e2e/matrix.rs` with Linux; `BLESS=1` renews this page. The reasons are in
[live-migration.md](live-migration.md).

In each case exactly one guest runs, or none where the table says so. The guest has verified its memory and its disk, each of
its passes was made once, and the process that runs the guest holds the image's lock. A source that no longer has the guest
refuses `cont`. A waiting destination accepts the next migration.

";

const CHANNEL_HEAD: &str = "
## With page channels

The faults of connections with four page channels beside the main channel, from `tests/lab/src/faults/channels.rs`. All channels have
connected in phase setup, and none carries a page before phase rounds. In phase switch-over the last pages have arrived. A silent
channel is detected by the main channel, which waits for the silent channel's pages, and ends with the migration.
";

const IN_PLACE_HEAD: &str = "
## In place, to a new process on the same host

`minivmm migrate local:PATH`, and with it `minivmm migrate --local`, passes the guest's memory as a descriptor in a first message, which is
followed by a migration without pages. The rows are in `tests/lab/src/faults/in_place.rs`. In phase setup the message has arrived. Until the new process
has taken over, every failure that the old process survives leaves the guest there, and the test then hands it over to another new process. The peer of
the guest's stream network sees one connection in each case. If the program does not
start, or does not wait for a guest, `migrate --local` reports that before it sends a command to the machine
([control.md](control.md#to-a-new-process-on-this-host)).
";

const TRANSFER_HEAD: &str = "
## In QEMU's mode `cpr-transfer`

The descriptors are passed on a channel of their own, and then the source connects the main channel
([control.md](control.md#qemus-mode-cpr-transfer)). The rows, from `tests/lab/src/faults/transfer.rs`, are the faults of processes and of their descriptors, and what users do; all else is as
[in place](#in-place-to-a-new-process-on-the-same-host), where the stream is the same. In phase setup the main channel is connected. Before that the guest stays in the old process, unless
that ends, whatever becomes of the channel of the descriptors and of the new process: `minivmm/tests/command_line/transfer_faults.rs`.
";

const COPIED_HEAD: &str = "
## With a copy of the disk

`minivmm migrate --copy-disk` sends the content of the disk to a new image at the destination; the rows are in
`tests/lab/src/faults/copied.rs`. In phase rounds the memory has arrived once, and the first part of the disk is in transit. Each side keeps the lock of its own image,
so neither lock nor record decides: a source that has sent EOF and gets no answer is `undecided`, and only a person who knows that the guest does not run at the destination
executes `cont` with `force`. After each case a guest can be started on one of the two images, which has all data; the other image stays, with one of
the [two marks](live-migration.md#disks-that-come-along), so that no guest is started on it. An image that existed before is left as it was.
";

const SNAPSHOT_HEAD: &str = "
## A snapshot of a running guest

`minivmm snapshot save --copy-disk FILE` writes the guest to FILE, and the guest runs on in its process, which is called the source here; the rows are in
`tests/lab/src/faults/snapshot.rs`. The thread that writes is held in the phase (ptrace(2)), while the rest of the process, and with it the guest, runs. A FILE that exists is
complete and has its images: the test starts a guest from it on them, which verifies its memory and its disk. After a failure that the process survives nothing is left, and a further snapshot is complete. After a
kill files with the suffix `.partial` stay, and in phase name the complete images; the disk is not locked any more. So it is after
`quit`, which ends the process 200 ms later even if the thread that writes waits for its disk, as the held one does. A guest without a disk is saved with the same outcomes.

";

const POSTCOPY_HEAD: &str = "
## In post-copy

The guest runs at the destination before all of its memory is there (`minivmm migrate --postcopy`); the rows are in
`tests/lab/src/faults/postcopy.rs`. Until the destination has answered the command to run, the lock and the record decide which side has the guest, as above.
From then on the destination has it, and its newest memory is in two processes until the last page has arrived: if one of them ends before that, the guest is lost. A broken
connection loses nothing: both sides wait for another one in `postcopy-paused`, the source refuses `cont`, with `force` as well, and `migrate` with `resume`
completes the migration. A source whose destination is gone, or has completed, waits until `migrate_cancel`: it then is `postmigrate` / `failed`, and its older guest
stays stopped. A destination whose source is gone keeps a guest that is blocked at its first missing page: only `quit` is left.

";

const QEMU_HEAD: &str = "
## With a QEMU at one end

A QEMU writes no ownership record, waits for no answer before EOF and runs the guest before it sends `SHUT 0`: the image's lock alone decides which side
may write to the disk. A QEMU that waits for `SHUT 0` in vain takes the lock back if it is free, and runs its guest in any case: so a
minivmm sends `SHUT 0` first, waits until the QEMU closes the connection, and only then takes the lock. After a cut minivmm waits a
second longer, finds the lock taken, and keeps its copy paused; `after SHUT` means here that `SHUT 0` is in transit, and that the
guest does not run yet. A minivmm that gave its guest to a QEMU takes it back only by `cont` with `force`, whatever its record is. `tests/e2e/qemu/faults.rs` runs these
rows with QEMU 10 and the tiny guest, from `tests/lab/src/faults/qemu.rs`. A QEMU as the source sends neither `PING 6` nor `PING 5`: its
phase rounds begins with the first page, and there is no phase ready. A QEMU as the destination gets no message about the pause. Two cases have
no row, because the phase after them may have begun before a kill takes effect: a destination killed in the switch-over of a QEMU without
`return-path`, and a QEMU killed in phase ready.
";

/// The two sides of a migration.
const SIDES: [&str; 2] = ["the source", "the destination"];

/// Returns the whole page.
fn page() -> String {
    let mut page = HEAD.to_owned();
    page += "| phase | meaning |\n| --- | --- |\n";
    for phase in Phase::ALL {
        let _ = writeln!(page, "| {} | {} |", phase.name(), phase.meaning());
    }
    page += "\n`state / status` is the answer to `query-status` and `query-migrate`, with a part of the error. A failure always has an error; where none \
is quoted here, it is the system's text about the broken connection.\n";
    for row in TABLE {
        describe("##", row.fault, SIDES, &phases(row), &mut page);
    }
    page += CHANNEL_HEAD;
    for row in CHANNEL_TABLE {
        describe("###", row.fault, SIDES, &phases(row), &mut page);
    }
    page += IN_PLACE_HEAD;
    for row in IN_PLACE_TABLE {
        describe("###", row.fault, SIDES, &phases(row), &mut page);
    }
    page += TRANSFER_HEAD;
    for row in TRANSFER_TABLE {
        describe("###", row.fault, SIDES, &phases(row), &mut page);
    }
    page += COPIED_HEAD;
    for row in COPIED_TABLE {
        describe("###", row.fault, SIDES, &phases(row), &mut page);
    }
    page += POSTCOPY_HEAD;
    page += "| phase | meaning |\n| --- | --- |\n";
    for moment in Moment::ALL {
        let _ = writeln!(page, "| {} | {} |", moment.name(), moment.meaning());
    }
    for row in POSTCOPY_TABLE {
        describe("###", row.fault, SIDES, &named(row, Moment::ALL.map(Moment::name)), &mut page);
    }
    page += SNAPSHOT_HEAD;
    page += "| phase | meaning |\n| --- | --- |\n";
    for step in Step::ALL {
        let _ = writeln!(page, "| {} | {} |", step.name(), step.meaning());
    }
    for row in SNAPSHOT_TABLE {
        describe("###", row.fault, ["the source", "FILE"], &named(row, Step::ALL.map(Step::name)), &mut page);
    }
    page += QEMU_HEAD;
    for row in QEMU_TABLE {
        let (fault, direction) = (upper(row.fault.meaning()), row.direction.meaning());
        let _ = write!(
            page,
            "\n### {fault}, {direction}\n\n| phase | the guest | the source | the destination |\n| --- | --- | --- | --- |\n"
        );
        for (phase, cell) in row.cells {
            let Cell::Ends { guest, source, destination, .. } = cell else { continue };
            let (phase, guest) = (phase.name(), guest.meaning());
            let _ = writeln!(page, "| {phase} | {guest} | {} | {} |", side(*source), side(*destination));
        }
    }
    page
}

/// The cells of a row, each with the name of its phase.
fn phases(row: &Row) -> Vec<(&'static str, &Cell)> {
    named(row, Phase::ALL.map(Phase::name))
}

fn named<'r, const PHASES: usize>(
    row: &'r Row<PHASES>,
    names: [&'static str; PHASES],
) -> Vec<(&'static str, &'r Cell)> {
    names.into_iter().zip(&row.cells).collect()
}

fn describe(heading: &str, fault: Fault, sides: [&str; 2], cells: &[(&str, &Cell)], page: &mut String) {
    let commanded = cells.iter().any(|(_, cell)| matches!(cell, Cell::Ends { answer, .. } if *answer != Answer::None));
    let _ = write!(page, "\n{heading} {}\n\n| phase | the guest | {} |", upper(fault.meaning()), sides.join(" | "));
    *page +=
        if commanded { " the command |\n| --- | --- | --- | --- | --- |\n" } else { "\n| --- | --- | --- | --- |\n" };
    for (phase, cell) in cells {
        let Cell::Ends { guest, source, destination, answer } = cell else { continue };
        let _ = write!(page, "| {phase} | {} |", guest.meaning());
        let _ = write!(page, " {} | {} |", side(*source), side(*destination));
        match answer {
            Answer::None if commanded => *page += " |",
            Answer::None => {}
            Answer::Done => *page += " carried out |",
            Answer::Refused("") => *page += " refused |",
            Answer::Refused(why) => drop(write!(page, " refused: “{why}” |")),
        }
        *page += "\n";
    }
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for (phase, cell) in cells {
        let Cell::No(reason) = cell else { continue };
        match reasons.iter_mut().find(|(known, _)| known == reason) {
            Some((_, phases)) => phases.push(*phase),
            None => reasons.push((reason, vec![*phase])),
        }
    }
    for (reason, phases) in reasons {
        let _ = write!(page, "\nNo case in {}: {reason}.\n", phases.join(", "));
    }
}

fn side(state: SideState) -> String {
    match state {
        SideState::Killed => "killed".into(),
        SideState::Ended(code, "") => format!("ends with {code}"),
        SideState::Ended(code, why) => format!("ends with {code}: “{why}”"),
        SideState::File(saved) => saved.meaning().into(),
        SideState::Answers(state, status, "") => format!("`{state}` / `{status}`"),
        SideState::Answers(state, status, why) => format!("`{state}` / `{status}`: “{why}”"),
    }
}

fn upper(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[test]
fn docs_have_the_table() {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/faults.md"));
    if std::env::var_os("BLESS").is_some_and(|value| value == "1") {
        std::fs::write(&path, page()).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == page(),
        "docs/faults.md is not what the table says; renew it with BLESS=1 cargo test -p minivmm --test faults docs"
    );
}
