//! Post-copy on the virtual wire: a guest that dirties more than the wire carries runs at the destination at once, and waits for
//! pages that it accesses before they have arrived.

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;
use std::time::Duration;

use crate::pair::guest::Load;
use crate::pair::run::{MACHINE, Outcome, Setup};
use crate::pair::world::{Fault, FaultKind, Side, WireEnd, World};
use vmstate::channel::{Channel, Clock};
use vmstate::error::{Error, ErrorKind};
use vmstate::migrate::destination::{self, Arrival, Incoming};
use vmstate::migrate::source::{self, Outgoing};
use vmstate::migrate::{DestinationPhase, SourcePhase};
use vmstate::section::{Section, Sections};

const MS: Duration = Duration::from_millis(1);

/// Both sides are ready for post-copy.
fn ready(mut setup: Setup) -> Setup {
    setup.source_control.set_postcopy_ram(true);
    setup.destination.guest.supports_postcopy = true;
    setup
}

/// 4 MiB over a wire of 4 MiB a second, of which the guest writes to 2 MiB, each page many times a second.
pub(crate) fn busy() -> Setup {
    let load = Load { writes_per_second: 20_000.0, working_set: 512 };
    let world = World::new(None, Some((4 << 20) as f64), MS);
    world.set_buffer(64 << 10);
    let setup = ready(Setup::with(&[("main.ram", 1024), ("rom", 16)], world, load));
    for page in 0..900 {
        setup.source.guest.poke(0, page * 4096 + 5, page as u8 | 1);
    }
    setup.source.guest.poke(1, 3 * 4096, 7);
    setup.destination.guest.set_load(load);
    setup
}

#[test]
fn a_guest_that_never_converges_migrates_in_post_copy_with_short_waits() {
    let setup = busy();
    let (control, theirs) = (setup.source_control.clone(), setup.destination_control.clone());
    setup.world.at(Duration::from_millis(1500), move || control.start_postcopy());
    let Outcome { world, departure, arrival, source, destination, .. } = setup.run();
    assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
    assert_eq!(arrival.phase, DestinationPhase::Completed, "{:?}", arrival.error);
    assert!(destination.running && !source.running && destination.guest.is_whole());
    assert_eq!((source.departed, source.guest.is_logging()), (1, false));
    // Its memory equals that of the source, with all writes made since.
    assert!(destination.guest.memory() == destination.guest.written_over(source.guest.memory()));
    // It ran long before all of its memory had arrived. 2 MiB take half a second.
    let at_resume = destination.sent_at_resume.unwrap();
    assert!(world.sent(Side::Source) - at_resume > 1 << 20, "{at_resume} of {}", world.sent(Side::Source));
    let downtime = departure.report.downtime.unwrap().total();
    assert!(downtime < Duration::from_millis(60), "{downtime:?}");
    // Sent before a requested page: the rest of a chunk, and the contents of the socket buffer.
    let waited = destination.guest.waited();
    let longest = waited.iter().max().unwrap();
    assert!(waited.len() > 10 && *longest < Duration::from_millis(60), "{} waits, {longest:?}", waited.len());
    // The engine noticed each wait within two milliseconds, except for zero pages that it had.
    let told = theirs.progress().page_waits;
    let asked: Vec<_> = waited.iter().filter(|waited| **waited > 2 * MS).collect();
    assert!(told.count >= asked.len() as u64 && told.count <= waited.len() as u64, "{told:?}, {} waits", waited.len());
    assert!(told.longest <= *longest && told.longest + 2 * MS >= *longest, "{told:?}, {longest:?}");
    assert!(told.median > MS && told.median <= told.p99 && told.p99 <= told.longest, "{told:?}");
}

/// Post-copy is requested before the first page, and the source's guest writes nothing: each page is sent once.
#[test]
fn post_copy_from_the_beginning() {
    let setup = busy();
    setup.source.guest.set_load(Load::default());
    setup.destination.guest.set_load(Load { writes_per_second: 2000.0, working_set: 1000 });
    setup.source_control.start_postcopy();
    let Outcome { departure, arrival, source, destination, source_devices, destination_devices, .. } = setup.run();
    assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
    assert_eq!(arrival.phase, DestinationPhase::Completed, "{:?}", arrival.error);
    assert!(destination.guest.memory() == destination.guest.written_over(source.guest.memory()));
    assert_eq!(source_devices, destination_devices);
    assert_eq!(departure.report.pages.total(), 1040);
}

