//! Speed of the wire: the bytes that the destination has acknowledged, over the time in which the wire was busy with them.
//!
//! A probe (a ping) follows each chunk of pages; its answer acknowledges all bytes before it. Bytes in a socket's buffer have no
//! answer yet, so they never count. The time between two answers counts only while a chunk was on the wire: it begins when the
//! chunk was sent, plus a round trip. So neither a sleep for a bandwidth limit nor the round trip is mistaken for a slow wire,
//! and a round of one small chunk gives the same speed as the slope between the probes of a long round.
//!
//! On a host whose processors the guest keeps busy, the sending and receiving processes are faster while the guest is paused. So
//! the speed in a pause is measured by separate chunks, sent in rehearsals of the pause.

use std::collections::VecDeque;
use std::time::Duration;

use super::WINDOW;
use super::lateness::Lateness;
use super::stretches::{Busy, Stretches};
use crate::ram::{NORMAL_RECORD, PageCount};

/// The speed that the answer to a chunk measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measures {
    /// The wire's speed in the rounds.
    Rounds,
    /// The wire's speed in a pause: the guest was paused.
    Pause,
    /// No speed: the chunk woke up an idle side.
    Nothing,
}

/// Little is sent in pauses: the last one or two of them determine the speed.
const PAUSED_WINDOW: Duration = Duration::from_millis(20);

/// A smaller chunk in a pause is not a measurement: scheduling delays would dominate it.
const LEAST_SAMPLE: u64 = 64 << 10;

/// A chunk on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    /// When the source began to build it: reading the pages is part of the transfer from memory to memory.
    pub(crate) begun: Duration,
    /// Its size on the wire; 0 for a lone ping.
    pub(crate) bytes: u64,
    /// The pages in it.
    pub(crate) pages: PageCount,
    /// The speed that the chunk measures.
    pub(crate) measures: Measures,
    /// Number of flushes of page channels that were begun before its probe.
    pub(crate) flushes: u64,
    /// How long the source has waited for its bandwidth limit since the previous chunk.
    pub(crate) waited: Duration,
    /// The beginning and size of the last piece, for a chunk sent in pieces with waits between them.
    pub(crate) last_piece: Option<(Duration, u64)>,
}

impl Chunk {
    /// A chunk that was sent at once, without a flush before it.
    pub(crate) fn new(begun: Duration, bytes: u64, pages: PageCount, measures: Measures) -> Self {
        Self { begun, bytes, pages, measures, flushes: 0, waited: Duration::ZERO, last_piece: None }
    }
}

/// Measures the wire by the chunks sent and the answers to their probes.
#[derive(Debug)]
pub(crate) struct WireSpeed {
    /// By chunks that consist of whole pages.
    whole_pages: Stretches,
    /// By all chunks.
    any: Stretches,
    /// By all chunks, in pages of either kind.
    pages: Stretches,
    /// By chunks of whole pages that were sent while the guest was paused.
    paused: Stretches,
    unanswered: VecDeque<Chunk>,
    unanswered_bytes: u64,
    last_answer: Duration,
    lateness: Lateness,
}

impl WireSpeed {
    /// A speed without a measurement.
    pub(crate) fn new() -> Self {
        Self {
            whole_pages: Stretches::without_outlier(WINDOW),
            any: Stretches::without_outlier(WINDOW),
            pages: Stretches::without_outlier(WINDOW),
            paused: Stretches::new(PAUSED_WINDOW),
            unanswered: VecDeque::new(),
            unanswered_bytes: 0,
            last_answer: Duration::ZERO,
            lateness: Lateness::default(),
        }
    }

    /// Records that a chunk and its probe were handed to the channel.
    pub(crate) fn sent(&mut self, chunk: Chunk) {
        self.unanswered.push_back(chunk);
        self.unanswered_bytes += chunk.bytes;
    }

    /// The oldest chunk whose probe is unanswered.
    pub(crate) fn oldest(&self) -> Option<&Chunk> {
        self.unanswered.front()
    }

