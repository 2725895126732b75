//! The rules of a section as a whole, and the names and instance ids by which a registry finds it (QEMU's
//! `vmstate_register_with_alias_id`, `savevm_state_handler_insert` and `find_se`, migration/savevm.c).

use crate::toy::{full, load, saved, stream};
use vmstate::codec::{Reader, Strictness};
use vmstate::error::ErrorKind;
use vmstate::section::{Section, Sections};
use vmstate::{SectionRules, VmState};

#[derive(VmState, Default)]
#[vmstate(name = "plain")]
struct Plain {
    a: u8,
}

#[derive(VmState, Default)]
#[vmstate(name = "iommu", priority = 1)]
struct Iommu {
    a: u8,
}

#[derive(VmState, Default)]
#[vmstate(name = "plug", needed = Self::is_used)]
struct Plug {
    a: u8,
}

impl Plug {
    fn is_used(&self) -> bool {
        self.a != 0
    }
}

#[derive(VmState, Default)]
#[vmstate(name = "virtio-mem", early_setup, priority = 3)]
struct VirtioMem {
    a: u8,
}

#[derive(VmState, Default)]
#[vmstate(name = "uart", instance_id = 7, alias_id = 3)]
struct Uart {
    a: u8,
}

#[derive(VmState, Default)]
#[vmstate(name = "vfio", unmigratable = "the device is a piece of hardware")]
struct Vfio {
    a: u8,
}

#[derive(VmState, Default)]
#[vmstate(name = "nvme", unmigratable)]
struct Nvme {
    a: u8,
}

fn of_four(used: u8) -> Sections<'static> {
    let mut sections = Sections::new();
    sections.add(Plain { a: 1 }).unwrap();
    sections.add(Plug { a: used }).unwrap();
    sections.add(VirtioMem { a: 3 }).unwrap();
    sections.add(Iommu { a: 4 }).unwrap();
    sections.add(Plain { a: 5 }).unwrap();
    sections
}

#[test]
fn higher_priorities_go_first_early_ones_before_the_memory_and_what_is_not_needed_not_at_all() {
    // Sections are numbered from 2 in the order of their priorities, and in the order of registration within one.
    let (mem, iommu) = (full(2, "virtio-mem", 0, 3), full(3, "iommu", 0, 4));
    let (plain, plug, second) = (full(4, "plain", 0, 1), full(5, "plug", 0, 2), full(6, "plain", 1, 5));
    let all = stream(std::slice::from_ref(&mem), &[iommu.clone(), plain.clone(), plug, second.clone()]);
    let without = stream(&[mem], &[iommu, plain, second]);
    for (used, expected, names) in [
        (2, &all, &["virtio-mem", "iommu", "plain", "plug", "plain"][..]),
        (0, &without, &["virtio-mem", "iommu", "plain", "plain"]),
    ] {
        let bytes = saved(&mut of_four(used)).unwrap();
        assert_eq!(bytes[..expected.len()].escape_ascii().to_string(), expected.escape_ascii().to_string());
        let text: serde_json::Value = serde_json::from_slice(&bytes[expected.len() + 5..]).unwrap();
        let described: Vec<_> = text["devices"].as_array().unwrap().iter().map(|device| &device["name"]).collect();
        assert_eq!(described, names);
        for used in [0, 9] {
            load(&bytes, Strictness::Strict, &mut of_four(used)).unwrap();
        }
    }
    let error = load(&stream(&[], &[]), Strictness::Strict, &mut of_four(0)).unwrap_err();
    assert_eq!(error.to_string(), "required sections did not arrive: plain/0, virtio-mem/0, iommu/0, plain/1");
}