/// The source does not send a zero page again: the destination fills it when the guest touches it.
#[test]
fn a_page_that_arrived_as_zero_is_not_requested() {
    let setup = busy();
    let control = setup.source_control.clone();
    setup.source.guest.set_load(Load { writes_per_second: 20_000.0, working_set: 300 });
    setup.source_control.set_downtime_limit(20 * MS);
    // Pages from 900 on were never written at the source. A wait for a page that does not arrive is detected at the end.
    setup.destination.guest.set_load(Load { writes_per_second: 5000.0, working_set: 1024 });
    setup.world.at(Duration::from_millis(2500), move || control.start_postcopy());
    let Outcome { departure, destination, source, .. } = setup.run();
    assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
    assert!(destination.guest.is_whole(), "the guest waits for a page that does not arrive");
    assert!(destination.guest.memory() == destination.guest.written_over(source.guest.memory()));
    // A request and its answer take two milliseconds on the wire.
    assert!(destination.guest.waited().iter().any(|waited| *waited <= MS));
}

/// At the deadline, where pre-copy would give up, the policy switches to post-copy if that is allowed.
#[test]
fn the_policy_switches_to_post_copy_where_it_would_give_up() {
    for (is_ready, phase) in [(true, SourcePhase::Completed), (false, SourcePhase::Failed)] {
        let setup = busy();
        setup.source_control.set_postcopy_ram(is_ready);
        let mut parameters = setup.source_control.parameters();
        parameters.deadline = Some(Duration::from_millis(1500));
        setup.source_control.set_parameters(parameters).unwrap();
        let Outcome { departure, destination, .. } = setup.run();
        assert_eq!(departure.phase, phase, "{:?}", departure.error);
        assert_eq!((destination.running, destination.guest.is_whole()), (is_ready, is_ready));
    }
}

/// The machine's threads access missing pages while it applies its state, and when the guest continues; also a zero page, after all of the
/// stream has arrived.
#[test]
fn pages_arrive_while_the_machine_takes_over() {
    for (at, page, after) in [("loaded", 800, 0), ("resume", 800, 0), ("loaded", 1000, 1), ("resume", 1000, 3)] {
        let mut setup = busy();
        setup.source_control.start_postcopy();
        setup.destination.touches = Some((at, page));
        setup.destination.touches_after = Duration::from_secs(after);
        let Outcome { departure, arrival, source, destination, .. } = setup.run();
        assert_eq!(departure.phase, SourcePhase::Completed, "{at}: {:?}", departure.error);
        assert_eq!(arrival.phase, DestinationPhase::Completed, "{at}: {:?}", arrival.error);
        assert!(destination.guest.memory() == destination.guest.written_over(source.guest.memory()), "{at}");
    }
}

/// The destination has reported that the guest runs, so no other side will run it: all of its memory is transferred, and it stays
/// paused for an operator.
#[test]
fn a_guest_that_cannot_resume_there_is_completed_and_kept_paused() {
    for refuses in ["advance", "resume"] {
        let mut setup = busy();
        setup.source_control.start_postcopy();
        setup.destination.refuses = Some(refuses);
        let Outcome { departure, arrival, source, destination, .. } = setup.run();
        assert_eq!(departure.phase, SourcePhase::Completed, "{refuses}: {:?}", departure.error);
        assert_eq!(arrival.phase, DestinationPhase::Stranded, "{refuses}: {:?}", arrival.error);
        assert!(!source.running && !destination.running && destination.guest.is_whole(), "{refuses}");
        assert!(destination.guest.memory() == source.guest.memory(), "{refuses}");
    }
}

