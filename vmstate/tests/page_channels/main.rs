//! Migrations over page channels, on real sockets and threads, of a guest that writes all the time. The oracle is the source's
//! own memory: the destination has each page's last write before the pause.
#![cfg(feature = "engine")]

mod guest;
mod in_file;
mod rig;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmstate::channel::{MonotonicClock, SocketChannel};
use vmstate::migrate::multifd::{Compression, Senders};
use vmstate::migrate::source::{self, Outgoing, SourceOptions};
use vmstate::migrate::{Control, DestinationPhase, SourcePhase};
use vmstate::raw::multifd::{Opening, Packet};
use vmstate::section::Sections;

use guest::{Guest, REWRITTEN};
use rig::{Ended, Rig};

/// Much longer than the end of a migration takes, and shorter than the engine's own timeouts of 10 s and 60 s.
const PROMPTLY: Duration = Duration::from_secs(8);

fn arrived(ended: &Ended) {
    let Ended { source, destination, .. } = ended;
    assert_eq!(source.phase, SourcePhase::Completed, "{source:?}");
    let destination = destination.as_ref().unwrap();
    assert_eq!(destination.phase, DestinationPhase::Completed, "{destination:?}");
    assert_eq!(ended.guest.memory.needless_reads(), 0, "pages were read that nobody has ever written");
    assert_eq!(ended.guest.differing_page(&ended.arrived), None);
    // Both sides count all pages alike, on whichever channel they were sent.
    assert_eq!(source.report.pages, destination.report.pages);
    assert!(source.report.pages.normal > 0 && source.report.pages.zero > 0, "{:?}", source.report.pages);
}

fn stayed(ended: &Ended) {
    assert!(matches!(ended.source.phase, SourcePhase::Failed | SourcePhase::Cancelled), "{:?}", ended.source);
    if let Some(destination) = &ended.destination {
        assert_eq!(destination.phase, DestinationPhase::Failed, "{destination:?}");
    }
    assert!(ended.guest.is_running(), "the guest does not run on");
}

#[test]
fn a_busy_guest_arrives_whole_over_any_number_of_channels() {
    for channels in [1, 2, 4, 7] {
        let ended = Rig::new(channels, Compression::None).run(&Guest::busy());
        arrived(&ended);
        // Pages were sent again, at the latest in the pause.
        assert!(ended.source.report.pages.total() >= 3133 + REWRITTEN as u64, "{:?}", ended.source.report);
        // No page of the guest was sent on the main channel.
        assert!(ended.main_bytes < 256 << 10, "{} bytes on the main channel", ended.main_bytes);
    }
}

#[cfg(feature = "zstd")]
#[test]
fn compressed_pages_arrive_whole_in_fewer_bytes() {
    for (channels, level) in [(1, 1), (2, 20), (3, 1)] {
        let ended = Rig::new(channels, Compression::Zstd { level }).run(&Guest::busy());
        arrived(&ended);
        let report = &ended.source.report;
        assert!(report.bytes < report.pages.normal * 3000, "{} bytes for {:?}", report.bytes, report.pages);
    }
}

#[test]
fn after_a_cancel_the_guest_goes_whole_in_a_second_attempt() {
    let guest = Guest::busy();
    // Before the first page, and after a round.
    for looks in [2, 4] {
        let mut rig = Rig::new(3, Compression::None);
        rig.cancels_at = Some(looks);
        let begun = Instant::now();
        let ended = rig.run(&guest);
        assert_eq!(ended.source.phase, SourcePhase::Cancelled, "{:?}", ended.source);
        stayed(&ended);
        assert!(begun.elapsed() < PROMPTLY);
    }
    arrived(&Rig::new(2, Compression::None).run(&guest));
}

#[test]
fn a_channel_that_breaks_ends_both_sides_promptly_and_the_guest_runs_on() {
    // However the channels share the pages, each sends its opening and four SYNCs.
    for cut_after in [0, 64, 64 + 1344, 64 + 1344 + 700, 64 + 2 * 1344 + 5, 64 + 4 * 1344 - 1] {
        let guest = Guest::busy();
        let mut rig = Rig::new(4, Compression::None);
        rig.cuts = Some((2, cut_after));
        let begun = Instant::now();
        let ended = rig.run(&guest);
        stayed(&ended);
        assert!(begun.elapsed() < PROMPTLY, "cut after {cut_after}: {:?}", begun.elapsed());
        arrived(&Rig::new(4, Compression::None).run(&guest));
    }
}

/// In the pause, at least six packets are sent on four channels. One of these breaks or falls silent within its first packet, or
/// after it: each has 128 pages, of which a fifth is zero.
#[test]
fn a_channel_that_is_lost_between_two_packets_of_the_pause_leaves_the_guest_at_the_source() {
    for (sent, falls_silent) in [(1344, false), (1344 + 102 * 4096, false), (1344 + 102 * 4096, true)] {
        let guest = Guest::busy();
        let mut rig = Rig::new(4, Compression::None);
        (rig.cuts_in_pause, rig.swallows) = (Some(sent), falls_silent);
        let begun = Instant::now();
        let ended = rig.run(&guest);
        let lost = if falls_silent { SourcePhase::Cancelled } else { SourcePhase::Failed };
        assert_eq!(ended.source.phase, lost, "{:?}", ended.source);
        let why = ended.source.error.as_ref().unwrap().to_string();
        assert!(falls_silent || why.contains("page channel"), "{why}");
        // All rounds were complete.
        assert!(!ended.source.report.rounds.is_empty());
        stayed(&ended);
        assert!(begun.elapsed() < PROMPTLY, "lost after {sent}: {:?}", begun.elapsed());
        arrived(&Rig::new(4, Compression::None).run(&guest));
    }
}

