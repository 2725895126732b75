//! XBZRLE with a real QEMU: the oracle is QEMU's own view of its guest's memory.

use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};
use vmstate::channel::{Listener, MonotonicClock};
use vmstate::migrate::Control;
use vmstate::migrate::destination::{self, Incoming};
use vmstate::section::{Section, Sections};
use vmstate_lab::patience::{PATIENCE, find};

use super::{Qemu, Ram, Vm, devices, lenient, skipped};

/// The guest writes the first half of each page of this range, without end.
const WRITTEN: Range<usize> = 0x1_0000..0x9_0000;
/// What QEMU's migration may send a second while it goes from round to round: all those pages in a quarter of a second.
const SLOW: u64 = 2 << 20;
/// Pages that QEMU has sent by their runs, at least: most of those pages, once.
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
fn we_take_what_changed_of_qemus_pages() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let [bios, socket, dump] = ["bios", "socket", "dump"].map(|name| directory.path().join(name));
    firmware(&bios);
    let listener = Listener::unix(&socket).unwrap();
    let mut qemu = Qemu::start(&["-bios", bios.to_str().unwrap()]);
    let capabilities = ["return-path", "xbzrle"].map(|name| json!({"capability": name, "state": true}));
    qemu.execute("migrate-set-capabilities", json!({"capabilities": capabilities}));
    set(&mut qemu, json!({"max-bandwidth": SLOW, "downtime-limit": 1}));
    qemu.execute("cont", json!({}));
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
                assert_ne!(status["status"], "failed", "{status}");
                (status["xbzrle-cache"]["pages"].as_u64()? > ENOUGH).then_some(())
            });
            set(&mut qemu, json!({"max-bandwidth": 0, "downtime-limit": 60_000}));
            find("end of QEMU's migration", || {
                let status = qemu.execute("query-migrate", json!({}));
                assert_ne!(status["status"], "failed", "{status}");
                (status["status"] == "completed").then_some(status)
            })
        });
        let mut channel = listener.accept(PATIENCE).unwrap();
        let (clock, channel) = (&MonotonicClock::new(), &mut channel);
        let incoming = Incoming { channel, clock, machine: &mut machine, sections: &mut sections, ram: &ram };
        let arrival = destination::run(incoming, &lenient(), &Control::default()).into_result().unwrap();
        (arrival, manager.join().unwrap())
    });
    // More pages came with contents than QEMU sent whole: the rest came as what changed of them.
    assert!(arrival.pages.normal > ENOUGH + status["ram"]["normal"].as_u64().unwrap(), "{arrival:?}, {status}");
    qemu.execute("pmemsave", json!({"val": 0, "size": 0xa_0000, "filename": dump}));
    let (dumped, here) = (std::fs::read(&dump).unwrap(), ram.bytes.lock().unwrap());
    for page in WRITTEN.step_by(4096) {
        assert!(dumped[page..][..2048] != [0; 2048], "the guest has not written {page:#x}");
    }
    assert!(dumped == here[0][..0xa_0000]);
}
