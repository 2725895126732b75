//! Post-copy with a QEMU: the inspector reads QEMU's stream, QEMU sends a requested page at once to a destination that the test
//! plays, and the engine is the destination or the source.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use vmstate::channel::{Listener, MonotonicClock, SocketChannel};
use vmstate::dump::{Command, Dump, Entry};
use vmstate::error::Result;
use vmstate::migrate::destination::{self, Incoming};
use vmstate::migrate::{Claim, Control, Machine, SourcePhase};
use vmstate::ram::{GuestRam, PostcopyMemory, RamBlock};
use vmstate::raw::stream::{PageRequest, PageSizes, Reply};
use vmstate::section::{Section, Sections};
use vmstate_lab::wait::find;

use super::{BLOCKS, Qemu, Ram, TIMEOUT, Vm, arrive, depart, devices, lenient, skipped};

/// A page of the guest, far from the first pages that are sent.
pub(super) const WANTED: u64 = 0x3ab_c000;

/// The position of the record of this page of "microvm.ram", if it was sent as zero: without a name, as the page before was in
/// the same block.
fn record(stream: &[u8], page: u64) -> Option<usize> {
    // RAM_SAVE_FLAG_ZERO and RAM_SAVE_FLAG_CONTINUE (migration/ram.h).
    let word = (page | 0x22).to_be_bytes();
    let named = [&(page | 0x02).to_be_bytes()[..], b"\x0bmicrovm.ram"].concat();
    let at = |wanted: &[u8]| stream.windows(wanted.len()).position(|bytes| bytes == wanted);
    at(&named).or_else(|| at(&word))
}

fn commands(stream: &[u8]) -> Vec<Command> {
    let entries = Dump::read(stream).entries.into_iter();
    entries.filter_map(|entry| if let Entry::Command { command, .. } = entry { Some(command) } else { None }).collect()
}

#[test]
fn qemus_stream_in_post_copy_is_decoded_and_qemu_serves_a_request() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut qemu = Qemu::start(&["-m", "64M"]);
    qemu.switch_on(&["return-path", "postcopy-ram"]);
    // Slowly, so that most pages are still missing when the guest shall run.
    qemu.execute("migrate-set-parameters", json!({"max-bandwidth": 16384, "max-postcopy-bandwidth": 16384}));
    qemu.execute("migrate", json!({"uri": format!("unix:{}", socket.display())}));
    let (mut channel, _) = listener.accept().unwrap();
    let stream = Arc::new(Mutex::new(Vec::new()));
    let reading = thread::spawn({
        let (stream, mut channel) = (Arc::clone(&stream), channel.try_clone().unwrap());
        move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = channel.read(&mut bytes) {
                stream.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        }
    });
    let so_far = || stream.lock().unwrap().clone();
    find("first pages", || (so_far().len() > 4096).then_some(()));
    qemu.execute("migrate-start-postcopy", json!({}));
    let received = find("command to run", || {
        let received = commands(&so_far());
        received.contains(&Command::PostcopyRun).then_some(received)
    });
    assert!(record(&so_far(), WANTED).is_none(), "all pages are there already");

    let request = PageRequest { block: Some("microvm.ram".into()), start: WANTED, len: 4096 };
    let mut message = Vec::new();
    request.write(&mut message);
    channel.write_all(&message).unwrap();
    find("page", || record(&so_far(), WANTED));
    assert!(record(&so_far(), WANTED - 4096).is_none(), "the page was sent in order, not on request");

    qemu.execute("migrate-set-parameters", json!({"max-postcopy-bandwidth": 0}));
    find("end of the stream", || matches!(Dump::read(&so_far()).entries.last(), Some(Entry::Eof { .. })).then_some(()));
    message.clear();
    Reply::Shut(0).write(&mut message);
    channel.write_all(&message).unwrap();
    qemu.await_completed();
    drop(qemu);
    reading.join().unwrap();

    let sizes = Some(PageSizes { summary: 4096, target: 4096 });
    let order = [
        |command: &Command| *command == Command::OpenReturnPath,
        |command: &Command| *command == Command::Ping(1),
        |command: &Command| matches!(command, Command::PostcopyAdvise(_)),
        |command: &Command| matches!(command, Command::PostcopyRamDiscard(_)),
        |command: &Command| *command == Command::Ping(2),
        |command: &Command| matches!(command, Command::Packaged(_)),
        |command: &Command| *command == Command::PostcopyListen,
        |command: &Command| *command == Command::Ping(3),
        |command: &Command| *command == Command::PostcopyRun,
    ];
    let places = order.map(|is| received.iter().position(is).unwrap());
    assert!(places.is_sorted(), "{received:?}");
    assert_eq!(received[places[2]], Command::PostcopyAdvise(sizes));
    // The package ends where its length says.
    let dump = Dump::read(&so_far());
    assert!(dump.damage.is_none(), "{:?}", dump.damage);
    let at = |wanted: &dyn Fn(&Command) -> bool| {
        let found = dump.entries.iter().find_map(|entry| match entry {
            Entry::Command { offset, command } if wanted(command) => Some((*offset, command.clone())),
            _ => None,
        });
        found.unwrap()
    };
    let ((begins, packaged), (runs, _)) = (at(&|command| matches!(command, Command::Packaged(_))), at(&order[8]));
    // From after the first command's type, number, length and payload to the end of the second, which has no payload.
    assert_eq!(packaged, Command::Packaged(u32::try_from(runs + 5 - (begins + 9)).unwrap()));
}