/// A remedy is in each refusal about its name, and in no other; a section that goes beyond QEMU may be missing.
#[test]
fn a_refusal_ends_with_the_remedy_for_its_name() {
    let mut sections = Sections::new();
    sections.add(Plain::default()).unwrap();
    sections.register("plain", 1, Plain::default()).unwrap().beyond_qemu();
    sections.add_remedy("plain", "give both sides one disk");
    sections.add_remedy("rtc", "start QEMU with rtc=off");
    sections.add_remedy("plain/amx", "start QEMU with -amx");
    let mut refusal = |devices: &[Vec<u8>]| {
        load(&stream(&[], devices), Strictness::Strict, &mut sections).map_err(|error| error.message().to_owned())
    };
    assert_eq!(refusal(&[full(2, "plain", 0, 1)]), Ok(()));
    let missing = refusal(&[full(2, "plain", 1, 1)]).unwrap_err();
    assert_eq!(missing, "required sections did not arrive: plain/0 (give both sides one disk)");
    let no_instance = refusal(&[full(2, "plain", 2, 1)]).unwrap_err();
    assert_eq!(no_instance, "this machine has no such instance: give both sides one disk");
    let no_section = refusal(&[full(2, "rtc", 0, 1)]).unwrap_err();
    assert_eq!(no_section, "this machine has no such section: start QEMU with rtc=off");
    let (plain, footer) = (full(2, "plain", 0, 1), 5);
    let (plain, footer) = plain.split_at(plain.len() - footer);
    for (name, remedy) in [("plain/amx", ": start QEMU with -amx"), ("plain/pkr", "")] {
        let unknown = refusal(&[[plain, &[5, 9], name.as_bytes(), &[0, 0, 0, 1], footer].concat()]).unwrap_err();
        assert_eq!(unknown, format!("subsection {name:?} is not known to \"plain\"{remedy}"));
    }
    let other = refusal(&[full(2, "rtcs", 0, 1)]).unwrap_err();
    assert_eq!(other, "this machine has no such section: both sides need the same devices");
}

#[test]
fn an_instance_number_is_given_or_the_next_one() {
    let mut sections = Sections::new();
    let add = |section: &mut Registration| section.instance();
    assert_eq!(add(sections.add(Plain::default()).unwrap()), 0);
    assert_eq!(add(sections.add(Plain::default()).unwrap()), 1);
    sections.register("plain", 8, Plain::default()).unwrap();
    assert_eq!(add(sections.add(Plain::default()).unwrap()), 9);
    assert_eq!(add(sections.add(Iommu::default()).unwrap()), 0);
    assert_eq!(add(sections.add(Uart::default()).unwrap()), 7);
    let error = sections.add(Uart::default()).unwrap_err();
    assert_eq!((error.kind(), error.section()), (ErrorKind::Misuse, Some("uart/7")));
    sections.register("plain", u32::MAX, Plain::default()).unwrap();
    let error = sections.add(Plain::default()).unwrap_err();
    assert_eq!(error.to_string(), "plain/4294967295: no instance number is left");
}

type Registration = vmstate::section::Registration<'static>;

#[test]
fn an_alias_is_a_second_instance_id() {
    for (instance, known) in [(7, true), (3, true), (0, false)] {
        let mut uart = Uart::default();
        let mut sections = Sections::new();
        sections.register("uart", 7, &mut uart as &mut dyn Section).unwrap();
        let loaded = load(&stream(&[], &[full(2, "uart", instance, 9)]), Strictness::Strict, &mut sections);
        drop(sections);
        assert_eq!((loaded.is_ok(), uart.a == 9), (known, known), "{instance}");
    }
}

/// Streams of an earlier release have the name `uart`; a stream of this one has `plain`.
#[test]
fn an_older_name_loads_into_the_section_that_has_a_new_one() {
    for strictness in [Strictness::Strict, Strictness::QemuCompatible] {
        for names in [["uart", "uart"], ["plain", "plain"], ["uart", "plain"]] {
            let mut devices = [Plain { a: 1 }, Plain { a: 2 }];
            let [first, second] = &mut devices;
            let mut sections = Sections::new();
            sections.add(first as &mut dyn Section).unwrap();
            sections.add_alias("plain", "uart").unwrap();
            sections.add_alias("plain", "uart").unwrap();
            sections.add(second as &mut dyn Section).unwrap();
            let bytes = saved(&mut sections).unwrap();
            let expected = stream(&[], &[full(2, "plain", 0, 1), full(3, "plain", 1, 2)]);
            assert_eq!(bytes[..expected.len()].escape_ascii().to_string(), expected.escape_ascii().to_string());
            let old = stream(&[], &[full(2, names[0], 1, 20), full(3, names[1], 0, 10)]);
            load(&old, strictness, &mut sections).unwrap();
            let unknown = load(&stream(&[], &[full(2, "uart", 2, 0)]), strictness, &mut sections).unwrap_err();
            assert_eq!((unknown.kind(), unknown.section()), (ErrorKind::Incompatible, Some("uart/2")));
            assert_eq!(unknown.message(), "this machine has no such instance: both sides need the same devices");
            drop(sections);
            assert_eq!(devices.map(|device| device.a), [10, 20]);
        }
    }
    let mut sections = Sections::new();
    sections.add(Plain { a: 1 }).unwrap();
    sections.add_alias("plain", "uart").unwrap();
    let twice = stream(&[], &[full(2, "uart", 0, 5), full(3, "plain", 0, 6)]);
    let error = load(&twice, Strictness::Strict, &mut sections).unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Malformed, "came twice"));
}

