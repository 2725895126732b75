//! Incoming migration: a thread that waits for the source or reads a file, runs the engine, and reports the end.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use vmstate::channel::tls::{Connection, TlsChannel, TlsServer};
use vmstate::channel::{Channel, Listener, MonotonicClock, SocketChannel};
use vmstate::migrate::destination::{self, Arrival, DestinationOptions, Incoming};
use vmstate::migrate::multifd::Receivers;
use vmstate::migrate::snapshot::FileThreads;
use vmstate::migrate::{Control, DestinationPhase, Phase};

use super::channels::PageThreads;
use super::connector::complete_handshake;
use super::descriptor;
use super::ended::Ended;
use super::engine_machine::EngineMachine;
use super::reconnect_listeners::ReconnectListeners;
use super::replaceable::{Connections, NoOthers, Replaceable};
use super::state_file::StateFile;
use super::to_file;
use crate::command;
use crate::config::{Address, Descriptor, ListenAt, Tls};
use crate::error::{Error, RateLimitedLog, Result, chain};
use crate::machine_map::MACHINE_TYPE;
use crate::migration::firmware::Firmware;
use crate::migration::preflight::Preflight;
use crate::migration::qemu_sections::KeptSections;
use crate::migration::ram::MachineRam;
use crate::migration::sections::Parts;
use crate::passed;
use crate::sandbox::{self, Kind};
use crate::sync::lock;
use crate::vm::published::Published;
use crate::vm::request::Refusal;

/// Listener for a source, with TLS if it is set.
pub(in crate::vm) type IncomingListener = Listener<Option<TlsServer>>;

/// Origin of a guest.
#[derive(Debug)]
pub(in crate::vm) enum Origin {
    /// A source that connects.
    Listener(IncomingListener),
    /// A connected source, with TLS if it is set.
    Connection(SocketChannel, Option<TlsServer>),
    /// A process of this host, whose memory is already mapped.
    HandedOver(SocketChannel),
    /// A file with a whole guest.
    File(StateFile),
}

/// Listens as the command line says, so that a source may connect from now on, or opens the file; `None` if the address is
/// given later. A unix socket's file is removed with the machine, except that of a passed socket.
///
/// # Errors
/// [`Error::Flag`].
pub(in crate::vm) fn listen_at(at: &ListenAt, tls: &Tls) -> Result<Option<Origin>> {
    let server = || server(tls).map_err(|what| Error::Flag { flag: "--tls-creds", what });
    let origin = match at {
        // A guest that is handed over has arrived before the machine is made.
        ListenAt::Deferred | ListenAt::Transfer { .. } => return Ok(None),
        ListenAt::Address(Address::Exec(line)) => {
            let server = server()?;
            // The command ends with its end of the connection. It is waited for only to avoid a zombie.
            let socket = command::run(line).and_then(|(mut child, socket)| {
                sandbox::spawn(Kind::Console, "command", move || child.wait())?;
                SocketChannel::connected(socket)
            });
            let refused = |error| format!("exec:{line}: {error}");
            socket.map(|socket| Origin::Connection(socket, server)).map_err(refused)
        }
        ListenAt::Address(address) => {
            origin(address, server()?, |name| name.to_socket_addrs().map(Vec::from_iter), false)
        }
        ListenAt::Passed(path) => {
            let passed = passed::descriptor(passed::reference(path).unwrap_or_default()).ok().map(Descriptor::from);
            descriptor::origin(&path.display().to_string(), passed.as_ref(), server()?)
        }
    };
    origin.map(Some).map_err(|what| Error::Flag { flag: "--incoming", what })
}

/// Makes the TLS server, if `tls` requires encrypted connections.
///
/// # Errors
/// The reason, as a sentence for the user.
pub(super) fn server(tls: &Tls) -> std::result::Result<Option<TlsServer>, String> {
    let server = tls.options().map(|options| TlsServer::new(&options)).transpose();
    server.map_err(|error| format!("tls-creds {error}"))
}

/// Listens at `address`, whose name `look_up` resolves, with TLS if there is a `server`; or opens the file, for direct I/O if
/// `direct` is true.
///
/// # Errors
/// The reason, as a sentence for the user.
pub(super) fn origin(
    address: &Address,
    server: Option<TlsServer>,
    look_up: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>>,
    direct: bool,
) -> std::result::Result<Origin, String> {
    let listener = match address {
        Address::File { path, offset } => return StateFile::open(path, *offset, direct).map(Origin::File),
        Address::Unix(path) => Listener::unix(path),
        Address::Tcp(host_and_port) => look_up(host_and_port).and_then(|addresses| Listener::tcp(&*addresses)),
        Address::Vsock { cid, port } => Listener::vsock(*cid, *port),
        Address::Exec(_) => return Err(descriptor::NO_PROGRAMS.into()),
        Address::Local(_) => {
            let why = "the memory that is handed over has to be there when the machine is made: start one with --incoming and this";
            return Err(format!("{address}: {why}"));
        }
        Address::Descriptor { passed, .. } => return descriptor::origin(&address.to_string(), passed.as_ref(), server),
    };
    let listener = listener.map_err(|error| format!("{address}: {error}; give an address that nobody listens at"))?;
    Ok(Origin::Listener(listener.with_tls(server)))
}

/// State of the thread that receives a guest.
pub(super) struct IncomingTask {
    pub(super) parts: Parts,
    pub(super) ram: MachineRam,
    pub(super) firmware: Firmware,
    pub(super) machine: EngineMachine,
    pub(super) control: Control,
    /// Published state, for the reason of a refused source.
    pub(super) shared: Arc<Published>,
    pub(super) log: RateLimitedLog,
    /// Addresses for post-copy's reconnection; `None` while they are in use.
    pub(super) again: Option<ReconnectListeners>,
}

