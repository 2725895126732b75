//! Peers that follow the format but not the protocol: whatever they send, no wait exceeds its deadline.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use crate::pair::run::{MACHINE, Setup};
use crate::pair::world::{Side, World};
use vmstate::channel::Channel;
use vmstate::migrate::destination::{self, Incoming};
use vmstate::migrate::source::{self, Departure, Outgoing};
use vmstate::migrate::{Control, DestinationPhase, SourcePhase};
use vmstate::section::Sections;

const BLOCKS: [(&str, u64); 1] = [("main.ram", 3)];
/// A section that QEMU does not have.
const BEYOND: &str = "beyond-qemu";
const MS: Duration = Duration::from_millis(1);
/// Limit on virtual time, which a test exceeds only if a wait has no end.
const TOO_LONG: Duration = Duration::from_secs(60);

/// A destination that answers each ping at once.
struct Answerer {
    world: World,
    answers: VecDeque<u8>,
    /// Sends unrequested answers, a thousand a second, once the guest is paused.
    floods: bool,
    /// How long the source takes for each send once the guest is paused.
    send_takes: Duration,
    /// The control whose downtime limit falls to zero once the guest is paused.
    narrows: Option<Control>,
    /// Reports that it takes the guest over, after 10 ms if it gets them.
    takes_over: bool,
    /// Answers every ping with its number, as QEMU does.
    is_qemu: bool,
    /// True once the section beyond QEMU has arrived.
    received_beyond: bool,
    paused: bool,
    asked_last: bool,
}

impl Answerer {
    fn pong(&mut self, number: &[u8]) {
        self.answers.extend([0, 2, 0, 4].iter().chain(number));
    }
}

impl Channel for Answerer {
    fn send(&mut self, bytes: &[u8], _timeout: Duration) -> io::Result<usize> {
        // SWITCHOVER_START is command 11, PING is 2 with four bytes. The pages here contain no such bytes.
        self.paused |= bytes.windows(5).any(|command| command == [8, 0, 11, 0, 0]);
        if let (Some(control), true) = (&self.narrows, self.paused) {
            control.set_downtime_limit(Duration::ZERO);
        }
        self.asked_last |= bytes.ends_with(&[8, 0, 2, 0, 4, 0, 0, 0, 5]);
        for ping in bytes.windows(9).filter(|command| command[..5] == [8, 0, 2, 0, 4]) {
            self.pong(if ping[5..] == *b"who?" && !self.is_qemu { b"vmst" } else { &ping[5..] });
        }
        self.received_beyond |= bytes.windows(BEYOND.len()).any(|word| word == BEYOND.as_bytes());
        if self.paused {
            self.world.spend(Side::Source, self.send_takes);
        }
        Ok(bytes.len())
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        assert!(self.world.now() < TOO_LONG, "the source waits for ever");
        if self.floods && self.paused {
            self.world.spend(Side::Source, MS);
            self.answers = [0, 2, 0, 4, 0, 0, 0, 6].into();
        }
        let count = self.answers.len().min(into.len());
        if count == 0 && self.asked_last && self.takes_over && timeout >= 10 * MS {
            self.world.spend(Side::Source, 10 * MS);
            self.answers = [0, 1, 0, 4, 0, 0, 0, 0].into();
            return self.receive(into, timeout);
        }
        if count == 0 {
            self.world.spend(Side::Source, timeout);
            return Err(io::ErrorKind::TimedOut.into());
        }
        for (byte, answer) in into.iter_mut().zip(self.answers.drain(..count)) {
            *byte = answer;
        }
        Ok(count)
    }
}

/// A source with a default pause budget of 200 ms: its result, whether its guest runs, and how long the guest was paused.
fn to_answerer(change: impl FnOnce(&mut Answerer, &Control)) -> (Departure, bool, Option<Duration>) {
    let Setup { world, mut source, mut source_devices, source_options, source_control, .. } = Setup::new(&BLOCKS, None);
    source_control.set_downtime_limit(50 * MS);
    world.finish(Side::Destination);
    let mut channel = Answerer {
        world: world.clone(),
        answers: VecDeque::new(),
        floods: false,
        send_takes: Duration::ZERO,
        narrows: None,
        takes_over: false,
        is_qemu: false,
        received_beyond: false,
        paused: false,
        asked_last: false,
    };
    change(&mut channel, &source_control);
    let is_qemu = channel.is_qemu;
    let mut sections = Sections::new();
    sections.register(BEYOND, 0, &mut source_devices[0]).unwrap().beyond_qemu();
    let departure = source::run(
        Outgoing {
            channel: &mut channel,
            clock: &world.end(Side::Source),
            ram: &source.guest.clone(),
            log: &mut source.guest.clone(),
            machine: &mut source,
            sections: &mut sections,
        },
        &source_options,
        &source_control,
    );
    // Devices are sent before the last ping, if the pause lasts that long.
    assert_eq!(channel.received_beyond, channel.asked_last && !is_qemu);
    (departure, source.running, source.pause_lasted)
}

