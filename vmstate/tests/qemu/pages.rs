//! Guest memory to a QEMU that does not run it, and back from there, over page channels: the oracle is QEMU's own view of the
//! memory, and then each page that returns.

use std::thread;

use serde_json::json;
use vmstate::channel::{Channel, Listener, MonotonicClock, Plain, Security, SocketChannel};
use vmstate::migrate::destination::{self, Incoming};
use vmstate::migrate::multifd::{Compression, Receivers, Senders};
use vmstate::migrate::source::{self, Outgoing};
use vmstate::migrate::{Control, SourcePhase};
use vmstate::ram::GuestRam;
use vmstate::section::{Section, Sections};
use vmstate_lab::random::Random;
use vmstate_lab::wait::{TIMEOUT, find};

use super::{BLOCKS, Qemu, Ram, Still, Vm, devices, lenient, long_timeouts, skipped};

/// The guest sees firmware in this range, and RAM around it.
const FIRMWARE: std::ops::Range<usize> = 0xe_0000..0x10_0000;

/// Noise, zeros, and pages as programs leave them: equal words, text, and pages with an empty rest.
fn fill(ram: &Ram, seed: u64) {
    let mut random = Random::new(seed);
    let mut bytes = ram.bytes.lock().unwrap();
    let pages = bytes.iter_mut().flat_map(|block| block.chunks_exact_mut(4096));
    for (number, page) in pages.enumerate() {
        // Sequences of one to eight pages of a kind.
        match (number / 8 + number) % 5 {
            0 => {}
            1 | 2 => page.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.number().to_ne_bytes())),
            3 => {
                let base = 0xffff_8880_0000_0000 + random.below(1 << 30);
                let words = page.chunks_exact_mut(16).enumerate();
                words.for_each(|(at, word)| word[..8].copy_from_slice(&(base + 64 * at as u64).to_ne_bytes()));
            }
            _ => {
                let text = b"the quick brown fox jumps over the lazy dog\n".iter().cycle();
                let len = 1 + random.below(4096) as usize;
                page.iter_mut().zip(text).take(len).for_each(|(byte, letter)| *byte = *letter);
            }
        }
    }
}

/// Configures QEMU's page channels, as source or as destination.
fn channels(qemu: &mut Qemu, number: u8, compression: Compression) {
    qemu.switch_on(&["multifd", "return-path"]);
    let compression = if compression == Compression::None { "none" } else { "zstd" };
    qemu.execute("migrate-set-parameters", json!({"multifd-channels": number, "multifd-compression": compression}));
}

/// The connection between QEMU and the engine.
struct Wire<'a, C, S: Security> {
    /// Arguments of QEMU; if there are any, it has the credentials `server` and `client`.
    objects: Vec<String>,
    connect: &'a dyn Fn(SocketChannel) -> C,
    listen: &'a dyn Fn(Listener) -> Listener<S>,
}

impl Wire<'_, SocketChannel, Plain> {
    fn plain() -> Self {
        Wire { objects: Vec::new(), connect: &|socket| socket, listen: &|listener| listener }
    }
}

impl<C, S: Security> Wire<'_, C, S> {
    fn tell(&self, qemu: &mut Qemu, credentials: &str) {
        if !self.objects.is_empty() {
            qemu.execute("migrate-set-parameters", json!({"tls-creds": credentials, "tls-hostname": "there.example"}));
        }
    }
}

