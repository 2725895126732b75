//! Faults during a migration: the fault matrix, and kills at random moments.
//!
//! Two real processes with the tiny guest on `/dev/kvm`, and between them a relay that the test controls.

mod kills;
mod page;
mod setup;

use vmstate_lab::faults::case;
use vmstate_lab::faults::cell::{Cell, Fault, Phase, Row};
use vmstate_lab::faults::postcopy::{self, Moment, PostcopyRow};
use vmstate_lab::faults::setup::Memory;
use vmstate_lab::faults::side::Side;

/// Runs one row of a table, all its phases in parallel where most of the time is waiting.
fn run(row: &Row, memory: Memory) {
    if !setup::kvm_is_here() {
        return;
    }
    let one = |phase: Phase, cell: &Cell| {
        let begun = std::time::Instant::now();
        let directory = tempfile::tempdir().unwrap();
        let setup = setup::setup(directory.path(), memory);
        let outcome = Side::boot(&setup).and_then(|source| case::run(&setup, source, row.fault, phase, cell));
        println!("{:?}, {phase:?}: {:?}", row.fault, begun.elapsed());
        outcome.err().map(|why| format!("{:?}, {phase:?}: {why}", row.fault))
    };
    let cells = || Phase::ALL.into_iter().zip(&row.cells).filter(|(_, cell)| !matches!(cell, Cell::No(_)));
    let waits = [Fault::WireStalls, Fault::WireTrickles, Fault::WireCut, Fault::MainCut, Fault::PagesStall];
    let failures: Vec<String> = if waits.contains(&row.fault) {
        std::thread::scope(|scope| {
            let cases: Vec<_> = cells().map(|(phase, cell)| scope.spawn(move || one(phase, cell))).collect();
            cases.into_iter().filter_map(|case| case.join().unwrap()).collect()
        })
    } else {
        cells().filter_map(|(phase, cell)| one(phase, cell)).collect()
    };
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}

/// Walks one row of the table of post-copy, all its moments in parallel, because most of the time is spent waiting.
fn run_postcopy(row: &PostcopyRow) {
    if !setup::kvm_is_here() || !setup::pages_may_come_late() {
        return;
    }
    let one = |moment: Moment, cell: &Cell| {
        let begun = std::time::Instant::now();
        let directory = tempfile::tempdir().unwrap();
        let setup = setup::setup(directory.path(), Memory::Late);
        let outcome = Side::boot(&setup).and_then(|source| postcopy::run(&setup, source, row.fault, moment, cell));
        println!("{:?}, {moment:?}: {:?}", row.fault, begun.elapsed());
        outcome.err().map(|why| format!("{:?}, {moment:?}: {why}", row.fault))
    };
    let cells = Moment::ALL.into_iter().zip(&row.cells).filter(|(_, cell)| !matches!(cell, Cell::No(_)));
    let failures: Vec<String> = std::thread::scope(|scope| {
        let cases: Vec<_> = cells.map(|(moment, cell)| scope.spawn(move || one(moment, cell))).collect();
        cases.into_iter().filter_map(|case| case.join().unwrap()).collect()
    });
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}

/// Returns the row of a fault.
fn row(table: &[Row], fault: Fault) -> &Row {
    table.iter().find(|row| row.fault == fault).expect("a row for each fault")
}

/// One test for each row, so that each can be run by its name.
macro_rules! rows {
    ($table:ident, $memory:expr; $($name:ident: $fault:ident,)*) => {
        $(
            #[test]
            fn $name() {
                super::run(super::row($table, Fault::$fault), $memory);
            }
        )*

        #[test]
        fn each_row_of_the_table_is_walked() {
            assert_eq!([$(Fault::$fault),*].as_slice(), $table.iter().map(|row| row.fault).collect::<Vec<_>>());
        }
    };
}

/// Pages are sent on the main channel.
mod alone {
    use vmstate_lab::faults::cell::Fault;
    use vmstate_lab::faults::setup::Memory;
    use vmstate_lab::faults::table::TABLE;

    rows! {
        TABLE, Memory::Main;
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
}

/// Pages are sent on page channels.
mod page_channels {
    use vmstate_lab::faults::cell::Fault;
    use vmstate_lab::faults::channels::{CHANNEL_TABLE, CHANNELS};
    use vmstate_lab::faults::setup::Memory;

    rows! {
        CHANNEL_TABLE, Memory::PageChannels(CHANNELS);
        source_killed: SourceKilled,
        destination_killed: DestinationKilled,
        wire_cut: WireCut,
        main_cut: MainCut,
        pages_cut: PagesCut,
        pages_stall: PagesStall,
        pages_late: PagesLate,
        pages_stray: PagesStray,
        strays: Strays,
    }
}

/// No page is sent: a new process on the same host takes the guest over.
mod in_place {
    use vmstate_lab::faults::cell::Fault;
    use vmstate_lab::faults::in_place::IN_PLACE_TABLE;
    use vmstate_lab::faults::setup::Memory;

    rows! {
        IN_PLACE_TABLE, Memory::InPlace;
        descriptors_lost: DescriptorsLost,
        descriptors_torn: DescriptorsTorn,
        source_killed: SourceKilled,
        destination_killed: DestinationKilled,
        wire_cut: WireCut,
        wire_stalls: WireStalls,
        lock_taken: LockTaken,
        eof_late: EofLate,
        eof_late_after_quit: EofLateAfterQuit,
        cancel: Cancel,
        quit: Quit,
        disk_full: DiskFull,
        load_refused: LoadRefused,
        other_memory: OtherMemory,
        other_cpu: OtherCpu,
        unknown_section: UnknownSection,
    }
}

/// Pages come once the guest runs at the destination (post-copy).
mod late {
    use vmstate_lab::faults::cell::Fault;
    use vmstate_lab::faults::postcopy::POSTCOPY_TABLE;

    /// One test for each row, so that each can be run by its name.
    macro_rules! rows {
        ($($name:ident: $fault:ident,)*) => {
            $(
                #[test]
                fn $name() {
                    let row = POSTCOPY_TABLE.iter().find(|row| row.fault == Fault::$fault);
                    super::run_postcopy(row.expect("a row for each fault"));
                }
            )*

            #[test]
            fn each_row_of_the_table_is_walked() {
                let outcome = [$(Fault::$fault),*];
                assert_eq!(outcome.as_slice(), POSTCOPY_TABLE.iter().map(|row| row.fault).collect::<Vec<_>>());
            }
        };
    }

    rows! {
        source_killed: SourceKilled,
        destination_killed: DestinationKilled,
        wire_cut: WireCut,
        wire_stalls: WireStalls,
        damaged: Damaged,
        load_refused: LoadRefused,
        cancel: Cancel,
        quit_there: QuitThere,
    }
}
