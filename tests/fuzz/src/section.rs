//! Target: the body of one section, loaded into the device of the section's name.
//!
//! ```text
//! byte 0: device (low 7 bits), QEMU-compatible (high bit) | byte 1: version | body
//! ```

use vmstate::Section;
use vmstate::codec::{Reader, Strictness};
use vmstate::dump::Part;

use crate::machine::LIMITS;
use crate::{Target, devices, streams};

pub(crate) const TARGET: Target = Target { name: "section", memory: 4 << 20, body, seeds };

fn body(input: &[u8]) {
    let [device, version, body @ ..] = input else { return };
    let strictness = if device & 0x80 == 0 { Strictness::Strict } else { Strictness::QemuCompatible };
    let mut devices = devices::all();
    let Some((_, _, device)) = devices.get_mut(usize::from(device & 0x7f)) else { return };
    let mut whole = Reader::new(body, 0, strictness, LIMITS).complete();
    let loaded = device.load(&mut whole, u32::from(*version)).is_ok();
    let state = device.saved();
    // Where more bytes may follow, a load may ask for them, but must not give another result.
    let mut begun = Reader::new(body, 0, strictness, LIMITS);
    match device.load(&mut begun, u32::from(*version)) {
        Ok(()) => assert!(loaded && device.saved() == state, "a load depends on whether more bytes come"),
        Err(error) => assert!(error.is_incomplete() || !loaded, "a load depends on whether more bytes come: {error}"),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for stream in [streams::RESET, streams::KVM, streams::TCG] {
        for found in streams::sections(stream).iter().filter(|found| found.part == Part::Full) {
            let known = devices::all().iter().position(|&(name, ..)| name == found.header.idstr);
            let Some(device) = known.and_then(|index| u8::try_from(index).ok()) else { continue };
            let version = u8::try_from(found.header.version).expect("a small version");
            seeds
                .extend([device, device | 0x80].map(|first| [&[first, version], &stream[found.body.clone()]].concat()));
        }
    }
    seeds
}