#[test]
fn without_a_switch_to_post_copy_a_migration_is_pre_copy() {
    let setup = ready(Setup::new(&[("main.ram", 16)], None));
    setup.source.guest.poke(0, 4097, 9);
    let outcome = setup.run();
    assert_eq!(outcome.departure.phase, SourcePhase::Completed, "{:?}", outcome.departure.error);
    assert_eq!(outcome.destination.guest.memory(), outcome.source.guest.memory());
    assert!(!outcome.destination.guest.is_whole());
    // Without `postcopy_ram`, `start_postcopy` has no effect, and post-copy is not announced.
    let setup = Setup::new(&[("main.ram", 16)], None);
    setup.source_control.start_postcopy();
    let plain = setup.run();
    assert_eq!(plain.departure.phase, SourcePhase::Completed);
    let announced = |outcome: &Outcome| outcome.world.recorded().windows(5).any(|bytes| bytes == b"\x08\0\x03\0\x10");
    assert!(announced(&outcome) && !announced(&plain));
}

/// Refused before the first page, with the reason, and the guest continues at the source.
#[test]
fn a_destination_whose_memory_does_not_support_post_copy_refuses() {
    let setup = Setup::new(&[("main.ram", 16)], None);
    setup.source_control.set_postcopy_ram(true);
    let outcome = setup.run();
    assert_eq!((outcome.departure.phase, outcome.arrival.phase), (SourcePhase::Failed, DestinationPhase::Failed));
    assert!(outcome.source.running && outcome.arrival.pristine);
    let error = outcome.departure.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Peer);
    let expected =
        "a guest cannot run in this side's memory before all of it is there: turn capability postcopy-ram off";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn a_refusal_before_the_command_to_run_leaves_the_guest_at_the_source() {
    for refuses in ["loaded", "claim"] {
        let mut setup = busy();
        setup.source_control.start_postcopy();
        setup.destination.refuses = Some(refuses);
        let outcome = setup.run();
        assert_eq!(outcome.departure.phase, SourcePhase::Failed, "{refuses}: {:?}", outcome.departure.error);
        assert!(outcome.source.running && !outcome.destination.running, "{refuses}");
        // Clearing the memory for the next source does not wait for a page.
        assert!(outcome.destination.guest.is_whole(), "{refuses}");
    }
}

/// A small guest in post-copy from the beginning, which writes to its three pages all the time.
pub(crate) fn small(fault: Option<Fault>) -> Setup {
    let load = Load { writes_per_second: 5000.0, working_set: 3 };
    let mut setup = ready(Setup::with(&[("main.ram", 3), ("rom", 1)], World::new(fault, None, MS), load));
    setup.source.guest.poke(1, 7, 0x5a);
    setup.destination.guest.set_load(load);
    setup.source_control.start_postcopy();
    // A waiting destination checks for page faults of its guest again and again.
    setup.destination_options.silence = Some(Duration::from_secs(1));
    setup
}

/// Where the switch begins in the source's bytes, where the command to run is complete, and how many bytes each side sends.
pub(crate) fn lengths() -> (usize, usize, usize, usize) {
    let outcome = small(None).run();
    assert_eq!(outcome.departure.phase, SourcePhase::Completed, "{:?}", outcome.departure.error);
    assert!(!outcome.destination.guest.waited().is_empty(), "no page lacks");
    let stream = outcome.world.recorded();
    let place = |bytes: &[u8]| stream.windows(bytes.len()).position(|window| window == bytes).unwrap();
    let (begins, run) = (place(b"\x08\0\x06\0"), place(b"\x08\0\x05\0\0") + 5);
    (outcome.world.sent(Side::Source), begins, run, outcome.world.sent(Side::Destination))
}

