//! minivmm's memory, the engine and its channels, both ends in this process.

use std::thread;
use std::time::Duration;

use minivmm::migration::firmware::Firmware;
use minivmm::migration::ram::MachineRam;
use vmstate::channel::{Listener, MonotonicClock, SocketChannel};
use vmstate::migrate::destination::{self, DestinationOptions, Incoming};
use vmstate::migrate::multifd::{Compression, Receivers, Senders};
use vmstate::migrate::source::{self, Outgoing, SourceOptions};
use vmstate::migrate::{Claim, Control, Machine, SourcePhase};
use vmstate::ram::DirtyLog;
use vmstate::section::Sections;

use crate::case::{Transport, Variant};
use crate::measured::{Taken, processor_time};
use crate::memory::Memory;

const CONNECT: Duration = Duration::from_secs(10);

/// Nothing runs, so nothing is written.
struct Still;

impl DirtyLog for Still {
    fn start(&mut self) -> vmstate::Result<()> {
        Ok(())
    }
    fn sync(&mut self, _block: usize, _words: &mut [u64]) -> vmstate::Result<()> {
        Ok(())
    }
    fn clear(&mut self, _block: usize, _first: u64, _count: u64) -> vmstate::Result<()> {
        Ok(())
    }
    fn stop(&mut self) {}
}

impl Machine for Still {
    fn pause(&mut self, _within: Duration) -> vmstate::Result<()> {
        Ok(())
    }
    fn loaded(&mut self) -> vmstate::Result<()> {
        Ok(())
    }
    fn resume(&mut self) -> vmstate::Result<()> {
        Ok(())
    }
    fn release(&mut self) -> vmstate::Result<()> {
        Ok(())
    }
    fn claim(&mut self) -> vmstate::Result<Claim> {
        Ok(Claim::Undecidable)
    }
}

/// A listener and how to connect to it.
pub(crate) fn listen(transport: Transport) -> (Listener, Box<dyn Fn() -> SocketChannel + Send + Sync>) {
    match transport {
        Transport::Unix => {
            let path = std::env::temp_dir().join(format!("vmstate-bench-{}", std::process::id()));
            let listener = Listener::unix(&path).expect("a listener");
            (listener, Box::new(move || SocketChannel::connect_unix(&path, CONNECT, &|| true).expect("a connection")))
        }
        Transport::Tcp => {
            let listener = Listener::tcp("127.0.0.1:0").expect("a listener");
            let address = listener.tcp_address().expect("an address").to_string();
            (listener, Box::new(move || SocketChannel::connect_tcp(&address, CONNECT, &|| true).expect("a connection")))
        }
    }
}

pub(crate) fn run(memory: &Memory, transport: Transport, variant: Variant) -> Taken {
    let (listener, connect) = listen(transport);
    let before = processor_time(std::process::id());
    let time = thread::scope(|scope| {
        scope.spawn(|| arrive(&listener, &MachineRam::arriving(memory.target.clone(), Firmware::default())));
        let leaving = MachineRam::leaving(memory.source.clone(), &Firmware::default(), false);
        depart(&leaving, &*connect, variant)
    });
    Taken { time, cpu: processor_time(std::process::id()) - before }
}

fn arrive(listener: &Listener, ram: &MachineRam) {
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
            machine: &mut Still,
            sections: &mut Sections::new(),
            ram,
        };
        destination::run(incoming, &options, &Control::default()).into_result().expect("it arrives");
        receivers.close();
        workers.join().expect("the page channels end");
    });
}

/// Returns how long the migration took.
fn depart(ram: &MachineRam, connect: &dyn Fn() -> SocketChannel, variant: Variant) -> Duration {
    let mut main = connect();
    let control = Control::default();
    control.set_bandwidth_limit(0);
    let mut options = SourceOptions::new("bench");
    let departure = thread::scope(|scope| {
        let senders = variant.page_channels().map(|channels| Senders::new(channels, Compression::None));
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
            machine: &mut Still,
            sections: &mut Sections::new(),
            ram,
            log: &mut Still,
        };
        source::run(outgoing, &options, &control)
    });
    assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
    departure.report.total
}