fn there_and_back<C, S>(number: u8, compression: Compression, wire: &Wire<'_, C, S>)
where
    C: Channel + Send,
    S: Security<Channel: Send> + Sync,
{
    let directory = tempfile::tempdir().unwrap();
    let [socket, back, dump] = ["socket", "back", "dump"].map(|name| directory.path().join(name));
    let objects = wire.objects.iter().map(String::as_str);
    let mut qemu = Qemu::start(&["-incoming", "defer"].into_iter().chain(objects).collect::<Vec<_>>());
    channels(&mut qemu, number, compression);
    wire.tell(&mut qemu, "server");
    qemu.execute("migrate-incoming", json!({"uri": format!("unix:{}", socket.display())}));
    let sent = Ram::new();
    fill(&sent, number.into());
    send(
        &sent,
        || (wire.connect)(find("listener", || SocketChannel::connect_unix(&socket, TIMEOUT, &|| true).ok())),
        number,
        compression,
    );
    assert_eq!(qemu.execute("query-migrate", json!({}))["status"], "completed");
    qemu.execute("pmemsave", json!({"val": 0, "size": BLOCKS[0].1, "filename": dump}));
    let dumped = std::fs::read(&dump).unwrap();
    {
        let sent = sent.bytes.lock().unwrap();
        let differs = |page: &usize| dumped[*page..][..4096] != sent[0][*page..][..4096];
        let visible = (0..dumped.len()).step_by(4096).filter(|page| !FIRMWARE.contains(page));
        assert_eq!(visible.into_iter().find(differs), None, "a page is another one in QEMU");
    }

    let listener = (wire.listen)(Listener::unix(&back).unwrap());
    wire.tell(&mut qemu, "client");
    qemu.execute("migrate", json!({"uri": format!("unix:{}", back.display())}));
    let came = Ram::new();
    // Filled, so that a page that arrives as zero has to be cleared.
    came.bytes.lock().unwrap().iter_mut().for_each(|block| block.fill(0xad));
    receive(&came, &listener, number, &mut qemu);
    qemu.await_completed();
    let (sent, came) = (sent.bytes.lock().unwrap(), came.bytes.lock().unwrap());
    let blocks = BLOCKS.iter().zip(sent.iter().zip(came.iter()));
    // QEMU creates its ACPI tables again.
    for ((name, _), (sent, came)) in blocks.filter(|((name, _), _)| !name.starts_with("/rom@")) {
        let differs = |page: &usize| sent[*page..][..4096] != came[*page..][..4096];
        assert_eq!((0..sent.len()).step_by(4096).find(differs), None, "a page of {name} came back as another one");
    }
}

fn send<C: Channel + Send>(ram: &Ram, connect: impl Fn() -> C, number: u8, compression: Compression) {
    let (mut main, senders) = (connect(), Senders::new(number, compression));
    let mut options = long_timeouts();
    options.page_channels = Some(senders.clone());
    let control = Control::default();
    control.set_downtime_limit(TIMEOUT);
    let departure = thread::scope(|scope| {
        for id in 0..number {
            let (mut channel, worker) = (connect(), senders.worker(id));
            scope.spawn(move || worker.run(&mut channel, ram));
        }
        let outgoing = Outgoing {
            channel: &mut main,
            clock: &MonotonicClock::new(),
            machine: &mut Vm { running: true, ..Vm::default() },
            sections: &mut Sections::new(),
            ram,
            log: &mut Still,
        };
        source::run(outgoing, &options, &control)
    });
    assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
    let pages = departure.report.pages;
    assert!(pages.zero > 800 && pages.normal > 3000, "{pages:?}");
}

fn receive<S: Security<Channel: Send> + Sync>(ram: &Ram, listener: &Listener<S>, number: u8, qemu: &mut Qemu) {
    let receivers = &Receivers::new();
    let mut options = lenient();
    options.page_channels = Some(receivers.clone());
    let (mut devices, mut sections) = (devices(), Sections::new());
    for (name, instance, device) in &mut devices {
        sections.register(name, *instance, device as &mut dyn Section).unwrap();
    }
    let mut main = listener.accept_source(&|| true).unwrap();
    let arrival = thread::scope(|scope| {
        scope.spawn(|| {
            while let Ok(mut channel) = listener.accept_pages(&|| !receivers.is_over()) {
                scope.spawn(move || receivers.worker().run(&mut channel, ram).unwrap());
            }
        });
        let incoming = Incoming {
            channel: &mut main,
            clock: &MonotonicClock::new(),
            machine: &mut Vm::default(),
            sections: &mut sections,
            ram,
        };
        let arrival = destination::run(incoming, &options, &Control::default());
        receivers.close();
        arrival
    });
    let arrival = arrival.into_result().unwrap_or_else(|error| {
        panic!("{error}; QEMU says {}", qemu.execute("query-migrate", json!({})));
    });
    assert_eq!(receivers.channels(), usize::from(number));
    let all: u64 = ram.blocks().iter().map(|block| block.len / 4096).sum();
    assert!(arrival.pages.total() >= all && arrival.pages.zero > 800, "{arrival:?}");
}

#[test]
fn each_page_goes_over_page_channels_to_qemu_and_back() {
    if skipped() {
        return;
    }
    for number in [1, 2, 4] {
        there_and_back(number, Compression::None, &Wire::plain());
    }
}

#[cfg(feature = "zstd")]
#[test]
fn each_page_goes_compressed_over_page_channels_to_qemu_and_back() {
    if skipped() {
        return;
    }
    for number in [1, 2, 4] {
        there_and_back(number, Compression::Zstd { level: 1 }, &Wire::plain());
    }
}

/// GnuTLS at QEMU's side: each connection, main and page channels, does its own handshake, in both directions.
#[cfg(feature = "tls")]
#[test]
fn each_page_goes_encrypted_over_page_channels_to_qemu_and_back() {
    use super::certificates::{Authority, Flaw};
    use vmstate::channel::tls::{TlsChannel, TlsClient, TlsServer};
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (authority, path) = (Authority::new(), directory.path());
    let [server, client] = ["server", "client"].map(|end| authority.write(path, end, Flaw::None));
    let (server, client) = (TlsServer::new(&server).unwrap(), TlsClient::new(&client).unwrap());
    let object = |end: &str| {
        let credentials = format!("tls-creds-x509,id={end},dir={},endpoint={end},verify-peer=on", path.display());
        ["-object".to_owned(), credentials]
    };
    let wire = Wire {
        objects: ["server", "client"].map(object).concat(),
        connect: &|socket| {
            let mut channel = TlsChannel::client(socket, &client, "there.example").unwrap();
            channel.handshake(TIMEOUT).unwrap();
            channel
        },
        listen: &|listener| listener.with_tls(server.clone()),
    };
    there_and_back(2, Compression::None, &wire);

    // A QEMU without TLS receives no stream, and a client without a certificate receives none of QEMU's.
    let socket = path.join("refused");
    let mut qemu = Qemu::start(&["-incoming", "defer", &wire.objects[0], &wire.objects[1]]);
    wire.tell(&mut qemu, "server");
    qemu.execute("migrate-incoming", json!({"uri": format!("unix:{}", socket.display()), "exit-on-error": false}));
    let other = authority.write(&path.join("other"), "client", Flaw::Missing);
    let socket = find("listener", || SocketChannel::connect_unix(&socket, TIMEOUT, &|| true).ok());
    let mut channel = TlsChannel::client(socket, &TlsClient::new(&other).unwrap(), "there.example").unwrap();
    let refused = channel.handshake(TIMEOUT).and_then(|()| channel.receive(&mut [0; 8], TIMEOUT));
    let error = refused.expect_err("QEMU has answered").to_string();
    assert!(error.contains("TLS: "), "{error}");
}