fn check(outcome: &Outcome, fault: Fault, run: usize) {
    let Outcome { world, departure, arrival, source, destination, .. } = outcome;
    let told = format!(
        "{fault:?}, command to run at {run}: {:?} {:?}, destination {:?} {:?}",
        departure.phase, departure.error, arrival.phase, arrival.error
    );
    let dead = |side| world.is_dead(side);
    let ran_there = destination.sent_at_resume.is_some();
    assert!(!(source.running && ran_there), "the guest has run there, and runs here: {told}");
    assert!(!source.guest.is_logging(), "the log was left on: {told}");
    if !ran_there && !dead(Side::Source) && !dead(Side::Destination) {
        assert!(source.running, "no guest: {told}");
        assert_eq!(departure.phase, SourcePhase::Failed, "{told}");
    }
    if !dead(Side::Source) {
        assert_eq!(source.running, departure.phase == SourcePhase::Failed, "{told}");
    }
    // Either all memory arrived, or the destination reports that some is missing.
    if ran_there && !dead(Side::Destination) {
        match arrival.phase {
            DestinationPhase::Completed => {
                assert!(destination.guest.is_whole(), "{told}");
                let expected = destination.guest.written_over(source.guest.memory());
                assert!(destination.guest.memory() == expected, "{told}");
            }
            phase => assert_eq!(phase, DestinationPhase::Interrupted, "{told}"),
        }
    }
    if departure.phase == SourcePhase::Completed && !dead(Side::Destination) {
        assert_eq!(arrival.phase, DestinationPhase::Completed, "{told}");
    }
    if fault.sender == Side::Source && fault.after < run && !dead(Side::Source) && !dead(Side::Destination) {
        assert!(!ran_there && source.running, "{told}");
    }
}

/// One kind of fault after each byte of the switch, the other kinds at some bytes; before and after the switch, faults at some
/// bytes only.
#[test]
fn a_fault_after_each_byte_leaves_one_guest_and_reports_what_it_lacks() {
    let (forward, begins, run, back) = lengths();
    use FaultKind::{HalfClose, ReceiverDies, Reset, SenderDies, Silent};
    for (kind, step) in [(Reset, 1), (HalfClose, 13), (Silent, 13), (SenderDies, 13), (ReceiverDies, 13)] {
        let around = (0..=forward).step_by(199).chain(run - 6..=run + 1).chain(forward - 6..=forward);
        for after in (begins..run).step_by(step).chain(around) {
            let fault = Fault { sender: Side::Source, after, kind };
            check(&small(Some(fault)).run(), fault, run);
        }
        for after in (0..=back).step_by(step.min(5)) {
            let fault = Fault { sender: Side::Destination, after, kind };
            check(&small(Some(fault)).run(), fault, run);
        }
    }
}

/// An option of the source that the library refuses before it sends anything.
#[test]
fn post_copy_of_shared_memory_is_refused() {
    let mut setup = ready(Setup::new(&[("main.ram", 4), ("rom", 1)], None));
    (setup.source.guest.shared_at, setup.destination.guest.shared_at) = (Some(0), Some(0));
    assert_eq!(setup.source_options.machine_type, MACHINE);
    let outcome = setup.run();
    assert!(outcome.source.running);
    assert_eq!(outcome.departure.error.unwrap().to_string(), "no post-copy of memory that both sides share");
}

/// A source that sends these bytes, and does not read.
struct Tape(Vec<u8>);

/// A source whose stream ends in post-copy, and others that connect after it and send these bytes.
struct OtherPeers<'w> {
    tape: Tape,
    next: VecDeque<Vec<u8>>,
    /// The reason for the loss of each connection.
    whys: &'w Mutex<Vec<String>>,
    clock: WireEnd,
}

impl Channel for OtherPeers<'_> {
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        self.tape.send(bytes, timeout)
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        // Each byte takes some time.
        self.clock.sleep(timeout.min(10 * MS));
        let into = &mut into[..1];
        match self.tape.receive(into, timeout)? {
            0 if !self.whys.lock().unwrap().is_empty() => Err(io::ErrorKind::TimedOut.into()),
            count => Ok(count),
        }
    }

    fn reconnect(&mut self, why: &Error) -> io::Result<()> {
        self.whys.lock().unwrap().push(why.to_string());
        self.tape.0 = self.next.pop_front().ok_or(io::ErrorKind::NotConnected)?;
        Ok(())
    }
}

/// The result of a destination that loses its source in post-copy, and then gets connections that send these bytes.
pub(crate) fn result_of_reconnections(peers: Vec<Vec<u8>>, whys: &Mutex<Vec<String>>) -> Arrival {
    let stream = small(None).run().world.recorded();
    let run = stream.windows(5).position(|window| window == b"\x08\0\x05\0\0").unwrap() + 5;
    received_over(|clock| OtherPeers { tape: Tape(stream[..run].to_vec()), next: peers.into(), whys, clock }).0
}

