//! Loads every section of QEMU's streams into the type of its device, and saves these types again: the result must be
//! the same stream, self-description included, byte for byte.

use vmstate_tests::difference;
use vmstate_tests::microvm::Microvm;

use crate::fixtures::{STREAMS, bytes};

/// A machine with a disk of 16 MiB, as in the fixtures.
fn machine() -> Microvm {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(16 << 20).unwrap();
    Microvm::new(128 << 20, disk.path()).unwrap()
}

/// Ring indices as Linux and the devices had left them, in memory that the streams do not contain. No request was in
/// flight, so a ring's available and used index are equal.
fn rings(stream: &str) -> [(u64, u16); 4] {
    match stream {
        "microvm-linux-kvm.bin" => [(0x2a9_4000, 13), (0x2b4_4000, 3), (0x2b4_c000, 9), (0x2b6_4000, 9)],
        "microvm-linux-tcg.bin" => [(0x2a9_c000, 13), (0x2b4_4000, 4), (0x2b4_c000, 10), (0x2b6_4000, 9)],
        _ => [(0, 0); 4],
    }
}

#[test]
fn qemus_streams_are_made_again_from_types() {
    for name in STREAMS {
        let stream = bytes(name);
        let mut machine = machine();
        for (available, index) in rings(name) {
            for ring in [available, available + 0x1000] {
                machine.ram.write(ring + 2, &index.to_le_bytes()).unwrap();
            }
        }
        machine.load(&stream).unwrap_or_else(|error| panic!("{name}: {error}"));
        let again = machine.save(&stream).unwrap_or_else(|error| panic!("{name}: {error}"));
        if let Some(at) = difference::first(&again, &stream) {
            let sections = difference::sections(&again, &stream);
            let text = |bytes| String::from_utf8_lossy(difference::around(bytes, at, 40)).into_owned();
            panic!("{name} at {at:#x}: {:?} for {:?}; sections: {sections:#?}", text(&again), text(&stream));
        }
    }
}