#[test]
fn an_older_name_on_a_bus_has_its_path() {
    let mut plain = Plain { a: 1 };
    let mut sections = Sections::new();
    sections.add_at("pci0", &mut plain as &mut dyn Section).unwrap();
    sections.add_alias("pci0/plain", "pci0/uart").unwrap();
    // The name from before it had a path: QEMU's loads recognise it without an alias.
    sections.add_alias("pci0/plain", "plain").unwrap();
    for (name, value) in [("pci0/uart", 2), ("plain", 3)] {
        load(&stream(&[], &[full(2, name, 0, value)]), Strictness::Strict, &mut sections).unwrap();
        load(&stream(&[], &[full(2, name, 0, value)]), Strictness::QemuCompatible, &mut sections).unwrap();
    }
    drop(sections);
    assert_eq!(plain.a, 3);
}

/// Whichever of the two is registered first.
#[test]
fn a_name_that_could_mean_two_sections_is_refused() {
    fn with(names: &[&str]) -> Sections<'static> {
        let mut sections = Sections::new();
        for name in names {
            sections.register(name, 0, Plain::default()).unwrap();
        }
        sections
    }
    let refused = |result: vmstate::Result<()>, says: &str| {
        let error = result.unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Misuse, says));
    };
    let text = "serial/0: its older name \"uart\" also means uart";
    refused(with(&["uart", "serial"]).add_alias("serial", "uart"), text);
    let mut sections = with(&["serial"]);
    sections.add_alias("serial", "uart").unwrap();
    let text = "uart/0: this is the older name of serial: give it another one";
    refused(sections.register("uart", 0, Plain::default()).map(drop), text);
    let text = "uart/1: this is the older name of serial: give it another one";
    refused(sections.register("uart", 1, Plain::default()).map(drop), text);
    let mut sections = with(&["serial", "debug"]);
    sections.add_alias("serial", "uart").unwrap();
    refused(sections.add_alias("debug", "uart"), "debug/0: its older name \"uart\" also means serial");
    let text = "serial/0: its older name \"serial\" also means serial";
    refused(sections.add_alias("serial", "serial"), text);
    let text = "uart/0: no section has this name: register it before its older names";
    refused(sections.add_alias("uart", "com"), text);
    refused(sections.add_alias("serial", ""), "/0: a section's name has 1 to 255 bytes");
    // A QEMU-compatible load also accepts a section with a path under its name alone.
    let mut sections = with(&["serial"]);
    sections.add_at("pci0", Plain::default()).unwrap();
    let text = "serial/0: its older name \"plain\" also means pci0/plain";
    refused(sections.add_alias("serial", "plain"), text);
    let mut sections = with(&["serial"]);
    sections.add_alias("serial", "plain").unwrap();
    let text = "pci0/plain/0: without its path it is the older name of serial";
    refused(sections.add_at("pci0", Plain::default()).map(drop), text);
}