impl IncomingTask {
    /// Receives the first source that gets so far that it changes the machine; its connection is returned open.
    pub(super) fn await_source(mut self, listener: &Arc<IncomingListener>) -> (Ended, Option<Connection>) {
        loop {
            // The connection of a refused source closes after the machine has published the reason.
            let (arrival, channel) = match self.take_in_source(listener) {
                Ok(taken_in) => taken_in,
                Err(why) => return (failed(why), None),
            };
            let why = arrival.error.as_ref().map(|error| chain(error));
            if arrival.pristine && !self.control.is_cancelled() {
                let why = why.unwrap_or_default();
                self.log.print(format_args!("a migration's source was turned away: {why}; waiting for the next one"));
                self.shared.update_migration(|info| info.error = Some(format!("a source was turned away: {why}")));
                continue;
            }
            return (self.ended(arrival.phase, why), channel);
        }
    }

    /// Receives the source that is connected by `socket`, which is returned open. There is no other source to wait for.
    pub(super) fn receive_connected(
        mut self,
        socket: SocketChannel,
        server: Option<TlsServer>,
    ) -> (Ended, Option<Connection>) {
        let control = self.control.clone();
        let connection = match server {
            Some(server) => TlsChannel::server(socket, &server)
                .and_then(|channel| complete_handshake(channel, &|| !control.is_cancelled())),
            None => Ok(socket.into()),
        };
        let channel = match connection {
            Ok(channel) => channel,
            Err(error) => return (failed(error.to_string()), None),
        };
        match self.take_in_over(channel, None) {
            Ok((arrival, channel)) => {
                let why = arrival.error.as_ref().map(|error| chain(error));
                (self.ended(arrival.phase, why), channel)
            }
            Err(why) => (failed(why), None),
        }
    }

    /// Receives the guest that is in `file`.
    pub(super) fn read(mut self, mut file: StateFile) -> Ended {
        self.machine.reading();
        let arrival = match self.read_pages(&mut file) {
            Ok(arrival) => arrival,
            Err(why) => return failed(why),
        };
        let why = arrival.error.as_ref().map(|error| format!("{}: {}", file.path.display(), chain(error)));
        self.ended(arrival.phase, why)
    }

    /// Reads the guest, with as many threads for its pages as the parameters say.
    fn read_pages(&mut self, file: &mut StateFile) -> std::result::Result<Arrival, String> {
        let count = to_file::threads(&self.shared.parameters()).map_err(|Refusal(why)| why)?;
        let files = (count > 0).then(|| file.direct.take().map_or_else(FileThreads::new, FileThreads::on));
        let threads = files.as_ref().map(|files| PageThreads::in_file(files, count, &self.ram));
        let _threads = threads.transpose().map_err(|error| error.to_string())?;
        self.take_in(&mut file.channel, (None, files))
    }

    fn ended(&self, phase: DestinationPhase, why: Option<String>) -> Ended {
        let error = match phase {
            DestinationPhase::Stranded => why.map(|why| format!("the guest is here whole and could not go on: {why}")),
            _ => why,
        };
        let unrecorded = lock(&self.parts.tickets).received().is_none();
        Ended { phase: Phase::Destination(phase), error, unrecorded }
    }

    /// Waits for a source and receives its stream; the connection is returned open.
    fn take_in_source(
        &mut self,
        listener: &Arc<IncomingListener>,
    ) -> std::result::Result<(Arrival, Option<Connection>), String> {
        let control = self.control.clone();
        let go_on = || !control.is_cancelled();
        let channel = listener.accept_source(&go_on).map_err(|error| error.to_string())?;
        let receivers = Receivers::new();
        let _threads = PageThreads::receive(&receivers, listener, &self.ram).map_err(|error| error.to_string())?;
        self.take_in_over(channel, Some(receivers))
    }

    /// Receives the stream of `connection`, and in post-copy of later ones; the last one is returned open.
    fn take_in_over(
        &mut self,
        connection: Connection,
        page_channels: Option<Receivers>,
    ) -> std::result::Result<(Arrival, Option<Connection>), String> {
        let mut again = self.again.take();
        let others: &mut dyn Connections = match &mut again {
            Some(again) => again,
            None => &mut NoOthers,
        };
        let mut channel = Replaceable::new(connection, others);
        let arrival = self.take_in(&mut channel, (page_channels, None));
        let connection = channel.into_connection();
        self.again = again;
        Ok((arrival?, connection))
    }

    fn take_in(
        &mut self,
        channel: &mut dyn Channel,
        (page_channels, file_threads): (Option<Receivers>, Option<FileThreads>),
    ) -> std::result::Result<Arrival, String> {
        self.machine.await_source();
        // A refused source may have sent its preflight.
        let mut state = lock(&self.parts.state);
        (state.preflight, state.kept) = (Preflight::default(), KeptSections::default());
        drop(state);
        lock(&self.parts.generation).forget();
        self.firmware.clear();
        self.ram.measure_block_time(self.shared.begin_block_time());
        let mut options = DestinationOptions::new(MACHINE_TYPE);
        (options.page_channels, options.file_threads) = (page_channels, file_threads);
        let mut sections = self.parts.sections().map_err(|error| chain(&error))?;
        let incoming = Incoming {
            channel,
            clock: &MonotonicClock::new(),
            machine: &mut self.machine,
            sections: &mut sections,
            ram: &self.ram,
        };
        Ok(destination::run(incoming, &options, &self.control))
    }
}

fn failed(why: String) -> Ended {
    Ended { phase: Phase::Destination(DestinationPhase::Failed), error: Some(why), unrecorded: false }
}
