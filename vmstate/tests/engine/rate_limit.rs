//! The bandwidth limit of whole migrations, in each second of a virtual clock: the oracle is the record of the data that was put
//! on the wire, and when.

use std::io;
use std::num::NonZeroU64;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::pair::guest::Load;
use crate::pair::run::{Outcome, Setup, set};
use crate::pair::world::World;
use vmstate::channel::{Channel, SocketChannel};
use vmstate::migrate::multifd::{Compression, Receivers, Senders};
use vmstate::migrate::{DeadlineAction, SourcePhase};

const PAGES: u64 = 300;
const WIRE: f64 = 5e6;
/// A page of data with its header, and the headers of a section around it: the unit that is sent at once if the limit allows it.
const RECORD: f64 = 4096.0 + 64.0;
/// The most bytes at once beside pages: the headers of a packet and of both channels' flushes, which have room for the offsets
/// of 128 pages each, and what the main channel sends.
const HEADERS: u64 = 5000;
const SECOND: Duration = Duration::from_secs(1);

/// A guest full of data that dirties more than is sent, and is paused when this time has passed.
fn busy(limit: u64, deadline: Duration) -> Setup {
    let world = World::new(None, Some(WIRE), Duration::from_micros(200));
    world.set_buffer(64 << 10);
    let setup = Setup::with(&[("main.ram", PAGES)], world, Load { writes_per_second: 3000.0, working_set: PAGES });
    for page in 0..PAGES {
        for at in 0..64 {
            setup.source.guest.poke(0, page * 4096 + at * 61, (page * at % 251) as u8 | 1);
        }
    }
    set(&setup.source_control, |parameters| {
        parameters.max_bandwidth = NonZeroU64::new(limit);
        parameters.downtime_limit = Duration::ZERO;
        parameters.deadline = Some(deadline);
        parameters.deadline_action = DeadlineAction::SwitchOver;
    });
    setup
}

/// Checks each second that begins with a sent piece, between `from` and `until`: it has at most `limit` within 2 % and one
/// `piece`.
fn assert_kept(sends: &[(Duration, usize)], (from, until): (Duration, Duration), limit: u64, piece: f64) {
    let mut seconds = 0;
    for (first, &(begin, _)) in sends.iter().enumerate().filter(|(_, (at, _))| *at >= from && *at + SECOND < until) {
        let within = sends[first..].iter().take_while(|(at, _)| *at < begin + SECOND);
        let bytes: f64 = within.map(|(_, bytes)| *bytes as f64).sum();
        let (limit, most) = (limit as f64, limit as f64 * 0.02 + piece);
        assert!((bytes - limit).abs() <= most, "{bytes} bytes in the second from {begin:?} on, the limit is {limit}");
        seconds += 1;
    }
    assert!(seconds > 0, "no second was looked at");
}

#[test]
fn each_second_of_the_rounds_keeps_the_limit_and_the_pause_has_none() {
    for (limit, xbzrle) in [(1, false), (7, false), (1000, false), (20_000, true), (65_536, false), (1_000_000, false)]
    {
        let end = 5 * SECOND;
        let setup = busy(limit, end);
        set(&setup.source_control, |parameters| parameters.xbzrle = xbzrle);
        let outcome = setup.run();
        let paused = assert_paused(&outcome, end);
        assert_eq!(outcome.departure.report.rounds.len() > 1, limit == 1_000_000);
        // The beginning of the stream has no limit.
        let from = outcome.departure.report.setup + Duration::from_millis(10);
        let piece = if limit > 800_000 { RECORD } else { (limit / 200).max(1) as f64 };
        assert_kept(&outcome.world.sends(), (from, paused), limit, piece);
        // At least all pages except those already sent: minutes at the limit, a quarter of a second for the wire.
        let pause = outcome.departure.report.downtime.unwrap().total().as_secs_f64();
        let least = (PAGES as f64 * 4096.0 - limit as f64 * end.as_secs_f64()).max(0.0) / WIRE;
        assert!(pause >= least && pause < 0.3, "{pause} s, {least} s at least");
    }
}

fn assert_paused(outcome: &Outcome, deadline: Duration) -> Duration {
    assert_eq!(outcome.departure.phase, SourcePhase::Completed, "{:?}", outcome.departure.error);
    assert_eq!(outcome.destination.guest.memory(), outcome.source.guest.memory());
    let paused = outcome.source.paused.unwrap();
    assert!((deadline..deadline + SECOND / 4).contains(&paused), "{paused:?}");
    paused
}

/// One end of a page channel, which records when how many bytes are sent.
struct Noting {
    channel: SocketChannel,
    world: World,
    sends: Arc<Mutex<Vec<(Duration, usize)>>>,
}

impl Channel for Noting {
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        let count = self.channel.send(bytes, timeout)?;
        self.sends.lock().unwrap().push((self.world.now(), count));
        Ok(count)
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        self.channel.receive(into, timeout)
    }
}

/// Both sides of a migration on the virtual wire and clock, which stand still while two page channels send their pages.
fn over_page_channels(mut setup: Setup) -> (Outcome, Vec<(Duration, usize)>) {
    let (senders, receivers) = (Senders::new(2, Compression::None), Receivers::new());
    setup.source_options.page_channels = Some(senders.clone());
    setup.destination_options.page_channels = Some(receivers.clone());
    let (world, sends) = (setup.world.clone(), Arc::default());
    let (here, there) = (setup.source.guest.clone(), setup.destination.guest.clone());
    let outcome = thread::scope(|scope| {
        for id in 0..2 {
            let (near, far) = UnixStream::pair().unwrap();
            let mut near =
                Noting { channel: near.try_into().unwrap(), world: world.clone(), sends: Arc::clone(&sends) };
            let (sender, receiver, here, there) = (senders.worker(id), receivers.worker(), &here, &there);
            scope.spawn(move || sender.run(&mut near, here));
            scope.spawn(move || receiver.run(&mut SocketChannel::try_from(far).unwrap(), there));
        }
        let outcome = setup.run();
        receivers.close();
        outcome
    });
    let mut sends = [outcome.world.sends(), std::mem::take(&mut sends.lock().unwrap())].concat();
    sends.sort_unstable();
    (outcome, sends)
}

#[test]
fn page_channels_share_the_limit_and_the_last_phase_has_none() {
    for limit in [20_000, 400_000, 1_000_000, 2_000_000] {
        let (outcome, sends) = over_page_channels(busy(limit, 3 * SECOND));
        let paused = assert_paused(&outcome, 3 * SECOND);
        // A page is sent whole, together with a flush of both channels.
        let from = outcome.departure.report.setup + Duration::from_millis(10);
        assert_kept(&sends, (from, paused), limit, 2.0 * RECORD);
        // The clock stands still while channels send. A piece below a page is a page.
        let pages = (limit / 200 / RECORD as u64).max(1);
        for at_once in sends.chunk_by(|(at, _), (next, _)| at == next) {
            let (at, pages_bytes) = (at_once[0].0, at_once.iter().map(|(_, bytes)| *bytes as u64).sum::<u64>());
            let most = pages * 4096 + HEADERS;
            assert!(at < from || at >= paused || pages_bytes <= most, "{pages_bytes} bytes at {at:?}, limit {limit}");
        }
        let last: usize = sends.iter().filter(|(at, _)| *at >= paused).map(|(_, bytes)| *bytes).sum();
        let pause = outcome.departure.report.downtime.unwrap().total().as_secs_f64();
        assert!(
            last as f64 > 0.5 * PAGES as f64 * 4096.0 && pause < 0.5 * last as f64 / limit as f64,
            "{last} in {pause} s"
        );
    }
}
