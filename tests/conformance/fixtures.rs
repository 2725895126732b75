//! Streams that QEMU wrote: the independent parser must read them to the last byte.

use std::path::Path;

use vmstate_tests::stream_parser::{Page, SectionKind, Stream, Value, parse};

/// The whole streams among the fixtures.
pub(crate) const STREAMS: [&str; 3] = ["microvm-linux-kvm.bin", "microvm-linux-tcg.bin", "microvm-reset-16m.bin"];

pub(crate) fn bytes(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/streams").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn fixture(name: &str) -> Stream {
    parse(&bytes(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn names(stream: &Stream) -> Vec<&str> {
    stream.devices.iter().map(|device| device.name.as_str()).collect()
}

/// RAM blocks of QEMU's `microvm`, with their sizes for a given size of RAM.
fn blocks(ram: u64) -> [(&'static str, u64); 5] {
    [
        ("microvm.ram", ram),
        ("/rom@etc/acpi/tables", 4 << 10),
        ("pc.bios", 128 << 10),
        ("/rom@etc/table-loader", 4 << 10),
        ("/rom@etc/acpi/rsdp", 4 << 10),
    ]
}

#[test]
fn a_machine_at_reset_with_all_its_memory() {
    let stream = fixture("microvm-reset-16m.bin");
    assert_eq!(stream.configuration.machine, "microvm");
    assert!(stream.configuration.capabilities.is_empty());
    let sizes: Vec<_> = stream.ram.blocks.iter().map(|block| (block.name.as_str(), block.length)).collect();
    assert_eq!(sizes, blocks(16 << 20));
    // The guest never ran, so each page is sent once, in the first part.
    for block in &stream.ram.blocks {
        assert_eq!(block.pages.len() as u64 * 4096, block.length, "{}", block.name);
        assert_eq!(block.normal + block.zero, block.pages.len() as u64, "{}", block.name);
        assert_eq!(block.address, None);
    }
    assert!(stream.ram.block("microvm.ram").unwrap().pages.values().all(|page| *page == Page::Zero));
    assert_eq!(stream.ram.block("/rom@etc/acpi/rsdp").unwrap().normal, 1);
    // QEMU 10.0 announces the switch-over before the last RAM section.
    assert_eq!(stream.commands.iter().map(|command| command.code).collect::<Vec<_>>(), [11]);
    let end = stream.sections.iter().find(|section| section.kind == SectionKind::End).unwrap();
    assert!(stream.commands[0].offset < end.offset);
}

#[test]
fn a_running_linux_under_kvm() {
    let stream = fixture("microvm-linux-kvm.bin");
    assert_eq!(stream.configuration.capabilities, ["x-ignore-shared"]);
    assert_eq!(
        names(&stream),
        [
            "timer",
            "slirp",
            "fw_cfg",
            "cpu_common",
            "cpu",
            "kvm-tpr-opt",
            "apic",
            "ioapic",
            "kvmclock",
            "acpi-ged",
            "i8259",
            "i8259",
            "i8254",
            "serial",
            "virtio-mmio@00000000feb00e00/virtio-blk",
            "virtio-mmio@00000000feb00c00/virtio-net",
            "globalstate"
        ]
    );
    // With the capability, the block list carries addresses: RAM is at 0, the BIOS ends at 4 GiB. Shared RAM is not
    // sent.
    let bios = stream.ram.block("pc.bios").unwrap();
    assert_eq!(bios.address, Some((4 << 30) - (128 << 10)));
    assert!(stream.ram.block("microvm.ram").unwrap().pages.is_empty());

    let serial = stream.device("serial", 0).unwrap();
    assert_eq!(serial.version, 3);
    // 9600 baud, Linux' default for a console, is 115200 / 12.
    assert_eq!(serial.fields.value(&["state", "divider"]), Some(&Value::Unsigned(12)));
    assert_eq!(serial.fields.value(&["state", "lcr"]), Some(&Value::Unsigned(0x13)));
    // IA32_APIC_BASE of the boot processor: APIC on, x2APIC mode, the address after reset.
    let apic = &stream.device("apic", 0).unwrap().fields;
    assert_eq!(apic.value(&["apicbase"]), Some(&Value::Unsigned(0xfee0_0d00)));
    let clock = stream.device("kvmclock", 0).unwrap();
    assert!(clock.fields.subsection("kvmclock/clock_is_reliable").is_some());
    // Long mode: EFER has LME and LMA, CR0 has paging and protection.
    let cpu = &stream.device("cpu", 0).unwrap().fields;
    let Some(Value::Unsigned(efer)) = cpu.value(&["env.efer"]) else { panic!("no env.efer") };
    assert_eq!(efer & 0x500, 0x500);
}

#[test]
fn a_running_linux_under_tcg() {
    let stream = fixture("microvm-linux-tcg.bin");
    assert!(names(&stream).contains(&"mc146818rtc") && !names(&stream).contains(&"kvmclock"));
    let cpu = &stream.device("cpu", 0).unwrap().fields;
    assert!(cpu.subsection("cpu/fpop_ip_dp").is_some());
}
