//! A guest in a file in which each page has its place, to a real QEMU and from one: the oracle is QEMU's own view of the memory.

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

fn places(qemu: &mut Qemu, channels: Option<u8>) {
    qemu.switch_on(&["mapped-ram"]);
    if let Some(channels) = channels {
        qemu.switch_on(&["multifd"]);
        qemu.execute("migrate-set-parameters", json!({"multifd-channels": channels}));
    }
}

fn completed(qemu: &mut Qemu) {
    qemu.await_completed();
}

/// With one thread and with several on each side, also at an offset: the places in the file are counted from its start.
#[test]
fn each_page_goes_in_its_place_in_a_file_to_qemu_and_back() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for (number, channels, offset, writers) in [(0, None, 0, 0), (1, Some(2), 0x3_0000, 0), (2, Some(3), 0x3_0000, 4)] {
        let [there, back, dump] =
            ["there", "back", "dump"].map(|name| directory.path().join(format!("{name}{number}")));
        let sent = Ram::new();
        let mut random = Random::new(number);
        for page in 0..4096 {
            if random.below(3) > 0 {
                sent.write(0, page * 4096, &[1 + (page % 251) as u8; 4096]).unwrap();
            }
        }
        let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(&there).unwrap();
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
            threads: (writers > 0).then(|| threads.clone()),
        };
        std::thread::scope(|scope| {
            for _ in 0..writers {
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
        let mut file = std::fs::File::open(&back).unwrap();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset)).unwrap();
        let (compatible, limits) = (Strictness::QemuCompatible, Limits::default());
        snapshot::load(&mut FileChannel::from(file), "microvm", compatible, limits, &mut sections, &came).unwrap();
        drop(sections);
        assert!(devices.iter().all(|(_, _, device)| device.loads == 1));
        let (sent, came) = (sent.bytes.lock().unwrap(), came.bytes.lock().unwrap());
        assert!(sent[0][..VISIBLE] == came[0][..VISIBLE] && sent[0][0x10_0000..] == came[0][0x10_0000..]);
    }
}
