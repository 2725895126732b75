//! A guest in a file in which each page has its place, to a real QEMU and from one: the oracle is QEMU's own view of the memory.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use serde_json::json;
use vmstate::channel::FileChannel;
use vmstate::codec::{Limits, Strictness};
use vmstate::migrate::snapshot::{self, FileThreads, Saving};
use vmstate::migrate::{Control, Peer};
use vmstate::ram::GuestRam;
use vmstate::section::{Section, Sections};
use vmstate_lab::random::Random;

use super::{BLOCKS, Qemu, Ram, Still, devices, skipped};

/// Below this address, the guest sees no firmware.
const VISIBLE: usize = 0xa_0000;

/// Sets the number of threads, and whether they use direct I/O.
fn places(qemu: &mut Qemu, channels: Option<(u8, bool)>) {
    qemu.switch_on(&["mapped-ram"]);
    if let Some((channels, direct)) = channels {
        qemu.switch_on(&["multifd"]);
        qemu.execute("migrate-set-parameters", json!({"multifd-channels": channels, "direct-io": direct}));
    }
}

fn completed(qemu: &mut Qemu) {
    qemu.await_completed();
}

/// With one thread and with several on each side, with direct I/O and at an odd offset: the places in the file are counted from its start.
#[test]
fn each_page_goes_in_its_place_in_a_file_to_qemu_and_back() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // An old tmpfs has no direct I/O.
    let probe = directory.path().join("probe");
    let has_direct =
        File::options().write(true).create_new(true).custom_flags(OFlag::O_DIRECT.bits()).open(probe).is_ok();
    let rows = [(None, 0, None), (Some((2, false)), 0x3_0000, None), (Some((3, has_direct)), 0x3_0123, Some(4))];
    for (number, (channels, offset, writers)) in (0..).zip(rows) {
        let [there, back, dump] =
            ["there", "back", "dump"].map(|name| directory.path().join(format!("{name}{number}")));
        let sent = Ram::new();
        let mut random = Random::new(number);
        for page in 0..4096 {
            if random.below(3) > 0 {
                sent.write(0, page * 4096, &[1 + (page % 251) as u8; 4096]).unwrap();
            }
        }
        let is_direct = channels.is_some_and(|(_, direct)| direct);
        let flags = if is_direct { OFlag::O_DIRECT } else { OFlag::empty() };
        let mut options = File::options();
        options.read(true).write(true).create_new(true).custom_flags(flags.bits());
        let mut file = options.open(&there).unwrap();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset)).unwrap();
        let threads = FileThreads::new();
        let (mut channel, mut sections) = (FileChannel::from(file), Sections::new());
        let (channel, sections) = (&mut channel, &mut sections);
        let saving = Saving {
            channel,
            machine_type: "microvm",
            sections,
            ram: &sent,
            log: &mut Still,
            reader: Peer::Qemu,
            threads: writers.map(|_| threads.clone()),
            beside: None,
        };
        std::thread::scope(|scope| {
            for _ in 0..writers.unwrap_or(0) {
                let worker = threads.worker();
                scope.spawn(|| worker.run(&sent));
            }
            snapshot::save_in_place(saving, &Control::default(), &mut || Ok(())).unwrap();
        });

        let mut qemu = Qemu::start(&["-incoming", "defer"]);
        places(&mut qemu, channels);
        qemu.execute("migrate-incoming", json!({"uri": format!("file:{},offset={offset}", there.display())}));
        completed(&mut qemu);
        qemu.execute("pmemsave", json!({"val": 0, "size": VISIBLE, "filename": dump}));
        assert!(std::fs::read(&dump).unwrap() == sent.bytes.lock().unwrap()[0][..VISIBLE]);
        qemu.execute("pmemsave", json!({"val": 0x10_0000, "size": BLOCKS[0].1 - 0x10_0000, "filename": dump}));
        assert!(std::fs::read(&dump).unwrap() == sent.bytes.lock().unwrap()[0][0x10_0000..]);

        qemu.execute("migrate", json!({"uri": format!("file:{},offset={offset}", back.display())}));
        completed(&mut qemu);
        let came = Ram::new();
        came.bytes.lock().unwrap().iter_mut().for_each(|block| block.fill(0xad));
        let (mut devices, mut sections) = (devices(), Sections::new());
        for (name, instance, device) in &mut devices {
            sections.register(name, *instance, device as &mut dyn Section).unwrap();
        }
        let mut file = File::open(&back).unwrap();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset)).unwrap();
        let (compatible, limits) = (Strictness::QemuCompatible, Limits::default());
        snapshot::load(&mut FileChannel::from(file), "microvm", compatible, limits, &mut sections, &came).unwrap();
        drop(sections);
        assert!(devices.iter().all(|(_, _, device)| device.loads == 1));
        let (sent, came) = (sent.bytes.lock().unwrap(), came.bytes.lock().unwrap());
        assert!(sent[0][..VISIBLE] == came[0][..VISIBLE] && sent[0][0x10_0000..] == came[0][0x10_0000..]);
    }
}
