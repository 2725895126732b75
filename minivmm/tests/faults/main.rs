//! What becomes of a guest whatever breaks during a migration: the fault matrix, and kills at random moments.
//!
//! Two real processes with the tiny guest on `/dev/kvm`, and between them a proxy that the test controls.

mod ground;
mod kills;
mod page;

use vmstate_lab::faults::case;
use vmstate_lab::faults::cell::{Cell, Fault, Phase};
use vmstate_lab::faults::side::Side;
use vmstate_lab::faults::table::TABLE;

/// Walks one row of the table.
fn row(fault: Fault) {
    if !ground::kvm_is_here() {
        return;
    }
    let row = TABLE.iter().find(|row| row.fault == fault).expect("a row for each fault");
    let mut failures = Vec::new();
    for (phase, cell) in Phase::ALL.into_iter().zip(&row.cells) {
        if matches!(cell, Cell::No(_)) {
            continue;
        }
        let begun = std::time::Instant::now();
        let directory = tempfile::tempdir().unwrap();
        let ground = ground::ground(directory.path());
        let walked = Side::boot(&ground).and_then(|source| case::walk(&ground, source, fault, phase, cell));
        if let Err(why) = walked {
            failures.push(format!("{fault:?}, {phase:?}: {why}"));
        }
        println!("{fault:?}, {phase:?}: {:?}", begun.elapsed());
    }
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}

/// One test for each row, so that each can be run by its name.
macro_rules! rows {
    ($($name:ident: $fault:ident,)*) => {
        $(
            #[test]
            fn $name() {
                row(Fault::$fault);
            }
        )*

        #[test]
        fn each_row_of_the_table_is_walked() {
            assert_eq!([$(Fault::$fault),*].as_slice(), TABLE.iter().map(|row| row.fault).collect::<Vec<_>>());
        }
    };
}

rows! {
    source_killed: SourceKilled,
    destination_killed: DestinationKilled,
    wire_cut: WireCut,
    wire_stalls: WireStalls,
    wire_trickles: WireTrickles,
    lock_taken: LockTaken,
    lock_taken_briefly: LockTakenBriefly,
    image_copied: ImageCopied,
    eof_late: EofLate,
    eof_late_after_quit: EofLateAfterQuit,
    cancel: Cancel,
    quit: Quit,
    stop: Stop,
    reset: Reset,
    power_button: PowerButton,
    guest_powers_off: GuestPowersOff,
    guest_reboots: GuestReboots,
    second_migrate: SecondMigrate,
    disk_full: DiskFull,
    load_refused: LoadRefused,
    post_load_fails: PostLoadFails,
    other_memory: OtherMemory,
    other_cpu: OtherCpu,
    unknown_section: UnknownSection,
    wrong_machine: WrongMachine,
    wrong_magic: WrongMagic,
}
