//! An incoming migration: a thread that waits for the source, runs the engine, and says how it ended.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, PoisonError};

use vmstate::channel::tls::{Connection, TlsServer};
use vmstate::channel::{Listener, MonotonicClock};
use vmstate::migrate::destination::{self, Arrival, DestinationOptions, Incoming};
use vmstate::migrate::multifd::Receivers;
use vmstate::migrate::{Control, DestinationPhase, Phase};

use super::channels::PageThreads;
use super::ended::Ended;
use super::seam::Seam;
use crate::boot::layout::MACHINE_TYPE;
use crate::config::{Address, ListenAt, Tls};
use crate::error::{Error, Result, SparingLog, chain};
use crate::migration::firmware::Firmware;
use crate::migration::kept::KeptSections;
use crate::migration::preflight::Preflight;
use crate::migration::ram::MachineRam;
use crate::migration::sections::Parts;
use crate::passed;
use crate::vm::published::Published;

/// Where a source is awaited: it speaks TLS, if that was asked for.
pub(in crate::vm) type Door = Listener<Option<TlsServer>>;

/// Listens as the command line says, so that a source may connect from now on; `None`: that is said later. A unix socket's file
/// goes with the machine, but that of a passed one.
///
/// # Errors
/// [`Error::Flag`].
pub(in crate::vm) fn listen_at(at: &ListenAt, tls: &Tls) -> Result<Option<Door>> {
    let listener = match at {
        ListenAt::Address(address) => listen(address, |name| name.to_socket_addrs().map(Vec::from_iter)),
        ListenAt::Passed(path) => {
            let socket = passed::descriptor(passed::reference(path).unwrap_or_default());
            let listener = socket.and_then(Listener::listening);
            listener.map_err(|error| format!("{}: {error}; pass a stream socket that listens", path.display()))
        }
        ListenAt::Deferred => return Ok(None),
    };
    let listener = listener.map_err(|what| Error::Flag { flag: "--incoming", what })?;
    secure(listener, tls).map(Some).map_err(|what| Error::Flag { flag: "--tls-creds", what })
}

/// Lets nobody in at `listener` who does not speak TLS, if that is asked for.
///
/// # Errors
/// A sentence for the user.
pub(super) fn secure(listener: Listener, tls: &Tls) -> std::result::Result<Door, String> {
    let server = tls.options().map(|options| TlsServer::new(&options)).transpose();
    Ok(listener.with_tls(server.map_err(|error| format!("tls-creds {error}"))?))
}

/// Listens at `address`, whose name `look_up` finds.
///
/// # Errors
/// A sentence for the user.
pub(super) fn listen(
    address: &Address,
    look_up: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>>,
) -> std::result::Result<Listener, String> {
    let listener = match address {
        Address::Unix(path) => Listener::unix(path),
        Address::Tcp(host_and_port) => look_up(host_and_port).and_then(|addresses| Listener::tcp(&*addresses)),
        Address::File { .. } => Err(io::Error::new(io::ErrorKind::InvalidInput, "nobody is awaited at a file")),
    };
    listener.map_err(|error| format!("{address}: {error}; give an address that nobody listens at"))
}

/// What the thread works with.
pub(super) struct Reception {
    pub(super) listener: Arc<Door>,
    pub(super) parts: Parts,
    pub(super) ram: MachineRam,
    pub(super) firmware: Firmware,
    pub(super) seam: Seam,
    pub(super) control: Control,
    /// Where a source that was turned away is told of.
    pub(super) shared: Arc<Published>,
    pub(super) log: SparingLog,
}

impl Reception {
    /// Takes in the first source that comes so far that it changes something of the machine; its connection is still open.
    pub(super) fn run(mut self) -> (Ended, Option<Connection>) {
        loop {
            // One that is turned away sees its connection close once the machine has said why.
            let (arrival, channel) = match self.take_in() {
                Ok(taken_in) => taken_in,
                Err(why) => {
                    let phase = Phase::Destination(DestinationPhase::Failed);
                    return (Ended { phase, error: Some(why), unrecorded: false }, None);
                }
            };
            let why = arrival.error.as_ref().map(|error| chain(error));
            if arrival.pristine && !self.control.is_cancelled() {
                let why = why.unwrap_or_default();
                self.log.say(format_args!("a migration's source was turned away: {why}; waiting for the next one"));
                self.shared.update_migration(|info| info.error = Some(format!("a source was turned away: {why}")));
                continue;
            }
            let error = match arrival.phase {
                DestinationPhase::Stranded => {
                    why.map(|why| format!("the guest is here whole and could not go on: {why}"))
                }
                _ => why,
            };
            let unrecorded = self.parts.tickets.lock().unwrap_or_else(PoisonError::into_inner).told().is_none();
            return (Ended { phase: Phase::Destination(arrival.phase), error, unrecorded }, Some(channel));
        }
    }

    /// Waits for a source and takes in what it sends; the connection is still open then.
    fn take_in(&mut self) -> std::result::Result<(Arrival, Connection), String> {
        let go_on = || !self.control.is_cancelled();
        let mut channel = self.listener.accept_source(&go_on).map_err(|error| error.to_string())?;
        self.seam.await_source();
        let (receivers, mut options) = (Receivers::new(), DestinationOptions::new(MACHINE_TYPE));
        options.page_channels = Some(receivers.clone());
        let _threads =
            PageThreads::receive(&receivers, &self.listener, &self.ram).map_err(|error| error.to_string())?;
        // A source that was turned away may have introduced itself.
        let mut state = self.parts.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.preflight, state.kept) = (Preflight::default(), KeptSections::default());
        drop(state);
        self.firmware.clear();
        let mut sections = self.parts.sections().map_err(|error| chain(&error))?;
        let incoming = Incoming {
            channel: &mut channel,
            clock: &MonotonicClock::new(),
            machine: &mut self.seam,
            sections: &mut sections,
            ram: &self.ram,
        };
        let arrival = destination::run(incoming, &options, &self.control);
        Ok((arrival, channel))
    }
}
