//! Migrates minivmm's memory with the engine and its channels; both ends are in this process.

use std::path::Path;
use std::thread;
use std::time::Duration;

use minivmm::migration::firmware::Firmware;
use minivmm::migration::ram::MachineRam;
use vmstate::channel::tls::{Connection, TlsChannel, TlsClient, TlsOptions, TlsServer};
use vmstate::channel::{Channel, Listener, MonotonicClock, SocketChannel};
use vmstate::migrate::destination::{self, DestinationOptions, Incoming};
use vmstate::migrate::multifd::{Compression, Receivers, Senders};
use vmstate::migrate::source::{self, Departure, Outgoing, SourceOptions};
use vmstate::migrate::{ArrivalReport, Control, Machine, SourcePhase};
use vmstate::ram::DirtyLog;
use vmstate::section::Sections;

use crate::case::{Data, Encoding, Transport, Variant};
use crate::guest::{Guest, Log, Still};
use crate::measured::{TurnResult, processor_time};
use crate::memory::{Ends, Memory};

const CONNECT: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(60);

type Connect<C> = dyn Fn() -> C + Send + Sync;

/// A listener and a function that connects to it, without TLS.
pub(crate) fn listen(transport: Transport) -> (Listener, Box<Connect<SocketChannel>>) {
    match transport {
        Transport::Unix => {
            let path = std::env::temp_dir().join(format!("vmstate-bench-{}", std::process::id()));
            let listener = Listener::unix(&path).expect("a listener");
            (listener, Box::new(move || SocketChannel::connect_unix(&path, CONNECT, &|| true).expect("a connection")))
        }
        Transport::Tcp | Transport::Tls => {
            let listener = Listener::tcp("127.0.0.1:0").expect("a listener");
            let address = listener.tcp_address().expect("an address").to_string();
            (listener, Box::new(move || SocketChannel::connect_tcp(&address, CONNECT, &|| true).expect("a connection")))
        }
    }
}

/// As [`listen`], encrypted if the transport is.
pub(crate) fn listen_as(
    transport: Transport,
    certificates: &Path,
) -> (Listener<Option<TlsServer>>, Box<Connect<Connection>>) {
    let (listener, connect) = listen(transport);
    if transport != Transport::Tls {
        return (listener.with_tls(None), Box::new(move || connect().into()));
    }
    let options = TlsOptions { directory: certificates.into(), pins: Vec::new(), authorized: Vec::new() };
    let server = TlsServer::new(&options).expect("a server's certificate");
    let client = TlsClient::new(&options).expect("a client's certificate");
    let secured = move || {
        let mut channel = TlsChannel::client(connect(), &client, "localhost").expect("a client");
        channel.handshake(CONNECT).expect("a handshake");
        channel.into()
    };
    (listener.with_tls(server), Box::new(secured))
}

/// Options of the source.
pub(crate) struct Leaving<'a> {
    /// Number and compression of the page channels, if there are any beside the main channel.
    pub(crate) page_channels: Option<(u8, Compression)>,
    pub(crate) machine: &'a mut dyn Machine,
    pub(crate) log: &'a mut dyn DirtyLog,
    pub(crate) control: &'a Control,
}

/// Migrates the source into the target. Changed pages are measured from the pause on, in which all of them are sent.
pub(crate) fn run(memory: &Memory, ends: &Ends, transport: Transport, variant: Variant) -> TurnResult {
    let (data, certificates) = (memory.data, memory.certificates());
    let (listener, connect) = listen_as(transport, &certificates);
    let control = Control::default();
    let guest = Guest::new((data == Data::Changed).then_some(ends), &control);
    let mut parameters = control.parameters();
    parameters.pause_budget = Some(LONGEST);
    parameters.xbzrle = variant.encoding == Encoding::Xbzrle;
    parameters.xbzrle_cache_size = 2 * ends.source.len();
    control.set_parameters(parameters).expect("parameters");
    let compression = match variant.encoding {
        Encoding::Zstd => Compression::Zstd { level: 1 },
        Encoding::Plain | Encoding::Xbzrle => Compression::None,
    };
    let leaving = Leaving {
        page_channels: variant.page_channels().map(|channels| (channels, compression)),
        machine: &mut Still(Some(&guest)),
        log: &mut Log(&guest),
        control: &control,
    };
    let departure = migrate(ends, &listener, &*connect, leaving);
    assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
    let report = departure.report;
    let time = match (data, report.downtime) {
        (Data::Changed, Some(downtime)) => downtime.total() - downtime.pause,
        _ => report.total,
    };
    let (cpu, bytes) = guest.before.get();
    TurnResult { time, cpu: processor_time(std::process::id()) - cpu, bytes: report.bytes - bytes }
}

/// Migrates the source into the target, over connections from `connect` to `listener`.
pub(crate) fn migrate<C: Channel + Send>(
    ends: &Ends,
    listener: &Listener<Option<TlsServer>>,
    connect: impl Fn() -> C,
    leaving: Leaving<'_>,
) -> Departure {
    let source = MachineRam::leaving(ends.source.clone(), &Firmware::default(), false);
    let target = MachineRam::arriving(ends.target.clone(), Firmware::default());
    thread::scope(|scope| {
        let arriving = scope.spawn(|| arrive(listener, &target));
        let departure = depart(&source, connect, leaving);
        let arrived = arriving.join().expect("the destination does not panic");
        assert_eq!(arrived.is_ok(), departure.phase == SourcePhase::Completed, "{arrived:?}");
        departure
    })
}

fn arrive(listener: &Listener<Option<TlsServer>>, ram: &MachineRam) -> vmstate::Result<ArrivalReport> {
    let mut main = listener.accept_source(&|| true).expect("a source");
    let receivers = Receivers::new();
    let mut options = DestinationOptions::new("bench");
    options.page_channels = Some(receivers.clone());
    thread::scope(|scope| {
        let workers = scope.spawn(|| {
            while let Ok(mut channel) = listener.accept_pages(&|| !receivers.is_over()) {
                let receivers = &receivers;
                scope.spawn(move || receivers.worker().run(&mut channel, ram));
            }
        });
        let incoming = Incoming {
            channel: &mut main,
            clock: &MonotonicClock::new(),
            machine: &mut Still(None),
            sections: &mut Sections::new(),
            ram,
        };
        let arrived = destination::run(incoming, &options, &Control::default()).into_result();
        receivers.close();
        workers.join().expect("the page channels end");
        arrived
    })
}

fn depart<C: Channel + Send>(ram: &MachineRam, connect: impl Fn() -> C, leaving: Leaving<'_>) -> Departure {
    let Leaving { page_channels, machine, log, control } = leaving;
    let mut main = connect();
    let mut options = SourceOptions::new("bench");
    thread::scope(|scope| {
        if let Some((channels, compression)) = page_channels {
            let senders = Senders::new(channels, compression);
            for id in 0..channels {
                let (worker, mut channel) = (senders.worker(id), connect());
                scope.spawn(move || worker.run(&mut channel, ram));
            }
            options.page_channels = Some(senders);
        }
        let outgoing = Outgoing {
            channel: &mut main,
            clock: &MonotonicClock::new(),
            machine,
            sections: &mut Sections::new(),
            ram,
            log,
        };
        source::run(outgoing, &options, control)
    })
}
