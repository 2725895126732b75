//! What is around a serial port or an event device: interrupt line, console, power. It remembers what was done to it.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use minivmm::devices::serial::Output;
use minivmm::irq::IrqLine;

/// Printed where a comparison begins, and where it ends. No program is known to print them.
const BEGIN: &[u8] = b"\xff\0<begin>\0\xff";
const END: &[u8] = b"\xff\0<end>\0\xff";
/// How long the thread of a console may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A console that nobody looks at; the others are 0 and 1.
pub(super) const UNWATCHED: usize = 2;

/// What a device has done.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// Which of the consoles its port has.
    pub(super) console: usize,
    edges: AtomicUsize,
    offs: AtomicUsize,
    resets: AtomicUsize,
}

impl Surroundings {
    pub(super) fn new(console: usize) -> Self {
        Self { console, ..Self::default() }
    }

    pub(super) fn output(&self) -> Output {
        CONSOLES.with(|consoles| consoles[self.console].output.clone())
    }

    /// The guest asked for power-off, or a reset.
    pub(super) fn count(&self, off: bool) {
        let counter = if off { &self.offs } else { &self.resets };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn counts(&self) -> [usize; 3] {
        [&self.edges, &self.offs, &self.resets].map(|counter| counter.load(Ordering::Relaxed))
    }

    /// From now on, what is done counts.
    pub(super) fn begin(&self) {
        for counter in [&self.edges, &self.offs, &self.resets] {
            counter.store(0, Ordering::Relaxed);
        }
        CONSOLES.with(|consoles| consoles[self.console].begin());
    }

    /// Looks at what was done since both began.
    pub(super) fn compare(&self, other: &Self) {
        assert_eq!(self.counts(), other.counts(), "interrupts, power-offs, resets");
    }

    pub(super) fn compare_output(&self, other: &Self) {
        CONSOLES.with(|consoles| {
            let [ours, theirs] = [self, other].map(|around| consoles[around.console].printed());
            assert!(ours == theirs, "one console has {ours:x?}, the other {theirs:x?}");
        });
    }
}

impl IrqLine for Surroundings {
    fn set(&self, high: bool) {
        self.edges.fetch_add(usize::from(high), Ordering::Relaxed);
    }
}

thread_local! {
    /// For all inputs that a thread tries: each console has a thread of its own.
    static CONSOLES: [Console; 3] = [(); 3].map(|()| Console::new());
}

struct Console {
    output: Output,
    paper: Paper,
}

/// What was printed. Clones share it.
#[derive(Clone, Default)]
struct Paper(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Console {
    fn new() -> Self {
        let paper = Paper::default();
        Self { output: Output::new(Box::new(paper.clone())).expect("a thread"), paper }
    }

    fn begin(&self) {
        self.paper.0.0.lock().unwrap().clear();
        self.print(BEGIN);
    }

    fn print(&self, bytes: &[u8]) {
        self.output.clone().write_all(bytes).expect("the console takes all");
    }

    /// What was printed since it began.
    fn printed(&self) -> Vec<u8> {
        self.print(END);
        let (paper, changed) = &*self.paper.0;
        let paper = paper.lock().unwrap();
        let (mut paper, late) = changed.wait_timeout_while(paper, PATIENCE, |paper| !paper.ends_with(END)).unwrap();
        assert!(!late.timed_out(), "a console does not print");
        let all = std::mem::take(&mut *paper);
        let begin = all.windows(BEGIN.len()).rposition(|window| window == BEGIN).expect("a beginning");
        all[begin + BEGIN.len()..].to_vec()
    }
}

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (paper, changed) = &*self.0;
        paper.lock().unwrap().extend_from_slice(bytes);
        changed.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
