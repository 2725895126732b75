//! XBZRLE with a real QEMU: the oracle is QEMU's own view of its guest's memory.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use vmstate::channel::{Listener, MonotonicClock, SocketChannel};
use vmstate::error::Result;
use vmstate::migrate::destination::{self, Incoming};
use vmstate::migrate::source::{self, Outgoing};
use vmstate::migrate::{Control, SourcePhase};
use vmstate::ram::{DirtyLog, GuestRam};
use vmstate::section::{Section, Sections};
use vmstate_lab::wait::{TIMEOUT, find};

use super::{Qemu, Ram, Vm, devices, lenient, long_timeouts, skipped};

/// The guest writes the first half of each page in this range, without end.
const WRITTEN: Range<usize> = 0x1_0000..0x9_0000;
/// Bytes that QEMU may send a second during the rounds: all those pages in a quarter of a second.
const SLOW: u64 = 2 << 20;
/// The fewest pages that QEMU must have sent as differences: most of those pages, once.
const ENOUGH: u64 = 100;

/// Firmware of 128 KiB, of which the last half is at 0xf0000, too.
fn firmware(file: &Path) {
    #[rustfmt::skip]
    const CODE: [u8; 30] = [
        0x81, 0xc3, 0x01, 0x01, // again: add bx, 0x101
        0xba, 0x00, 0x10,       //        mov dx, 0x1000
        0x8e, 0xc2,             // page:  mov es, dx
        0x31, 0xff,             //        xor di, di
        0xb9, 0x00, 0x04,       //        mov cx, 0x400
        0x89, 0xd8,             //        mov ax, bx
        0xf3, 0xab,             //        rep stosw
        0x81, 0xc2, 0x00, 0x01, //        add dx, 0x100
        0x81, 0xfa, 0x00, 0x90, //        cmp dx, 0x9000
        0x72, 0xeb,             //        jb page
        0xeb, 0xe2,             //        jmp again
    ];
    let mut bytes = vec![0; 0x2_0000];
    bytes[0x1_0000..][..CODE.len()].copy_from_slice(&CODE);
    // The reset vector: jmp 0xf000:0.
    bytes[0x1_fff0..][..5].copy_from_slice(&[0xea, 0x00, 0x00, 0x00, 0xf0]);
    std::fs::write(file, bytes).unwrap();
}

fn set(qemu: &mut Qemu, parameters: Value) {
    qemu.execute("migrate-set-parameters", parameters);
}

#[test]
fn we_take_the_differences_of_qemus_pages() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let [bios, socket, dump] = ["bios", "socket", "dump"].map(|name| directory.path().join(name));
    firmware(&bios);
    let listener = Listener::unix(&socket).unwrap();
    let mut qemu = Qemu::start(&["-bios", bios.to_str().unwrap()]);
    qemu.switch_on(&["return-path", "xbzrle"]);
    set(&mut qemu, json!({"max-bandwidth": SLOW, "downtime-limit": 1}));
    qemu.execute("cont", json!({}));
    // A migration without dirty pages would end before there are differences to send.
    find("writes of the guest", || {
        let last = format!("xp /1xb {:#x}", WRITTEN.end - 4096);
        let shown = qemu.execute("human-monitor-command", json!({"command-line": last}));
        (!shown.as_str()?.trim_end().ends_with("0x00")).then_some(())
    });
    qemu.execute("migrate", json!({"uri": format!("unix:{}", socket.display())}));
    let (ram, mut devices, mut machine) = (Ram::new(), devices(), Vm::default());
    let mut sections = Sections::new();
    for (name, instance, device) in &mut devices {
        sections.register(name, *instance, device as &mut dyn Section).unwrap();
    }
    let (arrival, status) = std::thread::scope(|scope| {
        let manager = scope.spawn(|| {
            find("pages that QEMU sends as what changed", || {
                let status = qemu.execute("query-migrate", json!({}));
                assert!(status["status"] != "failed" && status["status"] != "completed", "{status}");
                (status["xbzrle-cache"]["pages"].as_u64()? > ENOUGH).then_some(())
            });
            set(&mut qemu, json!({"max-bandwidth": 0, "downtime-limit": 60_000}));
            qemu.await_completed()
        });
        let mut channel = listener.accept(TIMEOUT).unwrap();
        let (clock, channel) = (&MonotonicClock::new(), &mut channel);
        let incoming = Incoming { channel, clock, machine: &mut machine, sections: &mut sections, ram: &ram };
        let arrival = destination::run(incoming, &lenient(), &Control::default()).into_result().unwrap();
        (arrival, manager.join().unwrap())
    });
    // More pages arrived with contents than QEMU sent whole: the rest arrived as differences.
    assert!(arrival.pages.normal > ENOUGH + status["ram"]["normal"].as_u64().unwrap(), "{arrival:?}, {status}");
    qemu.execute("pmemsave", json!({"val": 0, "size": 0xa_0000, "filename": dump}));
    let (dumped, here) = (std::fs::read(&dump).unwrap(), ram.bytes.lock().unwrap());
    for page in WRITTEN.step_by(4096) {
        assert!(dumped[page..][..2048] != [0; 2048], "the guest has not written {page:#x}");
    }
    assert!(dumped == here[0][..0xa_0000]);
}

