//! An incoming migration: a thread that waits for the source, runs the engine, and says how it ended.

use std::sync::{Arc, PoisonError};

use vmstate::channel::{Listener, MonotonicClock, SocketChannel};
use vmstate::migrate::destination::{self, Arrival, DestinationOptions, Incoming};
use vmstate::migrate::multifd::Receivers;
use vmstate::migrate::{Control, DestinationPhase, Phase};

use super::channels::PageThreads;
use super::ended::Ended;
use super::seam::Seam;
use crate::boot::layout::MACHINE_TYPE;
use crate::config::{Address, ListenAt};
use crate::error::{Error, Result, SparingLog, chain};
use crate::migration::firmware::Firmware;
use crate::migration::kept::KeptSections;
use crate::migration::preflight::Preflight;
use crate::migration::ram::MachineRam;
use crate::migration::sections::Parts;
use crate::passed;
use crate::vm::published::Published;

/// Listens, so that a source may connect from now on. A unix socket's file goes with the machine, but that of a passed one.
///
/// # Errors
/// [`Error::Flag`].
pub(in crate::vm) fn listen(at: &ListenAt) -> Result<Listener> {
    let refused = |what: String| Error::Flag { flag: "--incoming", what };
    match at {
        ListenAt::Address(address) => {
            let listener = match address {
                Address::Unix(path) => Listener::unix(path),
                Address::Tcp(host_and_port) => Listener::tcp(host_and_port.as_str()),
            };
            listener.map_err(|error| refused(format!("{address}: {error}; give an address that nobody listens at")))
        }
        ListenAt::Passed(path) => {
            let socket = passed::descriptor(passed::reference(path).unwrap_or_default());
            let listener = socket.and_then(Listener::listening);
            listener.map_err(|error| refused(format!("{}: {error}; pass a stream socket that listens", path.display())))
        }
    }
}

/// What the thread works with.
pub(super) struct Reception {
    pub(super) listener: Arc<Listener>,
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
    pub(super) fn run(mut self) -> (Ended, Option<SocketChannel>) {
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
    fn take_in(&mut self) -> std::result::Result<(Arrival, SocketChannel), String> {
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