/// Arguments of a QEMU device that fills 8 MiB of the guest's memory from `start` on. QEMU's bandwidth limit hardly counts zero pages,
/// of nine bytes each: they would all be sent before the limit takes effect.
pub(super) fn filled(directory: &Path, start: u64) -> String {
    let file = directory.join("filled");
    std::fs::write(&file, vec![0x5a; 8 << 20]).unwrap();
    format!("loader,addr={start:#x},force-raw=on,file={}", file.display())
}

/// A QEMU with 64 MiB, of which the 8 MiB around [`WANTED`] are filled, and the listener to which it migrates.
pub(super) fn filled_source(directory: &Path, capabilities: &[&str], parameters: Value) -> (Listener, Qemu) {
    let listener = Listener::unix(directory.join("socket")).unwrap();
    let mut qemu = Qemu::start(&["-m", "64M", "-device", &filled(directory, 0x340_0000)]);
    qemu.switch_on(capabilities);
    qemu.execute("migrate-set-parameters", parameters);
    (listener, qemu)
}

/// Migrates to the listener of [`filled_source`], and switches to post-copy.
pub(super) fn migrate_in_postcopy(qemu: &mut Qemu, directory: &Path) {
    qemu.execute("migrate", json!({"uri": format!("unix:{}", directory.join("socket").display())}));
    find("migration", || (qemu.execute("query-migrate", json!({}))["status"] == "active").then_some(()));
    qemu.execute("migrate-start-postcopy", json!({}));
}

/// The guest dirties nothing, and all of its pages are still missing when QEMU shall run it.
#[test]
fn qemu_receives_our_guest_in_post_copy() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let mut qemu = Qemu::start(&["-incoming", "defer"]);
    qemu.switch_on(&["postcopy-ram"]);
    let uri = format!("unix:{}", socket.display());
    qemu.execute("migrate-incoming", json!({"uri": uri, "exit-on-error": false}));
    let mut channel = find("listener", || SocketChannel::connect_unix(&socket, TIMEOUT, &|| true).ok());
    let ram = Ram::filled();
    let (mut machine, control) = (Vm { running: true, ..Vm::default() }, Control::default());
    control.set_downtime_limit(TIMEOUT);
    control.set_postcopy_ram(true);
    control.start_postcopy();
    let mut sections = Sections::new();
    let departure = depart(&mut channel, &mut machine, &mut sections, &ram, &control);
    assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
    assert!(!machine.running);
    qemu.await_completed();
    qemu.check_low_memory(&ram, directory.path());
}

/// Memory with an access that waits for the page [`WANTED`].
pub(super) struct MissingRam {
    pub(super) ram: Ram,
    waits: Mutex<Waits>,
}

impl MissingRam {
    /// Memory whose first block has `len` bytes.
    pub(super) fn new(len: u64) -> Self {
        let mut ram = Ram::new();
        ram.blocks[0].len = len;
        ram.bytes.get_mut().unwrap()[0].resize(len as usize, 0);
        Self { ram, waits: Mutex::default() }
    }

    pub(super) fn listens(&self) -> bool {
        self.waits.lock().unwrap().listens
    }

    /// Pages that were put there, in their order.
    pub(super) fn puts(&self) -> Vec<(usize, u64)> {
        self.waits.lock().unwrap().put.clone()
    }

    /// The most pages that were put there between two looks for waits.
    fn most_between_looks(&self) -> usize {
        self.waits.lock().unwrap().most_between_looks
    }

    pub(super) fn is_whole(&self) -> bool {
        self.waits.lock().unwrap().whole
    }

    pub(super) fn byte(&self, block: usize, offset: usize) -> u8 {
        self.ram.bytes.lock().unwrap()[block][offset]
    }
}

#[derive(Default)]
struct Waits {
    listens: bool,
    reported: bool,
    put: Vec<(usize, u64)>,
    /// The number of `put` at the last look for waits.
    looked_at: usize,
    most_between_looks: usize,
    whole: bool,
}

impl GuestRam for MissingRam {
    fn blocks(&self) -> &[RamBlock] {
        self.ram.blocks()
    }

    fn postcopy(&self) -> Option<&dyn PostcopyMemory> {
        Some(self)
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        self.ram.read(block, offset, into)
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        assert!(!self.waits.lock().unwrap().listens);
        self.ram.write(block, offset, from)
    }

    fn zero_page(&self, block: usize, offset: u64) -> Result<()> {
        self.write(block, offset, &[0; 4096])
    }
}

impl PostcopyMemory for MissingRam {
    fn discard(&self, block: usize, offset: u64, len: u64) -> Result<()> {
        self.ram.write(block, offset, &vec![0; len as usize])
    }

    fn listen(&self) -> Result<()> {
        self.waits.lock().unwrap().listens = true;
        Ok(())
    }