    /// Adds the bytes and pages that page channels sent with the oldest unanswered chunk, when its answer has arrived.
    pub(crate) fn add_to_oldest(&mut self, bytes: u64, pages: PageCount) {
        if let Some(chunk) = self.unanswered.front_mut() {
            chunk.bytes += bytes;
            chunk.pages = chunk.pages.and(pages);
            self.unanswered_bytes += bytes;
        }
    }

    /// Records that the answer to the oldest unanswered probe arrived at `at`. False if there is no such probe.
    pub(crate) fn answered(&mut self, at: Duration) -> bool {
        let Some(chunk) = self.unanswered.pop_front() else { return false };
        let Chunk { begun, bytes, pages, measures, waited, last_piece, .. } = chunk;
        self.unanswered_bytes -= bytes;
        let whole_way = at.saturating_sub(last_piece.map_or(begun, |(begun, _)| begun));
        if bytes > 0 {
            let all = self.busy(begun, at, waited);
            // While the source waited between pieces, the wire was idle: so the last piece may indicate a faster wire, and so do
            // all pieces if its answer was late.
            let last = last_piece.map(|(begun, bytes)| (bytes, self.busy(begun, at, Duration::ZERO)));
            let is_faster = |&(last_bytes, last): &(u64, Busy)| {
                last_bytes as f64 * all.time.as_secs_f64() >= bytes as f64 * last.time.as_secs_f64()
            };
            let (bytes, busy) = last.filter(is_faster).unwrap_or((bytes, all));
            let doubt = self.lateness.doubt();
            // A zero page is as much work for both sides as a whole page, and almost nothing on the wire: a chunk of zero pages
            // measures the speed of the processors.
            let whole = pages.normal >= pages.zero;
            match measures {
                Measures::Rounds => {
                    self.any.add(bytes as f64, busy, doubt);
                    self.pages.add(pages.total() as f64, busy, doubt);
                    if whole {
                        self.whole_pages.add(bytes as f64, busy, doubt);
                    }
                }
                Measures::Pause if whole && bytes >= LEAST_SAMPLE => self.paused.add(bytes as f64, busy, doubt),
                Measures::Pause | Measures::Nothing => {}
            }
        } else if begun >= self.last_answer {
            self.lateness.answered_alone(whole_way);
        }
        self.lateness.answered(whole_way);
        self.last_answer = at;
        true
    }

    /// The time in which the wire was busy with a chunk that was begun at `begun` and is answered at `at`.
    fn busy(&self, begun: Duration, at: Duration, waited: Duration) -> Busy {
        let way = self.round_trip().min(at.saturating_sub(begun));
        let free = begun.saturating_add(way);
        let time = at.saturating_sub(free.max(self.last_answer));
        Busy { time, after_rest: free >= self.last_answer, waited, is_last: self.unanswered.is_empty() }
    }

    /// Bytes a second while the guest is paused: as measured in rehearsals, but no less than while the guest runs, since a paused
    /// guest slows nothing down.
    pub(crate) fn paused_bytes_per_second(&self) -> Option<f64> {
        let (paused, running) = (self.paused.per_second(), self.bytes_per_second());
        paused.into_iter().chain(running).reduce(f64::max)
    }

    /// Bytes a second from the source's memory to the destination's, at full speed while the guest runs; `None` before the first
    /// answer.
    pub(crate) fn bytes_per_second(&self) -> Option<f64> {
        self.whole_pages.per_second().or_else(|| self.any.per_second())
    }

    /// Pages a second at full speed while the guest runs, including zero pages as long as there were hardly any others. `None`
    /// before the first answer.
    pub(crate) fn pages_per_second(&self) -> Option<f64> {
        let whole = self.whole_pages.per_second().map(|bytes| bytes / NORMAL_RECORD as f64);
        whole.or_else(|| self.pages.per_second())
    }

    /// The shortest time from a ping to its answer with nothing else on the wire. Zero before the first answer.
    pub(crate) fn round_trip(&self) -> Duration {
        self.lateness.least()
    }

    /// The usual delay of an answer beyond that time.
    pub(crate) fn usual_lateness(&self) -> Duration {
        self.lateness.usual()
    }