impl Channel for Tape {
    fn send(&mut self, bytes: &[u8], _timeout: Duration) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn receive(&mut self, into: &mut [u8], _timeout: Duration) -> io::Result<usize> {
        let count = into.len().min(self.0.len());
        into[..count].copy_from_slice(&self.0[..count]);
        self.0.drain(..count);
        Ok(count)
    }
}

/// The result of a destination without a disk that receives these bytes, and its first block.
fn received(stream: Vec<u8>) -> (Arrival, Vec<u8>) {
    received_over(|_| Tape(stream))
}

fn received_over<C: Channel>(channel: impl FnOnce(WireEnd) -> C) -> (Arrival, Vec<u8>) {
    let mut setup = small(None);
    setup.destination.lock = None;
    // No source is on the virtual wire.
    setup.world.finish(Side::Source);
    let mut sections = Sections::new();
    for (instance, device) in (0..).zip(&mut setup.destination_devices) {
        sections.register("device", instance, device as &mut dyn Section).unwrap();
    }
    let arrival = destination::run(
        Incoming {
            channel: &mut channel(setup.world.end(Side::Destination)),
            clock: &setup.world.end(Side::Destination),
            ram: &setup.destination.guest.clone(),
            machine: &mut setup.destination,
            sections: &mut sections,
        },
        &setup.destination_options,
        &setup.destination_control,
    );
    (arrival, setup.destination.guest.memory().remove(0))
}