    fn waited_for(&self, pages: &mut Vec<(usize, u64)>) -> Result<()> {
        let mut waits = self.waits.lock().unwrap();
        let reported = std::mem::replace(&mut waits.reported, true);
        pages.extend((!reported).then_some((0, WANTED)));
        let put = waits.put.len();
        let before = std::mem::replace(&mut waits.looked_at, put);
        waits.most_between_looks = waits.most_between_looks.max(put - before);
        Ok(())
    }

    fn put(&self, block: usize, offset: u64, page: Option<&[u8; 4096]>) -> Result<()> {
        self.waits.lock().unwrap().put.push((block, offset));
        self.ram.write(block, offset, page.unwrap_or(&[0; 4096]))
    }

    fn end_waits(&self) -> Result<()> {
        self.waits.lock().unwrap().whole = true;
        Ok(())
    }
}

#[test]
fn a_qemu_source_completes_in_post_copy() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (listener, mut qemu) = filled_source(
        directory.path(),
        &["return-path", "postcopy-ram"],
        json!({"max-bandwidth": 16384, "max-postcopy-bandwidth": 65536}),
    );
    let (ram, mut machine) = (MissingRam::new(64 << 20), Vm::default());
    let mut devices = devices();
    let mut sections = Sections::new();
    for (name, instance, device) in &mut devices {
        sections.register(name, *instance, device as &mut dyn Section).unwrap();
    }
    let arrival = thread::scope(|scope| {
        scope.spawn(|| {
            migrate_in_postcopy(&mut qemu, directory.path());
            find("page", || ram.puts().contains(&(0, WANTED)).then_some(()));
            qemu.execute("migrate-set-parameters", json!({"max-postcopy-bandwidth": 0}));
        });
        arrive(&listener, &mut machine, &mut sections, &ram).unwrap()
    });
    drop(sections);
    assert!(machine.running);
    let waits = ram.waits.into_inner().unwrap();
    assert!(waits.whole && waits.listens);
    // The requested page came before its predecessor, which came in its turn.
    let turn = |offset| waits.put.iter().position(|put| *put == (0, offset)).unwrap();
    assert!(turn(WANTED) < turn(WANTED - 4096));
    let pages = (BLOCKS[1..].iter().map(|(_, len)| len).sum::<u64>() + (64 << 20)) / 4096;
    assert!(arrival.pages.normal + arrival.pages.zero >= pages, "{arrival:?}");
    // The firmware is there: its last 16 bytes contain the reset vector's far jump.
    assert_eq!(ram.ram.bytes.lock().unwrap()[2][0x1fff0], 0xea);
    for (name, instance, device) in devices {
        assert_eq!(device.loads, 1, "{name}/{instance}");
    }
    let status = qemu.await_completed();
    assert_eq!(status["ram"]["postcopy-requests"], 1, "{status}");
}

/// A machine that takes over for as long as 200 pages need to arrive, and records how many came in one call of `serve`.
struct TakesLong<'a> {
    ram: &'a MissingRam,
    most: usize,
    resumed: bool,
}

impl Machine for TakesLong<'_> {
    fn pause(&mut self, _within: Duration) -> Result<()> {
        Ok(())
    }

    fn loaded(&mut self) -> Result<()> {
        Ok(())
    }

    fn loaded_in_postcopy(&mut self, serve: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut before = self.ram.puts().len();
        while before < 200 {
            serve()?;
            let put = self.ram.puts().len();
            self.most = self.most.max(put - before);
            before = put;
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        self.resumed = true;
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        Ok(())
    }

    fn claim(&mut self) -> Result<Claim> {
        Ok(Claim::Undecidable)
    }
}

/// QEMU sends pages for 50 ms in one part; 8 MiB take less time. A machine that is ready within it must not wait for its end, nor
/// accesses to pages.
#[test]
fn a_machine_goes_on_within_a_part_of_a_qemu() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (listener, mut qemu) =
        filled_source(directory.path(), &["return-path", "postcopy-ram"], json!({"max-bandwidth": 16384}));
    let ram = MissingRam::new(64 << 20);
    let mut devices = devices();
    let mut sections = Sections::new();
    for (name, instance, device) in &mut devices {
        sections.register(name, *instance, device as &mut dyn Section).unwrap();
    }
    let mut machine = TakesLong { ram: &ram, most: 0, resumed: false };
    thread::scope(|scope| {
        scope.spawn(|| {
            migrate_in_postcopy(&mut qemu, directory.path());
        });
        let mut channel = listener.accept(TIMEOUT).unwrap();
        let clock = &MonotonicClock::new();
        let (machine, sections, ram) = (&mut machine, &mut sections, &ram);
        let incoming = Incoming { channel: &mut channel, clock, machine, sections, ram };
        destination::run(incoming, &lenient(), &Control::default()).into_result().unwrap();
    });
    qemu.await_completed();
    assert!(machine.resumed && ram.is_whole());
    let most = [machine.most, ram.most_between_looks()];
    assert!(most.iter().all(|most| *most < 20), "pages in one call, and without a look for waits: {most:?}");
}