#[test]
fn a_path_is_in_the_name_and_old_streams_without_it_are_found() {
    let mut devices = [Plain { a: 1 }, Plain { a: 2 }];
    let [first, second] = &mut devices;
    let mut sections = Sections::new();
    sections.add_at("0000:00:01.0", first as &mut dyn Section).unwrap();
    sections.add_at("0000:00:02.0", second as &mut dyn Section).unwrap();
    let bytes = saved(&mut sections).unwrap();
    let expected = stream(&[], &[full(2, "0000:00:01.0/plain", 0, 1), full(3, "0000:00:02.0/plain", 0, 2)]);
    assert_eq!(bytes[..expected.len()].escape_ascii().to_string(), expected.escape_ascii().to_string());

    let old = stream(&[], &[full(2, "plain", 1, 20), full(3, "plain", 0, 10)]);
    load(&old, Strictness::QemuCompatible, &mut sections).unwrap();
    let error = load(&old, Strictness::Strict, &mut sections).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    let error = load(&stream(&[], &[full(2, "plain", 2, 0)]), Strictness::QemuCompatible, &mut sections).unwrap_err();
    assert_eq!(
        error.to_string(),
        "plain/2 at 0x6d: this machine has no such section: both sides need the same devices"
    );
    drop(sections);
    assert_eq!(devices.map(|device| device.a), [10, 20]);
}

/// `find_se` returns the first that matches, also by its old name.
#[test]
fn an_old_name_is_found_before_a_later_device_of_that_name() {
    let mut devices = [Plain { a: 1 }, Plain { a: 2 }];
    let [first, second] = &mut devices;
    let mut sections = Sections::new();
    sections.add_at("pci", first as &mut dyn Section).unwrap();
    sections.register("plain", 0, second as &mut dyn Section).unwrap();
    let both = stream(&[], &[full(2, "pci/plain", 0, 10), full(3, "plain", 0, 20)]);
    load(&both, Strictness::QemuCompatible, &mut sections).unwrap();
    load(&both, Strictness::Strict, &mut sections).unwrap();
    load(&stream(&[], &[full(3, "plain", 0, 30)]), Strictness::QemuCompatible, &mut sections).unwrap();
    load(&both, Strictness::QemuCompatible, &mut sections).unwrap();
    drop(sections);
    assert_eq!(devices.map(|device| device.a), [20, 20]);
}

#[test]
fn an_unmigratable_device_stops_save_and_load_before_they_begin() {
    for (section, text) in [
        (
            Box::new(Vfio::default()) as Box<dyn Section>,
            "vfio/0: this machine cannot be migrated: the device is a piece of hardware",
        ),
        (Box::new(Nvme::default()), "nvme/0: this machine cannot be migrated: its state cannot be sent"),
    ] {
        let mut section = section;
        let mut sections = Sections::new();
        sections.add(Plain { a: 1 }).unwrap();
        sections.add(&mut *section as &mut dyn Section).unwrap();
        let error = saved(&mut sections).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Rejected, text));
        let error = load(b"", Strictness::QemuCompatible, &mut sections).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Rejected, text));
    }
    let mut sections = Sections::new();
    sections.add(Plain { a: 1 }).unwrap().unmigratable("a debugger is attached");
    let error = sections.check_migratable().unwrap_err();
    assert_eq!(error.to_string(), "plain/0: this machine cannot be migrated: a debugger is attached");
}

/// A nested struct has its own rules, not its parent's.
#[derive(VmState, Default)]
#[vmstate(name = "board")]
struct Board {
    vfio: Vfio,
    plug: Plug,
}

#[test]
fn rules_are_the_sections_own() {
    assert_eq!(Board::SECTION, SectionRules::DEFAULT);
    let mut board = Board::default();
    board.load_or_keep(&mut Reader::strict(&[1, 0]), 1).unwrap();
    let mut sections = Sections::new();
    sections.add(board).unwrap();
    let bytes = saved(&mut sections).unwrap();
    let section = b"\x04\0\0\0\x02\x05board\0\0\0\0\0\0\0\x01\x01\0\x7e\0\0\0\x02";
    assert!(bytes.windows(section.len()).any(|window| window == section));
    let shared = std::sync::Arc::new(std::sync::Mutex::new(VirtioMem::default()));
    assert!(Section::rules(&shared).early_setup);
    let plug = std::sync::Arc::new(std::sync::Mutex::new(Plug::default()));
    assert!(!Section::is_needed(&plug));
}
