//! Finds the addresses of a destination's name, on a thread that is there from the start: the system's resolver opens files and
//! sockets as it likes, and no thread that a guest or a peer speaks to may.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use crate::sandbox::{self, Kind};

/// How often a wait asks whether to go on.
const LOOK: Duration = Duration::from_millis(20);

/// To the thread, which ends with the last clone.
#[derive(Clone, Debug)]
pub(in crate::vm) struct LookUp(Sender<Question>);

/// A name with its port, and where the answer goes.
type Question = (String, Sender<io::Result<Vec<SocketAddr>>>);

impl LookUp {
    /// Starts the thread.
    ///
    /// # Errors
    /// The thread cannot be spawned.
    pub(in crate::vm) fn start() -> io::Result<Self> {
        let (ask, questions) = mpsc::channel::<Question>();
        sandbox::spawn(Kind::LookUp, "look-up", move || {
            while let Ok((name, answer)) = questions.recv() {
                // Who asked may have given up.
                let _ = answer.send(name.to_socket_addrs().map(Vec::from_iter));
            }
        })?;
        Ok(Self(ask))
    }

    /// Addresses of `host:port`. The system's look-up can be neither bounded nor called off; one that is left behind keeps the next
    /// one waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] at `deadline`, [`io::ErrorKind::ConnectionAborted`] once `go_on` says false; else the system's.
    pub(super) fn addresses(
        &self,
        name: &str,
        deadline: Instant,
        go_on: &dyn Fn() -> bool,
    ) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = name.parse() {
            return Ok(vec![address]);
        }
        let (found, addresses) = mpsc::channel();
        let ended = || io::Error::other("the name look-up has ended");
        self.0.send((name.to_owned(), found)).map_err(|_| ended())?;
        loop {
            match addresses.recv_timeout(LOOK) {
                Ok(addresses) => return addresses,
                Err(RecvTimeoutError::Disconnected) => return Err(ended()),
                Err(RecvTimeoutError::Timeout) if !go_on() => return Err(io::ErrorKind::ConnectionAborted.into()),
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the name look-up takes too long"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
