//! Measures how exactly the bandwidth limit of the rounds is kept, second by second, on a real clock and a real socket:
//! the bytes that the source passes to its sockets, and when. A guest that writes all of its memory all the time keeps
//! the migration in the rounds.

use std::fmt::Write;
use std::io;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use vmstate::channel::Channel;
use vmstate::channel::tls::Connection;
use vmstate::codec::{Outbox, PageRun};
use vmstate::migrate::multifd::Compression;
use vmstate::migrate::{Control, DeadlineAction};
use vmstate::ram::{DirtyLog, GuestRam};

use crate::case::Transport;
use crate::engine::{Leaving, listen_as, migrate};
use crate::guest::Still;
use crate::memory::{Memory, PAGE};

/// Limit in bytes a second, and number of page channels beside the main channel. A page channel sends whole pages, so a
/// very low limit is not measured there.
const CASES: [(u64, u8); 9] = [
    (1, 0),
    (1000, 0),
    (1_000_000, 0),
    (100_000_000, 0),
    (1_000_000_000, 0),
    (1_000_000, 2),
    (100_000_000, 2),
    (1_000_000_000, 2),
    (1_000_000_000, 4),
];
/// Duration of the steady phase, from the first page on; bytes sent before the first page have no limit.
const STEADY: Duration = Duration::from_secs(5);
/// Then the sockets accept nothing for this long, and accept data again until the end.
const STALL: Duration = Duration::from_secs(1);
const END: Duration = Duration::from_secs(9);
const SECOND: Duration = Duration::from_secs(1);
/// Length of the intervals for the burst: longer than that of a piece, of which 200 are sent each second.
const BURST: Duration = Duration::from_millis(50);

/// The bytes sent and the time of each send, since the rounds began.
#[derive(Debug, Default)]
struct Notes {
    begun: OnceLock<Instant>,
    sends: Mutex<Vec<(Duration, usize)>>,
}

impl Notes {
    fn now(&self) -> Option<Duration> {
        self.begun.get().map(Instant::elapsed)
    }
}

/// A socket that records the bytes it accepts; it accepts none during [`STALL`].
struct Noting {
    socket: Connection,
    notes: Arc<Notes>,
}

impl Noting {
    fn sends(
        &mut self,
        timeout: Duration,
        send: impl FnOnce(&mut Connection) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if let Some(left) =
            self.notes.now().filter(|now| *now >= STEADY).and_then(|now| (STEADY + STALL).checked_sub(now))
        {
            thread::sleep(left.min(timeout));
            return Err(io::ErrorKind::TimedOut.into());
        }
        let count = send(&mut self.socket)?;
        if let Some(now) = self.notes.now() {
            self.notes.sends.lock().expect("no panic").push((now, count));
        }
        Ok(count)
    }
}

impl Channel for Noting {
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        self.sends(timeout, |socket| socket.send(bytes, timeout))
    }

    fn send_outbox(&mut self, outbox: &Outbox, ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        self.sends(timeout, |socket| socket.send_outbox(outbox, ram, timeout))
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        self.socket.receive(into, timeout)
    }

    fn receive_pages(&mut self, runs: &[PageRun], ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        self.socket.receive_pages(runs, ram, timeout)
    }
}

/// The dirty log of a guest that has written all of its memory at each sync.
struct AllWritten(Arc<Notes>);

impl DirtyLog for AllWritten {
    fn start(&mut self) -> vmstate::Result<()> {
        Ok(())
    }
    fn sync(&mut self, _block: usize, words: &mut [u64]) -> vmstate::Result<()> {
        self.0.begun.get_or_init(Instant::now);
        words.fill(u64::MAX);
        Ok(())
    }
    fn clear(&mut self, _block: usize, _first: u64, _count: u64) -> vmstate::Result<()> {
        Ok(())
    }
    fn stop(&mut self) {}
}

/// Measures all cases; returns a table for `docs/performance.md`.
pub(crate) fn table(memory: &Memory, transport: Transport) -> String {
    let mut text = "| limit, B/s | page channels | least in a second | most in a second | most in a second, after the stall | most in 50 ms |\n\
                    | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    for (limit, channels) in CASES {
        let sends = sends(memory, transport, limit, channels);
        let kept = Kept::new(&sends, limit, channels);
        let percent = |part: f64| format!("{:+.1} %", part * 100.0);
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {limit} | {channels} | {} | {} | {} | {:.2} × |",
            percent(kept.least),
            percent(kept.most),
            percent(kept.after),
            kept.burst
        );
    }
    text
}

/// Migrates under a limit until [`END`]; returns the time and size of each send.
fn sends(memory: &Memory, transport: Transport, limit: u64, channels: u8) -> Vec<(Duration, usize)> {
    let (control, notes) = (Control::default(), Arc::new(Notes::default()));
    let mut parameters = control.parameters();
    parameters.max_bandwidth = NonZeroU64::new(limit);
    parameters.downtime_limit = Duration::ZERO;
    parameters.deadline = Some(END + SECOND / 2);
    parameters.deadline_action = DeadlineAction::SwitchOver;
    control.set_parameters(parameters).expect("parameters");
    let leaving = Leaving {
        page_channels: (channels > 0).then_some((channels, Compression::None)),
        machine: &mut Still(None),
        log: &mut AllWritten(Arc::clone(&notes)),
        control: &control,
    };
    let (listener, connect) = listen_as(transport, &memory.certificates());
    let connect = || Noting { socket: connect(), notes: Arc::clone(&notes) };
    let departure = migrate(&memory.ends(), &listener, connect, leaving);
    assert!(departure.error.is_none() && departure.report.total > END, "it is over too early: {departure:?}");
    let mut sends = std::mem::take(&mut *notes.sends.lock().expect("no panic"));
    sends.retain(|(at, _)| *at < END);
    sends.sort_unstable();
    sends
}

/// Deviation from a limit, as a fraction of the limit: above zero for too much, below for too little, beyond one piece.
#[derive(Debug)]
struct Kept {
    least: f64,
    most: f64,
    after: f64,
    /// In the short interval, as a ratio to what the limit allows for it.
    burst: f64,
}

impl Kept {
    fn new(sends: &[(Duration, usize)], limit: u64, channels: u8) -> Self {
        // A page is sent whole on its channel, and each channel may send a SYNC packet as well.
        let page = if channels > 0 { PAGE as f64 + 64.0 * f64::from(channels) } else { 0.0 };
        let (limit, piece) = (limit as f64, (limit as f64 / 200.0).max(1.0).max(page));
        // The number of bytes sent within `time` of each send between these two moments.
        let within = |time: Duration, from: Duration, until: Duration| {
            let whole = sends.iter().enumerate().filter(move |(_, (at, _))| *at >= from && *at + time <= until);
            whole.map(move |(first, (begin, _))| {
                let within = sends[first..].iter().take_while(|(at, _)| *at < *begin + time);
                within.map(|(_, bytes)| *bytes as f64).sum::<f64>()
            })
        };
        let most = |time, from, until| within(time, from, until).fold(0.0, f64::max);
        let too_much = |bytes: f64| ((bytes - limit - piece) / limit).max(0.0);
        let least = within(SECOND, Duration::ZERO, STEADY).fold(f64::INFINITY, f64::min);
        Self {
            least: ((least - limit + piece) / limit).min(0.0),
            most: too_much(most(SECOND, Duration::ZERO, STEADY)),
            after: too_much(most(SECOND, STEADY, END)),
            burst: (most(BURST, Duration::ZERO, END) - piece) / (limit * BURST.as_secs_f64()),
        }
    }
}
