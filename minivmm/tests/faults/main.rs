//! Faults during a migration: the fault matrix, and kills at random moments.
//!
//! Two real processes with the tiny guest on `/dev/kvm`, and between them a relay that the test controls.

mod kills;
mod page;
mod setup;

use std::fmt::Debug;
use std::path::Path;

use vmstate_lab::faults::case;
use vmstate_lab::faults::cell::{Cell, Fault, Phase, Row};
use vmstate_lab::faults::postcopy::{self, Moment};
use vmstate_lab::faults::setup::Memory;
use vmstate_lab::faults::side::Side;
use vmstate_lab::faults::snapshot::{self, Step};
use vmstate_lab::tmpfs::Tmpfs;

/// Runs one row of a table.
fn run(row: &Row, memory: Memory) {
    run_row(row, |directory, phase, cell| {
        let mut setup = setup::setup(directory, memory);
        let network = setup::Network::of(&mut setup, directory);
        let source = Side::boot(&setup)?;
        let survivor = case::run(&setup, source, row.fault, phase, cell)?;
        network.map_or(Ok(()), |network| network.check())?;
        drop(survivor);
        Ok(())
    });
}

/// Runs one row of the table of guests whose disk is copied, to a small file system where the fault is that it is full.
fn run_copied(row: &Row) {
    if row.fault == Fault::NoRoomForCopy && !setup::small_file_systems_take_copies() {
        return;
    }
    run_row(row, |directory, phase, cell| {
        let is_small = row.fault == Fault::NoRoomForCopy;
        let small = is_small.then(|| Tmpfs::mount(&directory.join("small"), setup::SMALL)).transpose();
        let small = small.map_err(|error| error.to_string())?;
        let setup = setup::copying(directory, small.as_ref().map_or(directory, Tmpfs::path));
        let source = Side::boot(&setup)?;
        let survivor = case::run(&setup, source, row.fault, phase, cell)?;
        setup::check_images(&setup, row.fault)?;
        drop(survivor);
        Ok(())
    });
}

/// Runs the cases of a row, all in parallel where most of the time is waiting.
fn run_row(row: &Row, case: impl Fn(&Path, Phase, &Cell) -> Result<(), String> + Sync) {
    let waits = [Fault::WireStalls, Fault::WireTrickles, Fault::WireCut, Fault::MainCut, Fault::PagesStall];
    run_cases(row.fault, Phase::ALL.into_iter().zip(&row.cells), waits.contains(&row.fault), case);
}

/// Runs one row of the table of post-copy, with all its moments in parallel, because most of the time is spent waiting.
fn run_postcopy(row: &Row<8>) {
    if !setup::postcopy_is_possible() {
        return;
    }
    run_cases(row.fault, Moment::ALL.into_iter().zip(&row.cells), true, |directory, moment, cell| {
        let setup = setup::setup(directory, Memory::Postcopy);
        postcopy::run(&setup, Side::boot(&setup)?, row.fault, moment, cell)
    });
}

/// Runs one row of the table of snapshots, of a guest with a disk that is copied, or of one without a disk.
fn run_snapshot(row: &Row<4>, has_disk: bool) {
    if row.fault == Fault::NoRoomForFile && !setup::small_file_systems_take_copies() {
        return;
    }
    run_cases(row.fault, Step::ALL.into_iter().zip(&row.cells), false, |directory, step, cell| {
        let is_small = row.fault == Fault::NoRoomForFile;
        let small = is_small.then(|| Tmpfs::mount(&directory.join("small"), setup::SMALL)).transpose();
        let small = small.map_err(|error| error.to_string())?;
        let folder = small.as_ref().map_or(directory, Tmpfs::path);
        snapshot::run(&setup::saving(directory, has_disk), folder, row.fault, step, cell)
    });
}