/// A guest that writes a byte in each of some pages before each sync of its log, the last of which is in the pause.
struct Writes<'a> {
    ram: &'a Ram,
    control: &'a Control,
    rounds: u64,
}

/// The pages that are written, in a guest that is full of data.
const PAGES: Range<u64> = 16..144;

impl DirtyLog for Writes<'_> {
    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    fn sync(&mut self, block: usize, words: &mut [u64]) -> Result<()> {
        if block > 0 {
            return Ok(());
        }
        self.rounds += 1;
        if self.rounds == 6 {
            self.control.set_downtime_limit(TIMEOUT);
        }
        for page in PAGES {
            let at = page * 4096 + (page * 97 + self.rounds * 1013) % 4096;
            self.ram.bytes.lock().unwrap()[0][at as usize] ^= 0x55;
            words[page as usize / 64] |= 1 << (page % 64);
        }
        Ok(())
    }

    fn clear(&mut self, _block: usize, _first: u64, _count: u64) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}
}

#[test]
fn qemu_takes_the_differences_of_our_pages() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (socket, dump) = (directory.path().join("socket"), directory.path().join("dump"));
    let mut qemu = Qemu::start(&["-incoming", &format!("unix:{}", socket.display())]);
    let mut channel = find("listener", || SocketChannel::connect_unix(&socket, TIMEOUT, &|| true).ok());
    let (ram, control) = (Ram::new(), Control::default());
    for page in PAGES {
        let bytes: Vec<u8> = (0..4096).map(|at| (at * page % 251) as u8 | 1).collect();
        ram.write(0, page * 4096, &bytes).unwrap();
    }
    let mut parameters = control.parameters();
    parameters.xbzrle = true;
    control.set_parameters(parameters).unwrap();
    // The pause would take much too long until the log allows it.
    control.set_downtime_limit(Duration::from_millis(50));
    let mut machine = Vm { running: true, prepares: Duration::from_secs(10) };
    let outgoing = Outgoing {
        channel: &mut channel,
        clock: &MonotonicClock::new(),
        machine: &mut machine,
        sections: &mut Sections::new(),
        ram: &ram,
        log: &mut Writes { ram: &ram, control: &control, rounds: 0 },
    };
    let departure = source::run(outgoing, &long_timeouts(), &control);
    assert_eq!(departure.phase, SourcePhase::Completed, "{:?}", departure.error);
    let count = control.progress().xbzrle.unwrap();
    let written = PAGES.end - PAGES.start;
    assert!(count.encoded >= 4 * written && count.bytes < 64 * count.encoded, "{count:?}");
    assert_eq!((count.cache_miss, count.overflow), (written, 0), "{count:?}");
    assert_eq!(qemu.execute("query-migrate", json!({}))["status"], "completed");
    qemu.execute("pmemsave", json!({"val": 0, "size": 0xa_0000, "filename": dump}));
    assert!(std::fs::read(&dump).unwrap() == ram.bytes.lock().unwrap()[0][..0xa_0000]);
}
