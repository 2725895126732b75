//! A wire between two machines that holds one message of the commit, and passes or drops it.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use minivmm::config::Address;

/// A message of the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The destination's `PONG 5`: everything is loaded.
    Ready,
    /// The source's EOF: take over. It is everything after `PONG 5`.
    End,
    /// The destination's `SHUT 0`: it takes over.
    TakesOver,
}

const PASS: u8 = 0;
const HOLD: u8 = 1;
const CUT: u8 = 2;

/// A wire that passes everything except one message, which is held at first.
pub(crate) struct Proxy {
    pub(crate) address: Address,
    fate: Arc<AtomicU8>,
    held: Arc<AtomicBool>,
}

impl Proxy {
    /// Listens in `dir` for one source, whose bytes are passed to `destination`; holds `word`.
    pub(crate) fn holding(word: Word, dir: &Path, destination: &Address) -> Self {
        let path = dir.join("between");
        let listener = UnixListener::bind(&path).unwrap();
        let Address::Unix(destination) = destination.clone() else { panic!("a unix socket") };
        let fate = Arc::new(AtomicU8::new(HOLD));
        let held = Arc::new(AtomicBool::new(false));
        let proxy = Self { address: Address::Unix(path), fate: Arc::clone(&fate), held: Arc::clone(&held) };
        thread::spawn(move || {
            let source = listener.accept().unwrap().0;
            let destination = UnixStream::connect(destination).unwrap();
            let wire = Wire { word, fate, held, ready: AtomicBool::new(false) };
            thread::scope(|scope| {
                scope.spawn(|| {
                    let _ = wire.stream(&source, &destination);
                    let _ = destination.shutdown(Shutdown::Both);
                });
                let _ = wire.answers(&destination, &source);
                let _ = source.shutdown(Shutdown::Both);
                let _ = destination.shutdown(Shutdown::Both);
            });
        });
        proxy
    }

    /// Whether the message has arrived and is held.
    pub(crate) fn holds(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// Passes the message.
    pub(crate) fn release(&self) {
        self.fate.store(PASS, Ordering::SeqCst);
    }

    /// Drops the message and the connection.
    pub(crate) fn cut(&self) {
        self.fate.store(CUT, Ordering::SeqCst);
    }
}

struct Wire {
    word: Word,
    fate: Arc<AtomicU8>,
    held: Arc<AtomicBool>,
    /// Whether `PONG 5` has passed.
    ready: AtomicBool,
}

impl Wire {
    /// Holds the message, then returns whether to pass it.
    fn passes(&self) -> bool {
        self.held.store(true, Ordering::SeqCst);
        while self.fate.load(Ordering::SeqCst) == HOLD {
            thread::sleep(Duration::from_millis(1));
        }
        self.fate.load(Ordering::SeqCst) == PASS
    }

    fn stream(&self, mut from: &UnixStream, mut to: &UnixStream) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = from.read(&mut buffer)?;
            if length == 0 || (self.word == Word::End && self.ready.load(Ordering::SeqCst) && !self.passes()) {
                return Ok(());
            }
            to.write_all(&buffer[..length])?;
        }
    }

    /// Passes answers on: type and length as two big-endian numbers of 16 bits, then a number of 32 bits (QEMU's
    /// `migrate_send_rp_message`, migration/migration.c).
    fn answers(&self, mut from: &UnixStream, mut to: &UnixStream) -> io::Result<()> {
        loop {
            let mut message = [0; 8];
            from.read_exact(&mut message)?;
            let word = match message {
                [0, 2, 0, 4, 0, 0, 0, 5] => Some(Word::Ready),
                [0, 1, 0, 4, 0, 0, 0, 0] => Some(Word::TakesOver),
                _ => None,
            };
            if word == Some(self.word) && !self.passes() {
                return Ok(());
            }
            self.ready.fetch_or(word == Some(Word::Ready), Ordering::SeqCst);
            to.write_all(&message)?;
        }
    }
}