#[test]
fn hostile_sources_are_refused() {
    let stream = small(None).run().world.recorded();
    let place = |bytes: &[u8]| stream.windows(bytes.len()).position(|window| window == bytes).unwrap();
    let put = |at: usize, out: usize, bytes: &[u8]| [&stream[..at], bytes, &stream[at + out..]].concat();
    let (advise, package, run) = (place(b"\x08\0\x03\0\x10"), place(b"\x08\0\x07\0\x04"), place(b"\x08\0\x05\0\0") + 5);
    let length = u32::from_be_bytes(stream[package + 5..package + 9].try_into().unwrap());
    let packaged = |length: u32| put(package + 5, 4, &length.to_be_bytes());
    let device = b"\x04\0\0\0\x03\x06device\0\0\0\0\0\0\0\x01";
    let dropped = b"\x08\0\x06\0\x1b\0\x08main.ram\0\0\0\0\0\0\0\x30\0\0\0\0\0\0\0\x10\0";
    let runs = b"\x02\0\0\0\x01\0\0\0\0\0\0\0\x40\x08main.ram\x01\0\x03\0\x01\x09";
    use DestinationPhase::{Failed, Interrupted};
    let cases = [
        (put(advise, 21, b""), Failed, "a discard is allowed only between the announcement of post-copy"),
        (put(package, 9, b""), Failed, "a post-copy command that is not allowed here"),
        (
            put(package, 0, dropped),
            Failed,
            "discard of 0x1000 bytes at 0x3000 of RAM block main.ram: these are not whole pages inside of the block",
        ),
        (packaged(length - 1), Failed, "an element exceeds the end of its package"),
        (packaged(u32::MAX), Failed, "a package of 4294967295 bytes"),
        (put(run, 0, device), Interrupted, "a section after the package, where only pages are allowed"),
        (put(run, 0, runs), Interrupted, "an XBZRLE page in post-copy"),
        (stream[..run].to_vec(), Interrupted, "the peer closed the connection"),
    ];
    for (stream, phase, expected) in cases {
        let (arrival, _) = received(stream);
        assert_eq!(arrival.phase, phase, "{expected}: {:?}", arrival.error);
        let error = arrival.error.unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // The second of two copies is dropped: the guest may have written to the first.
    let again =
        [b"\x02\0\0\0\x01\0\0\0\0\0\0\x10\x08\x08main.ram", &[0x77; 4096][..], b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01"];
    let footer = place(b"\x03\0\0\0\x01");
    let (arrival, memory) = received(put(footer, 0, &again.concat()));
    assert_eq!(arrival.phase, DestinationPhase::Completed, "{:?}", arrival.error);
    assert!(memory[4096..8192].iter().filter(|byte| **byte == 0x77).count() < 100);
}

/// A destination that answers each ping, and requests pages before it reports that it has loaded the devices.
struct Asker {
    answers: VecDeque<u8>,
    request: Vec<u8>,
}

impl Channel for Asker {
    fn send(&mut self, bytes: &[u8], _timeout: Duration) -> io::Result<usize> {
        for ping in bytes.windows(9).filter(|command| command[..5] == [8, 0, 2, 0, 4]) {
            if ping[5..] == [0, 0, 0, 5] {
                self.answers.extend(std::mem::take(&mut self.request));
            }
            let number = if ping[5..] == *b"who?" { b"vmst" } else { &ping[5..] };
            self.answers.extend([0, 2, 0, 4].iter().chain(number));
        }
        Ok(bytes.len())
    }

    fn receive(&mut self, into: &mut [u8], _timeout: Duration) -> io::Result<usize> {
        let count = into.len().min(self.answers.len());
        self.answers.drain(..count).zip(into).for_each(|(from, to)| *to = from);
        if count == 0 { Err(io::ErrorKind::TimedOut.into()) } else { Ok(count) }
    }
}

/// A request for something that is not a page of the guest ends the migration, and the guest continues at the source.
#[test]
fn hostile_destinations_are_refused() {
    let named = |start: u64, len: u32, name: &[u8]| {
        [&[0, 3, 0, 13 + name.len() as u8], &start.to_be_bytes()[..], &len.to_be_bytes(), &[name.len() as u8], name]
            .concat()
    };
    let cases = [
        (named(0, 4096, b"none"), "no such RAM block, in a request for pages"),
        (b"\0\x04\0\x0c\0\0\0\0\0\0\0\0\0\0\x10\0".to_vec(), "no such RAM block, in a request for pages"),
        (named(0x3000, 4096, b"main.ram"), "no pages of the RAM block, in a request for pages"),
        (named(u64::MAX - 4095, 8192, b"main.ram"), "no pages of the RAM block, in a request for pages"),
        (named(7, 4096, b"main.ram"), "no pages of the RAM block, in a request for pages"),
    ];
    for (request, expected) in cases {
        let mut setup = small(None);
        let departure = source::run(
            Outgoing {
                channel: &mut Asker { answers: VecDeque::new(), request },
                clock: &setup.world.end(Side::Source),
                ram: &setup.source.guest.clone(),
                log: &mut setup.source.guest.clone(),
                machine: &mut setup.source,
                sections: &mut Sections::new(),
            },
            &setup.source_options,
            &setup.source_control,
        );
        assert_eq!((departure.phase, setup.source.running), (SourcePhase::Failed, true), "{expected}");
        let error = departure.error.unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// By hand: 1024 pages of 4104 bytes at 400,000 bytes a second take more than ten seconds; on a connection of 4 MiB a second without the
/// limit they take one. Requested pages pass.
#[test]
fn the_bandwidth_limit_of_post_copy_delays_no_requested_page() {
    let setup = busy();
    let load = Load { writes_per_second: 100.0, working_set: 900 };
    setup.destination.guest.set_load(load);
    setup.source_control.start_postcopy();
    let mut parameters = setup.source_control.parameters();
    parameters.max_postcopy_bandwidth = std::num::NonZeroU64::new(400_000);
    setup.source_control.set_parameters(parameters).unwrap();
    let Outcome { world, departure, destination, source, .. } = setup.run();
    assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
    assert!(destination.guest.memory() == destination.guest.written_over(source.guest.memory()));
    let sent = world.sent(Side::Source) as f64;
    let seconds = departure.report.total.as_secs_f64();
    assert!(sent / seconds < 1.02 * 400_000.0 && sent / seconds > 0.9 * 400_000.0, "{sent} bytes in {seconds} s");
    let waited = destination.guest.waited();
    let longest = waited.iter().max().unwrap();
    assert!(waited.len() > 100 && *longest < 30 * MS, "{} waits, {longest:?}", waited.len());
}