    /// True if more lone probes would improve both estimates.
    pub(crate) fn wants_lone_probe(&self) -> bool {
        self.lateness.is_unknown()
    }

    /// Number of probes without an answer.
    pub(crate) fn unanswered(&self) -> usize {
        self.unanswered.len()
    }

    /// Bytes handed to the channel that the destination has not acknowledged.
    pub(crate) fn unanswered_bytes(&self) -> u64 {
        self.unanswered_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const KIB: u64 = 1 << 10;

    /// A wire as a formula: bytes leave one after another at `speed`, and are answered `round_trip` later.
    struct Pipe {
        speed: f64,
        round_trip: Duration,
        free: Duration,
        measured: WireSpeed,
        answers: VecDeque<Duration>,
    }

    impl Pipe {
        fn new(speed: f64, round_trip: Duration) -> Self {
            let mut measured = WireSpeed::new();
            measured.sent(Chunk::new(Duration::ZERO, 0, PageCount::default(), Measures::Rounds));
            assert!(measured.answered(round_trip));
            Self { speed, round_trip, free: Duration::ZERO, measured, answers: VecDeque::new() }
        }

        /// Hands a chunk over at `at`, at once: the socket's buffer is larger.
        fn send(&mut self, at: Duration, bytes: u64) {
            let pages = PageCount { normal: bytes / 4104, zero: 0 };
            self.free = self.free.max(at) + Duration::from_secs_f64(bytes as f64 / self.speed);
            self.measured.sent(Chunk::new(at, bytes, pages, Measures::Rounds));
            self.answers.push_back(self.free + self.round_trip);
        }

        fn acknowledge_all(&mut self) {
            for at in std::mem::take(&mut self.answers) {
                assert!(self.measured.answered(at));
            }
        }

        fn assert_measured(&self, speed: f64) {
            let measured = self.measured.bytes_per_second().unwrap();
            assert!((measured / speed - 1.0).abs() < 0.01, "{measured} for {speed}");
        }
    }

    #[test]
    fn a_buffer_that_takes_all_at_once_is_not_a_fast_wire() {
        let mut pipe = Pipe::new(40e6, MS);
        for _ in 0..64 {
            pipe.send(5 * MS, KIB * KIB);
        }
        assert_eq!((pipe.measured.unanswered(), pipe.measured.unanswered_bytes()), (64, 64 << 20));
        assert_eq!(pipe.measured.bytes_per_second(), None);
        pipe.acknowledge_all();
        pipe.assert_measured(40e6);
        assert_eq!((pipe.measured.unanswered(), pipe.measured.round_trip()), (0, MS));
        assert!(!pipe.measured.answered(Duration::from_secs(9)), "nobody asked");
    }

    #[test]
    fn time_slept_for_a_bandwidth_limit_does_not_count() {
        let mut pipe = Pipe::new(20e6, MS);
        for turn in 1..100 {
            // 10 MB/s: each chunk has left the wire long before the next one begins.
            pipe.send(turn * 100 * MS, 1_000_000);
            pipe.acknowledge_all();
        }
        pipe.assert_measured(20e6);
    }

    #[test]
    fn a_small_chunk_on_a_long_way_is_not_a_slow_wire() {
        for chunk in [4 * KIB, 64 * KIB] {
            let mut pipe = Pipe::new(1e9, 20 * MS);
            for turn in 1..10 {
                pipe.send(turn * 25 * MS, chunk);
                pipe.acknowledge_all();
            }
            pipe.assert_measured(1e9);
            assert_eq!(pipe.measured.round_trip(), 20 * MS);
        }
    }

    #[test]
    fn small_chunks_show_a_change_of_the_wire() {
        let mut pipe = Pipe::new(1e9, MS);
        for _ in 0..1000 {
            pipe.send(MS, KIB * KIB);
        }
        pipe.acknowledge_all();
        for speed in [50e6, 400e6] {
            pipe.speed = speed;
            let mut at = pipe.free + 2 * MS;
            // Three windows of busy time leave a twentieth of the weight of earlier measurements.
            for _ in 0..=(0.9 * speed / (64 * KIB) as f64) as u32 {
                pipe.send(at, 64 * KIB);
                pipe.acknowledge_all();
                at = pipe.free + 2 * MS;
            }
            let measured = pipe.measured.bytes_per_second().unwrap();
            assert!((measured / speed - 1.0).abs() < 0.06 || measured < 1.06 * (speed + 0.05 * 1e9), "{measured}");
            assert!(measured > 0.9 * speed);
        }
    }

    #[test]
    fn zero_pages_count_only_without_other_measurements() {
        let mut speed = WireSpeed::new();
        let chunk = |begun, bytes, normal, zero| Chunk::new(begun, bytes, PageCount { normal, zero }, Measures::Rounds);
        speed.sent(chunk(Duration::ZERO, 0, 0, 0));
        speed.answered(MS);
        speed.sent(chunk(MS, 9_000, 0, 1000));
        speed.answered(3 * MS);
        assert_eq!((speed.bytes_per_second(), speed.pages_per_second()), (Some(9e6), Some(1e6)));
        speed.sent(chunk(3 * MS, 4_104_000, 1000, 0));
        speed.answered(8 * MS);
        assert_eq!(speed.bytes_per_second(), Some(4_104_000.0 / 4e-3));
        assert_eq!(speed.pages_per_second(), Some(1000.0 / 4e-3));
        speed.sent(chunk(8 * MS, 9_000, 0, 1000));
        speed.answered(10 * MS);
        assert_eq!(speed.bytes_per_second(), Some(4_104_000.0 / 4e-3));
    }

    #[test]
    fn the_speed_of_a_pause_is_measured_apart() {
        let mut speed = WireSpeed::new();
        let chunk =
            |at: u32, bytes, normal, zero, measures| Chunk::new(at * MS, bytes, PageCount { normal, zero }, measures);
        speed.sent(chunk(0, 0, 0, 0, Measures::Rounds));
        speed.answered(MS);
        speed.sent(chunk(1, 1_000_000, 250, 0, Measures::Rounds));
        speed.answered(12 * MS);
        assert_eq!((speed.bytes_per_second(), speed.paused_bytes_per_second()), (Some(1e8), Some(1e8)));
        speed.sent(chunk(12, 1_000_000, 250, 0, Measures::Pause));
        speed.answered(17 * MS);
        assert_eq!((speed.bytes_per_second(), speed.paused_bytes_per_second()), (Some(1e8), Some(2.5e8)));
        // Zero pages measure nothing here either; a measurement two windows old has a seventh of its weight.
        speed.sent(chunk(17, 9_000, 0, 1000, Measures::Pause));
        speed.answered(20 * MS);
        assert_eq!(speed.paused_bytes_per_second(), Some(2.5e8));
        speed.sent(chunk(20, 4_000, 1, 0, Measures::Pause));
        speed.answered(50 * MS);
        assert_eq!(speed.paused_bytes_per_second(), Some(2.5e8));
        speed.sent(chunk(50, 8_000_000, 2000, 0, Measures::Pause));
        speed.answered(91 * MS);
        assert!((speed.paused_bytes_per_second().unwrap() / 2.02e8 - 1.0).abs() < 0.01, "{speed:?}");
        // A lower speed than while the guest runs is ignored.
        speed.sent(chunk(91, 8_000_000, 2000, 0, Measures::Pause));
        speed.answered(1092 * MS);
        assert_eq!(speed.paused_bytes_per_second(), Some(1e8));
    }

    #[test]
    fn an_answer_faster_than_ever_before_shortens_the_round_trip() {
        let mut speed = WireSpeed::new();
        assert_eq!(speed.round_trip(), Duration::ZERO);
        for (begun, at) in [(0, 50), (50, 52), (60, 70)] {
            speed.sent(Chunk::new(begun * MS, 0, PageCount::default(), Measures::Rounds));
            assert!(speed.answered(at * MS));
        }
        assert_eq!(speed.round_trip(), 2 * MS);
    }
}
