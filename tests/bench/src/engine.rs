//! minivmm's memory, the engine and its channels, both ends in this process.

use std::path::Path;
use std::thread;
use std::time::Duration;

use minivmm::migration::firmware::Firmware;
use minivmm::migration::ram::MachineRam;
use vmstate::channel::tls::{Connection, TlsChannel, TlsClient, TlsOptions, TlsServer};
use vmstate::channel::{Listener, MonotonicClock, SocketChannel};
use vmstate::migrate::destination::{self, DestinationOptions, Incoming};
use vmstate::migrate::multifd::{Compression, Receivers, Senders};
use vmstate::migrate::source::{self, Outgoing, SourceOptions};
use vmstate::migrate::{Control, DepartureReport, SourcePhase};
use vmstate::ram::GuestRam;
use vmstate::section::Sections;

use crate::case::{Data, Encoding, Transport, Variant};
use crate::guest::{Guest, Log, Still};
use crate::measured::{Taken, processor_time};
use crate::memory::{Ends, Memory};

const CONNECT: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(60);

type Connect<C> = dyn Fn() -> C + Send + Sync;

/// A listener and how to connect to it, without TLS.
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

/// The same, encrypted if the transport is.
fn listen_as(transport: Transport, certificates: &Path) -> (Listener<Option<TlsServer>>, Box<Connect<Connection>>) {
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

/// Migrates the source into the target. Changed pages count from the pause on, in which all of them go.
pub(crate) fn run(memory: &Memory, ends: &Ends, transport: Transport, variant: Variant) -> Taken {
    let (data, certificates) = (memory.data, memory.certificates());
    let (listener, connect) = listen_as(transport, &certificates);
    let control = Control::default();
    let guest = Guest::new((data == Data::Changed).then_some(ends), &control);
    let leaving = MachineRam::leaving(ends.source.clone(), &Firmware::default(), false);
    let arriving = MachineRam::arriving(ends.target.clone(), Firmware::default());
    let report = thread::scope(|scope| {
        scope.spawn(|| arrive(&listener, &arriving));
        depart(&leaving, &*connect, variant, &guest, &control)
    });
    let time = match (data, report.downtime) {
        (Data::Changed, Some(downtime)) => downtime.total() - downtime.pause,
        _ => report.total,
    };
    let (cpu, bytes) = guest.before.get();
    Taken { time, cpu: processor_time(std::process::id()) - cpu, bytes: report.bytes - bytes }
}

fn arrive(listener: &Listener<Option<TlsServer>>, ram: &MachineRam) {
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
        destination::run(incoming, &options, &Control::default()).into_result().expect("it arrives");
        receivers.close();
        workers.join().expect("the page channels end");
    });
}

fn depart(
    ram: &MachineRam,
    connect: &Connect<Connection>,
    variant: Variant,
    guest: &Guest<'_>,
    control: &Control,
) -> DepartureReport {
    let mut parameters = control.parameters();
    parameters.pause_budget = Some(LONGEST);
    parameters.xbzrle = variant.encoding == Encoding::Xbzrle;
    parameters.xbzrle_cache_size = 2 * ram.blocks()[0].len;
    control.set_parameters(parameters).expect("parameters");
    let compression = match variant.encoding {
        Encoding::Zstd => Compression::Zstd { level: 1 },
        Encoding::Plain | Encoding::Xbzrle => Compression::None,
    };
    let mut main = connect();
    let mut options = SourceOptions::new("bench");
    let departure = thread::scope(|scope| {
        let senders = variant.page_channels().map(|channels| Senders::new(channels, compression));
        if let Some(senders) = &senders {
            for id in 0..variant.channels {
                let (worker, mut channel) = (senders.worker(id), connect());
                scope.spawn(move || worker.run(&mut channel, ram));
            }
        }
        options.page_channels = senders;
        let outgoing = Outgoing {
            channel: &mut main,
            clock: &MonotonicClock::new(),
            machine: &mut Still(Some(guest)),
            sections: &mut Sections::new(),
            ram,
            log: &mut Log(guest),
        };
        source::run(outgoing, &options, control)
    });
    assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
    departure.report
}
