//! A wire between two machines that holds or cuts the destination's answers.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use minivmm::config::Address;

/// An answer of the destination that matters to the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Answer {
    /// `PONG 5`: everything is loaded.
    Ready = 1,
    /// `SHUT 0`: it takes over.
    TakesOver = 2,
}

const PASS: u8 = 0;
const HOLD: u8 = 1;
const CUT: u8 = 2;

/// A wire. Everything passes, except one kind of answer, which is held at first.
pub(crate) struct Proxy {
    pub(crate) address: Address,
    fate: Arc<AtomicU8>,
    held: Arc<Mutex<bool>>,
}

impl Proxy {
    /// Listens below `dir` for one source, whose bytes go to `destination`; holds `answer`.
    pub(crate) fn holding(answer: Answer, dir: &Path, destination: &Address) -> Self {
        let path = dir.join("between");
        let listener = UnixListener::bind(&path).unwrap();
        let Address::Unix(destination) = destination.clone() else { panic!("a unix socket") };
        let fate = Arc::new(AtomicU8::new(HOLD));
        let held = Arc::new(Mutex::new(false));
        let proxy = Self { address: Address::Unix(path), fate: Arc::clone(&fate), held: Arc::clone(&held) };
        thread::spawn(move || {
            let source = listener.accept().unwrap().0;
            let destination = UnixStream::connect(destination).unwrap();
            let (mut from, mut to) = (source.try_clone().unwrap(), destination.try_clone().unwrap());
            thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            let _ = answers(&destination, &source, answer, &fate, &held);
            let _ = source.shutdown(Shutdown::Both);
            let _ = destination.shutdown(Shutdown::Both);
        });
        proxy
    }

    /// The answer is here, and waits.
    pub(crate) fn holds(&self) -> bool {
        *self.held.lock().unwrap()
    }

    /// Lets the answer pass.
    pub(crate) fn release(&self) {
        self.fate.store(PASS, Ordering::SeqCst);
    }

    /// The answer is lost with the connection.
    pub(crate) fn cut(&self) {
        self.fate.store(CUT, Ordering::SeqCst);
    }
}

/// Passes on answers: type and length as two big-endian words of 16 bits, then a word of 32 bits
/// (QEMU's `migrate_send_rp_message`, migration/migration.c).
fn answers(
    mut from: &UnixStream,
    mut to: &UnixStream,
    held_answer: Answer,
    fate: &AtomicU8,
    held: &Mutex<bool>,
) -> io::Result<()> {
    loop {
        let mut message = [0; 8];
        from.read_exact(&mut message)?;
        let answer = match message {
            [0, 2, 0, 4, 0, 0, 0, 5] => Some(Answer::Ready),
            [0, 1, 0, 4, 0, 0, 0, 0] => Some(Answer::TakesOver),
            _ => None,
        };
        if answer == Some(held_answer) {
            *held.lock().unwrap() = true;
            while fate.load(Ordering::SeqCst) == HOLD {
                thread::sleep(Duration::from_millis(1));
            }
            if fate.load(Ordering::SeqCst) == CUT {
                return Ok(());
            }
        }
        to.write_all(&message)?;
    }
}
