//! Loads damaged sections of QEMU into minivmm's devices and hypervisor state: a load succeeds, or fails and changes
//! nothing. Short sections: every truncation, and every byte changed to all 255 other values. Long sections: the same
//! for their first bytes, then every 251st byte with four values.

use std::collections::BTreeSet;

use vmstate::codec::{Limits, Reader, Strictness, Writer};
use vmstate::dump::{Dump, Part};
use vmstate_tests::microvm::Microvm;

use crate::fixtures::bytes;

/// Number of bytes at the start of a section of which each is changed.
const EACH: usize = 256;
/// Distance between the changed bytes after those.
const STRIDE: usize = 251;

fn saved(machine: &mut Microvm, idstr: &str, instance: u32) -> Vec<u8> {
    let sections = machine.sections().in_order();
    let found = sections.into_iter().find(|entry| entry.idstr() == idstr && entry.instance() == instance);
    let mut out = Writer::new();
    found.expect("a section").save(&mut out).unwrap_or_else(|error| panic!("the loaded state does not save: {error}"));
    out.into_bytes()
}

/// The values that replace `byte`.
fn values(byte: u8, short: bool) -> Vec<u8> {
    let all = if short { (0..=255).collect() } else { vec![0, byte ^ 1, byte ^ 0x80, 0xff] };
    all.into_iter().filter(|value| *value != byte).collect()
}

#[test]
fn a_section_that_does_not_load_changes_nothing() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(16 << 20).unwrap();
    let mut machine = Microvm::new(128 << 20, disk.path()).unwrap();
    let mut attacked = BTreeSet::new();
    for stream in [bytes("microvm-linux-kvm.bin"), bytes("microvm-linux-tcg.bin")] {
        for section in Dump::read(&stream).sections().filter(|section| section.part == Part::Full) {
            let (idstr, instance) = (section.header.idstr.to_string(), section.header.instance);
            // libslirp's bytes have no type here.
            if idstr == "slirp" || !attacked.insert((idstr.clone(), instance)) {
                continue;
            }
            let body = &stream[section.body as usize..][..section.size as usize];
            let (mut loads, mut errors) = (0, 0);
            let mut attempt = |bytes: &[u8], strictness| {
                let before = saved(&mut machine, &idstr, instance);
                machine.sections().begin_load();
                // A footer follows, as in a stream.
                let followed = [bytes, b"\x7e\0\0\0\0"].concat();
                let mut input = Reader::new(&followed, 0, strictness, Limits::default());
                match machine.sections().load(&idstr, instance, section.header.version, &mut input) {
                    Ok(()) => loads += 1,
                    Err(error) => {
                        errors += 1;
                        assert!(saved(&mut machine, &idstr, instance) == before, "changed, though {error}");
                    }
                }
            };
            let short = body.len() <= EACH;
            let mut damaged = body.to_vec();
            let places = (0..body.len().min(EACH)).chain((EACH..body.len()).step_by(STRIDE));
            for place in places {
                for strictness in [Strictness::Strict, Strictness::QemuCompatible] {
                    attempt(&body[..place], strictness);
                    for value in values(body[place], short) {
                        damaged[place] = value;
                        attempt(&damaged, strictness);
                    }
                    damaged[place] = body[place];
                }
            }
            assert!(loads > 0 && errors > 0, "{idstr}: {loads} loads, {errors} errors");
        }
    }
    assert!(attacked.len() >= 17, "{attacked:?}");
}
