//! The surroundings of a serial port or an event device: interrupt line, console and power. They record what the device
//! does.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use minivmm::devices::serial::Output;
use minivmm::irq::IrqLine;

/// Printed where a comparison begins and where it ends. No known program prints these bytes.
const BEGIN: &[u8] = b"\xff\0<begin>\0\xff";
const END: &[u8] = b"\xff\0<end>\0\xff";
/// Time limit for the thread of a console.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A console that is not compared; consoles 0 and 1 are.
pub(super) const UNWATCHED: usize = 2;

/// The recorded actions of a device.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// The number of the console that the port writes to.
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

    /// Counts a power-off or a reset that the guest asked for.
    pub(super) fn count(&self, off: bool) {
        let counter = if off { &self.offs } else { &self.resets };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn counts(&self) -> [usize; 3] {
        [&self.edges, &self.offs, &self.resets].map(|counter| counter.load(Ordering::Relaxed))
    }

    /// Starts a new record.
    pub(super) fn begin(&self) {
        for counter in [&self.edges, &self.offs, &self.resets] {
            counter.store(0, Ordering::Relaxed);
        }
        CONSOLES.with(|consoles| consoles[self.console].begin());
    }

    /// Compares the records of both devices since both began.
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
    /// The consoles for all inputs that a thread tries; each has a thread of its own.
    static CONSOLES: [Console; 3] = [(); 3].map(|()| Console::new());
}

struct Console {
    output: Output,
    paper: Paper,
}

/// The printed bytes, shared between clones.
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
        self.output.clone().write_all(bytes).expect("the console accepts everything");
    }

    /// The bytes printed since the record began.
    fn printed(&self) -> Vec<u8> {
        self.print(END);
        let (paper, changed) = &*self.paper.0;
        let paper = paper.lock().unwrap();
        let (mut paper, late) = changed.wait_timeout_while(paper, TIMEOUT, |paper| !paper.ends_with(END)).unwrap();
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