/// Runs the cells that can happen, each with a directory of its own, and reports all that fail.
fn run_cases<'c, At: Copy + Debug + Send>(
    fault: Fault,
    cells: impl Iterator<Item = (At, &'c Cell)>,
    in_parallel: bool,
    case: impl Fn(&Path, At, &Cell) -> Result<(), String> + Sync,
) {
    if !setup::kvm_is_here() {
        return;
    }
    let one = |at: At, cell: &Cell| {
        let begun = std::time::Instant::now();
        let directory = tempfile::tempdir().unwrap();
        let outcome = case(directory.path(), at, cell);
        println!("{fault:?}, {at:?}: {:?}", begun.elapsed());
        outcome.err().map(|why| format!("{fault:?}, {at:?}: {why}"))
    };
    let cells = cells.filter(|(_, cell)| !matches!(cell, Cell::No(_)));
    let failures: Vec<String> = if in_parallel {
        std::thread::scope(|scope| {
            let one = &one;
            let cases: Vec<_> = cells.map(|(at, cell)| scope.spawn(move || one(at, cell))).collect();
            cases.into_iter().filter_map(|case| case.join().unwrap()).collect()
        })
    } else {
        cells.filter_map(|(at, cell)| one(at, cell)).collect()
    };
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}

/// Returns the row of a fault.
fn row<const PHASES: usize>(table: &[Row<PHASES>], fault: Fault) -> &Row<PHASES> {
    table.iter().find(|row| row.fault == fault).expect("a row for each fault")
}

/// One test for each row, so that each can be run by its name.
macro_rules! rows {
    ($table:ident, $run:expr; $($name:ident: $fault:ident,)*) => {
        $(
            #[test]
            fn $name() {
                $run(super::row($table, Fault::$fault));
            }
        )*

        #[test]
        fn each_row_of_the_table_is_run() {
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
        TABLE, |row| super::run(row, Memory::Main);
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
        CHANNEL_TABLE, |row| super::run(row, Memory::PageChannels(CHANNELS));
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
        IN_PLACE_TABLE, |row| super::run(row, Memory::InPlace);
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

/// No page is sent, and the descriptors are passed on a channel of their own (QEMU's mode `cpr-transfer`).
mod transfer {
    use vmstate_lab::faults::cell::Fault;
    use vmstate_lab::faults::setup::Memory;
    use vmstate_lab::faults::transfer::TRANSFER_TABLE;

    rows! {
        TRANSFER_TABLE, |row| super::run(row, Memory::Transfer);
        descriptors_lost: DescriptorsLost,
        descriptors_torn: DescriptorsTorn,
        source_killed: SourceKilled,
        destination_killed: DestinationKilled,
        cancel: Cancel,
        quit: Quit,
        quit_there: QuitThere,
        other_memory: OtherMemory,
    }
}

/// The disk is not shared: its content is copied.
mod copied {
    use vmstate_lab::faults::cell::Fault;
    use vmstate_lab::faults::copied::COPIED_TABLE;

    rows! {
        COPIED_TABLE, super::run_copied;
        source_killed: SourceKilled,
        destination_killed: DestinationKilled,
        wire_cut: WireCut,
        wire_stalls: WireStalls,
        copy_exists: CopyExists,
        no_room_for_copy: NoRoomForCopy,
        image_truncated: ImageTruncated,
        cancel: Cancel,
    }
}

/// Pages come once the guest runs at the destination (post-copy).
mod in_postcopy {
    use vmstate_lab::faults::cell::Fault;
    use vmstate_lab::faults::postcopy::POSTCOPY_TABLE;

    rows! {
        POSTCOPY_TABLE, super::run_postcopy;
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

/// The guest is saved to a file, and runs on.
mod saved {
    use vmstate_lab::faults::cell::Fault;
    use vmstate_lab::faults::snapshot::SNAPSHOT_TABLE;

    rows! {
        SNAPSHOT_TABLE, |row| super::run_snapshot(row, true);
        source_killed: SourceKilled,
        no_room_for_file: NoRoomForFile,
        cancel: Cancel,
        stop: Stop,
        reset: Reset,
        quit: Quit,
        image_truncated: ImageTruncated,
    }

    /// The file has no images beside it.
    #[test]
    fn without_a_disk() {
        for fault in [Fault::SourceKilled, Fault::NoRoomForFile, Fault::Cancel] {
            super::run_snapshot(super::row(SNAPSHOT_TABLE, fault), false);
        }
    }
}
