//! Resolves a destination's host name on a thread that exists from the start: the system's resolver opens arbitrary files and
//! sockets, which no thread that handles input of a guest or a peer may.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use crate::sandbox::{self, Kind};

/// Interval at which a wait checks whether to continue.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Sender to the thread, which ends with the last clone.
#[derive(Clone, Debug)]
pub(in crate::vm) struct LookUp(Sender<Question>);

/// A name with its port, and the channel for the answer.
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
                // The sender may have given up.
                let _ = answer.send(name.to_socket_addrs().map(Vec::from_iter));
            }
        })?;
        Ok(Self(ask))
    }

    /// Resolves `host:port`. The system's resolver can be neither bounded nor cancelled; one that is left behind delays the
    /// next request.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] at `deadline`, [`io::ErrorKind::ConnectionAborted`] once `go_on` returns false; else the
    /// system's.
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
            match addresses.recv_timeout(CHECK_INTERVAL) {
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