/// The destination waits for pages that never arrive, and nothing on that channel indicates it.
#[test]
fn a_silent_channel_does_not_block_a_destination_whose_source_has_given_up() {
    let guest = Guest::busy();
    let mut rig = Rig::new(3, Compression::None);
    (rig.cuts, rig.swallows) = (Some((1, 64 + 1344)), true);
    let begun = Instant::now();
    let ended = rig.run(&guest);
    assert_eq!(ended.source.phase, SourcePhase::Cancelled, "{:?}", ended.source);
    stayed(&ended);
    assert!(begun.elapsed() < PROMPTLY, "{:?}", begun.elapsed());
    arrived(&Rig::new(3, Compression::None).run(&guest));
}

#[test]
fn a_source_without_a_thread_for_each_channel_fails() {
    let guest = Guest::busy();
    let senders = Senders::new(2, Compression::None);
    drop(senders.worker(1));
    let mut options = SourceOptions::new("toy");
    options.page_channels = Some(senders);
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let outgoing = Outgoing {
        channel: &mut SocketChannel::try_from(ours).unwrap(),
        clock: &MonotonicClock::new(),
        machine: &mut guest.clone(),
        sections: &mut Sections::new(),
        ram: &*guest.memory,
        log: &mut guest::Log::new(&guest.memory, None),
    };
    let departure = source::run(outgoing, &options, &Control::default());
    assert_eq!(departure.phase, SourcePhase::Failed);
    let why = departure.error.unwrap().to_string();
    assert!(why.contains("page channel 1 has no thread"), "{why}");
}

#[test]
fn a_destination_without_page_channels_reports_that() {
    let mut rig = Rig::new(2, Compression::None);
    rig.takes_channels = false;
    let ended = rig.run(&Guest::busy());
    stayed(&ended);
    let why = ended.source.error.as_ref().unwrap().to_string();
    assert!(why.contains("capability multifd"), "{why}");
}

/// Stray connections: not a page channel, a channel of another migration, a duplicate, or a silent one.
#[test]
fn strays_are_refused_and_survived() {
    let opening = |uuid: u8, id| Opening { uuid: [uuid; 16], id }.to_bytes().to_vec();
    let with = |opening: Vec<u8>, packet: Packet| [opening, packet.to_bytes("").to_vec()].concat();
    let early: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        opening(9, 0),
        opening(0, 0),
        opening(0, 1)[..40].to_vec(),
        with(opening(9, 1), Packet::sync(1 << 40)),
        // With a complete opening, and before all channels of the migration.
        with(opening(9, 0), Packet::sync(0)),
        with(opening(0, 1), Packet::sync(0)),
        [with(opening(7, 0), Packet::sync(1)), vec![0x77; 1344]].concat(),
        with(opening(0, 0), Packet { number: 3, sync: false, ..Packet::sync(3) }),
        vec![0x11, 0x22],
        vec![],
    ];
    let late = [
        with(opening(0, 1), Packet::sync(200)),
        with(opening(9, 77), Packet::sync(201)),
        with(opening(0, 78), Packet::sync(1)),
        b"QEVM".to_vec(),
        b"\x11\x22\x33\x44\0\0\0\x02".to_vec(),
    ];
    let mut rig = Rig::new(2, Compression::None);
    let mut kept: Vec<UnixStream> = Vec::new();
    let say = |at: &std::path::Path, bytes: &[u8]| {
        let mut stream = UnixStream::connect(at).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    let path = rig.path();
    kept.extend(early.iter().map(|bytes| say(&path, bytes)));
    rig.strays = Some(Box::new(move || late.iter().map(|bytes| say(&path, bytes)).collect()));
    arrived(&rig.run(&Guest::busy()));
    drop(kept);
}

/// A channel of another migration sends its opening, and waits for a flush that never comes.
#[test]
fn a_stray_that_sends_its_opening_fails_no_migration_without_page_channels() {
    let opening = Opening { uuid: [0; 16], id: 0 }.to_bytes();
    let opening = [&opening[..], &Packet::sync(0).to_bytes("")].concat();
    for before in [true, false] {
        let mut rig = Rig::new(0, Compression::None);
        let (path, opening) = (rig.path(), opening.clone());
        let stray = move || {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(&opening).unwrap();
            vec![stream]
        };
        let mut kept = Vec::new();
        if before {
            kept = stray();
        } else {
            rig.strays = Some(Box::new(stray));
        }
        arrived(&rig.run(&Guest::busy()));
        drop(kept);
    }
}

#[test]
fn channels_may_come_before_the_main_one() {
    let mut rig = Rig::new(3, Compression::None);
    rig.main_comes_last = true;
    arrived(&rig.run(&Guest::busy()));
}
