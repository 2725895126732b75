//! Network load: numbered datagrams from the guest to a peer on the host, which counts them and sends them back.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Work, pattern};
use crate::error::{Error, Result};
use crate::netlink;

/// The guest's address, in a 24-bit network with the peer.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The host's address in that network.
pub const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The peer's port.
const PORT: u16 = 7777;
/// The guest's port: a different one, because passt binds it on the peer's address.
const GUEST_PORT: u16 = 7778;
const SIZE: usize = 512;
const PAUSE: Duration = Duration::from_millis(5);
/// Time for the last datagrams to come back.
const SETTLE: Duration = Duration::from_millis(300);

/// The datagrams received, each identified by its number, with its content checked.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    seen: Vec<bool>,
    unique: u64,
    duplicates: u64,
    corrupt: u64,
}

impl Tally {
    fn take(&mut self, datagram: &[u8]) {
        let number = datagram.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
        // A number beyond a day of sending is a damaged one, and must not size a table.
        if number > 1 << 24 || datagram != pattern::bytes(number, 0, SIZE) {
            self.corrupt += 1;
            return;
        }
        let index = number as usize;
        if self.seen.len() <= index {
            self.seen.resize(index + 1, false);
        }
        if std::mem::replace(&mut self.seen[index], true) {
            self.duplicates += 1;
        } else {
            self.unique += 1;
        }
    }

    /// The counts for the first `count` datagrams alone.
    pub fn of_first(mut self, count: u64) -> Self {
        self.seen.truncate(count as usize);
        self.unique = self.seen.iter().filter(|seen| **seen).count() as u64;
        self
    }

    /// Numbers of `unique`, `duplicates` and `corrupt` datagrams; `missing` are the first gaps, as number and length.
    pub fn report(&self) -> Value {
        let runs = self.seen.chunk_by(|one, next| one == next);
        let starts = runs.clone().scan(0, |at, run| Some(std::mem::replace(at, *at + run.len())));
        let missing = starts.zip(runs).filter(|(_, run)| !run[0]).map(|(at, run)| json!([at, run.len()]));
        let missing: Vec<_> = missing.take(8).collect();
        json!({ "unique": self.unique, "duplicates": self.duplicates, "corrupt": self.corrupt, "missing": missing })
    }
}

/// The number of datagrams sent, and the reasons why others were not.
#[derive(Debug, Default)]
struct Sent {
    next: u64,
    errors: Vec<String>,
}

/// The guest's sender and receiver, running.
#[derive(Debug)]
pub(super) struct Traffic {
    sending: Arc<Work<Sent>>,
    echoes: Arc<Mutex<Tally>>,
}

impl Traffic {
    /// The counts, taken with sending stopped for long enough that the last echo can come back.
    pub(super) fn report(&self) -> Value {
        self.sending.hold(|sent| {
            thread::sleep(SETTLE);
            let echoes = self.echoes.lock().unwrap_or_else(PoisonError::into_inner).report();
            json!({ "sent": sent.next, "errors": sent.errors, "echoes": echoes })
        })
    }
}

pub(super) fn start() -> Result<Traffic> {
    let begin = || -> io::Result<Traffic> {
        netlink::up("eth0")?;
        netlink::add_address("eth0", GUEST)?;
        let socket = UdpSocket::bind((GUEST, GUEST_PORT))?;
        socket.connect((PEER, PORT))?;
        let receiver = socket.try_clone()?;
        let echoes = Arc::new(Mutex::new(Tally::default()));
        let tally = Arc::clone(&echoes);
        thread::spawn(move || {
            let mut buffer = [0; 2 * SIZE];
            loop {
                // An error here repeats one of a send (ECONNREFUSED), which is counted there.
                if let Ok(size) = receiver.recv(&mut buffer) {
                    tally.lock().unwrap_or_else(PoisonError::into_inner).take(&buffer[..size]);
                }
            }
        });
        let sending = Work::start(Sent::default(), move |sent| {
            match socket.send(&pattern::bytes(sent.next, 0, SIZE)) {
                Ok(_) => sent.next += 1,
                Err(error) if sent.errors.len() < 8 => sent.errors.push(error.to_string()),
                Err(_) => {}
            }
            PAUSE
        });
        Ok(Traffic { sending, echoes })
    };
    begin().map_err(|error| Error::failed(format!("eth0: {error}")))
}

/// The host's side: counts datagrams and sends them back, until dropped.
#[derive(Debug)]
pub struct Peer {
    tally: Arc<Mutex<Tally>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Answers at [`PEER`], in the caller's network namespace.
    ///
    /// # Errors
    /// When this host does not have that address.
    pub fn start() -> io::Result<Self> {
        let socket = UdpSocket::bind(SocketAddrV4::new(PEER, PORT))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let tally = Arc::new(Mutex::new(Tally::default()));
        let end = Arc::new(AtomicBool::new(false));
        let (count, over) = (Arc::clone(&tally), Arc::clone(&end));
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2 * SIZE];
            while !over.load(Ordering::Relaxed) {
                let Ok((size, from)) = socket.recv_from(&mut buffer) else { continue };
                count.lock().unwrap_or_else(PoisonError::into_inner).take(&buffer[..size]);
                // A datagram that cannot be sent back is missing at the guest, which counts it.
                let _ = socket.send_to(&buffer[..size], from);
            }
        });
        Ok(Self { tally, end, thread: Some(thread) })
    }

    /// The datagrams received so far.
    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_distinguishes_lost_duplicate_and_corrupt() {
        let mut tally = Tally::default();
        for number in [0, 1, 3, 3] {
            tally.take(&pattern::bytes(number, 0, SIZE));
        }
        let mut damaged = pattern::bytes(4, 0, SIZE);
        damaged[100] ^= 1;
        tally.take(&damaged);
        tally.take(&[0xff; SIZE]);
        tally.take(&[]);
        assert_eq!(tally.report(), json!({ "unique": 3, "duplicates": 1, "corrupt": 3, "missing": [[2, 1]] }));
    }
}