/// The same destination without its faults takes the guest.
#[test]
fn an_answerer_is_believed() {
    let (departure, running, _) = to_answerer(|_, _| ());
    // It never reports that it took the guest over, and does not hold the lock.
    assert!(departure.error.unwrap().to_string().contains("is silent"));
    assert_eq!((departure.phase, running), (SourcePhase::Failed, true));
}

/// The lock is free and its generation is unchanged, which does not show what a QEMU did with the guest.
#[test]
fn a_qemu_that_does_not_confirm_leaves_the_guest_to_a_person() {
    let (departure, running, _) = to_answerer(|answerer, _| answerer.is_qemu = true);
    assert!(departure.error.unwrap().to_string().contains("is silent"));
    assert_eq!((departure.phase, running), (SourcePhase::Undecided, false));
}

#[test]
fn a_qemu_that_confirms_has_the_guest() {
    let (departure, running, _) = to_answerer(|answerer, _| (answerer.is_qemu, answerer.takes_over) = (true, true));
    assert_eq!((departure.phase, running), (SourcePhase::Completed, false), "{:?}", departure.error);
}

#[test]
fn a_flood_of_answers_does_not_prolong_the_pause() {
    let (departure, running, pause) = to_answerer(|answerer, _| answerer.floods = true);
    assert_eq!((departure.phase, running), (SourcePhase::Failed, true), "{:?}", departure.error);
    assert!(pause.unwrap() <= 220 * MS, "{pause:?}");
}

/// The limits of a paused guest are those at the time of the pause.
#[test]
fn a_limit_that_falls_during_the_pause_is_for_the_next_one() {
    let (departure, running, _) = to_answerer(|answerer, control| {
        answerer.narrows = Some(control.clone());
        answerer.takes_over = true;
    });
    assert_eq!((departure.phase, running), (SourcePhase::Completed, false), "{:?}", departure.error);
}

/// The wire accepts everything at once, and the source is slow to produce it.
#[test]
fn what_was_sent_too_late_is_too_late() {
    let (departure, running, pause) = to_answerer(|answerer, _| answerer.send_takes = 500 * MS);
    assert_eq!((departure.phase, running), (SourcePhase::Failed, true), "{:?}", departure.error);
    assert!(pause.unwrap() <= 520 * MS, "{pause:?}");
    assert!(departure.error.unwrap().to_string().contains("the guest is paused for 200.0ms at most"));
}

/// A source that sends a valid beginning and then `rest` for ever, one piece each millisecond.
struct Talker {
    world: World,
    begins: VecDeque<u8>,
    rest: &'static [u8],
}

impl Channel for Talker {
    fn send(&mut self, bytes: &[u8], _timeout: Duration) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn receive(&mut self, into: &mut [u8], _timeout: Duration) -> io::Result<usize> {
        assert!(self.world.now() < TOO_LONG, "the destination listens for ever");
        self.world.spend(Side::Destination, MS);
        if self.begins.is_empty() {
            self.begins.extend(self.rest);
        }
        let count = self.begins.len().min(into.len());
        for (byte, said) in into.iter_mut().zip(self.begins.drain(..count)) {
            *byte = said;
        }
        Ok(count)
    }
}

#[test]
fn a_handshake_without_end_is_given_up_and_the_destination_may_wait_for_another_source() {
    let pings: &[u8] = &[8, 0, 2, 0, 4, 0, 0, 0, 6];
    let commands: &[u8] = &[8, 0, 1, 0, 0];
    for rest in [pings, commands] {
        let Setup { world, mut destination, destination_options, destination_control, .. } = Setup::new(&BLOCKS, None);
        // The channel plays the source.
        world.finish(Side::Source);
        world.begin(Side::Destination);
        // Header of version 3, configuration, OPEN_RETURN_PATH.
        let begins = [&b"QEVM\0\0\0\x03\x07\0\0\0\x06"[..], MACHINE.as_bytes(), &[8, 0, 1, 0, 0]].concat();
        let mut channel = Talker { world: world.clone(), begins: begins.into(), rest };
        let arrival = destination::run(
            Incoming {
                channel: &mut channel,
                clock: &world.end(Side::Destination),
                ram: &destination.guest.clone(),
                machine: &mut destination,
                sections: &mut Sections::new(),
            },
            &destination_options,
            &destination_control,
        );
        assert_eq!(arrival.phase, DestinationPhase::Failed);
        assert!(arrival.pristine && !destination.running);
        assert!(world.now() <= destination_options.handshake + 100 * MS, "{:?}", world.now());
        let error = arrival.error.unwrap().to_string();
        assert!(error.contains("handshake"), "{error}");
    }
}
