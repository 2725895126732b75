//! ACPI tables: hardware-reduced, with the devices of QEMU's `microvm` under QEMU's names.
//!
//! RSDP, XSDT, FADT (reset, sleep control and sleep status through the GED's registers), MADT, DSDT (COM1, GED with
//! its power button, the generation id, the virtio-mmio windows in use, `\_S5`). References: ACPI specification 6.5, chapter and table
//! numbers below; QEMU's own tables, as they are in guest memory of a running `microvm`. `VGEN` is that of QEMU's device `vmgenid`, which its `microvm` does not take.

use acpi_tables::aml::{
    And, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate,
    Scope, Store,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

use crate::boot::layout::ACPI;
use crate::error::Result;
use crate::machine_map::{
    COM1, COM1_GSI, COM1_LEN, GED, GED_GENERATION, GED_GSI, GED_POWER_BUTTON, GED_RESET, GED_RESET_VALUE,
    GED_SLEEP_CONTROL, GED_SLEEP_STATUS, GENERATION_ID, IOAPIC, LAPIC, SLEEP_TYPE_S5, VIRTIO_MMIO_LEN, virtio_place,
};
use crate::memory::Ram;

const OEM: [u8; 6] = *b"VMSTAT";
const TABLE: [u8; 8] = *b"MINIVMM ";
const REVISION: u32 = 1;

/// FADT "IA-PC boot architecture": no VGA, no CMOS clock (table 5.11); no 8042, no other legacy device.
const NO_VGA_NO_CMOS: u16 = 1 << 2 | 1 << 5;

/// Parts of the machine that the tables describe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// vCPUs; their APIC ids count from 0.
    pub cpus: u8,
    /// Windows that hold a virtio device.
    pub virtio_windows: Vec<u8>,
}

/// Writes all tables to [`layout::ACPI`](super::layout::ACPI); the RSDP is at its start.
pub(crate) fn write(ram: &Ram, machine: &Machine) -> Result<()> {
    let mut at = ACPI.start + 64;
    let mut put = |table: &dyn Aml| {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let address = at;
        at += (bytes.len() as u64).next_multiple_of(16);
        ram.write(address, &bytes).map(|()| address)
    };
    let dsdt = put(&dsdt(&machine.virtio_windows))?;
    let fadt = put(&fadt(dsdt))?;
    let madt = put(&madt(machine.cpus))?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&xsdt)?;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    ram.write(ACPI.start, &rsdp)
}

/// Section 5.2.9; in a hardware-reduced one (4.1) all fixed hardware is absent.
fn fadt(dsdt: u64) -> impl Aml {
    let byte = |offset| GAS::new(AddressSpace::SystemMemory, 8, 0, AccessSize::Undefined, GED + offset);
    let mut fadt =
        FADTBuilder::new(OEM, TABLE, REVISION).dsdt_64(dsdt).flag(Flags::HwReducedAcpi).flag(Flags::ResetRegSup);
    fadt.sleep_control_reg = byte(GED_SLEEP_CONTROL);
    fadt.sleep_status_reg = byte(GED_SLEEP_STATUS);
    fadt.reset_reg = byte(GED_RESET);
    fadt.reset_value = GED_RESET_VALUE;
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS.into();
    fadt.finalize()
}

/// Section 5.2.12. No interrupt source overrides, like QEMU's table: GSIs are the IOAPIC's pins.
fn madt(cpus: u8) -> impl Aml {
    const PCAT_COMPAT: u32 = 1;
    let mut madt = Sdt::new(*b"APIC", 36, 3, OEM, TABLE, REVISION);
    madt.append_slice(&LAPIC.to_le_bytes());
    madt.append_slice(&PCAT_COMPAT.to_le_bytes());
    for cpu in 0..cpus {
        // Processor local APIC: processor uid, APIC id, enabled.
        madt.append_slice(&[0, 8, cpu, cpu, 1, 0, 0, 0]);
    }
    madt.append_slice(&[1, 12, 0, 0]);
    madt.append_slice(&IOAPIC.to_le_bytes());
    madt.append_slice(&0_u32.to_le_bytes());
    // NMI at LINT1 of every processor.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt
}

fn dsdt(virtio_windows: &[u8]) -> impl Aml {
    let mut body = Vec::new();
    add_com1(&mut body);
    add_ged(&mut body);
    add_generation(&mut body);
    for &window in virtio_windows {
        add_virtio(&mut body, window);
    }
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    dsdt.append_slice(&Scope::raw(Path::new("_SB_"), body));
    let mut s5 = Vec::new();
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_S5, &aml::ZERO, &aml::ZERO, &aml::ZERO]))
        .to_aml_bytes(&mut s5);
    dsdt.append_slice(&s5);
    dsdt
}

fn add_com1(body: &mut Vec<u8>) {
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &aml::ONE),
            &Name::new("_STA".into(), &0xf_u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(COM1, COM1, 0, COM1_LEN as u8),
                    &Interrupt::new(true, true, false, false, COM1_GSI),
                ]),
            ),
        ],
    )
    .to_aml_bytes(body);
}

/// Section 5.6.9: on an interrupt the guest reads the event selector, and notifies the device of each event.
fn add_ged(body: &mut Vec<u8>) {
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &"GED"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&Interrupt::new(true, true, false, false, GED_GSI)])),
            &OpRegion::new("EREG".into(), OpRegionSpace::SystemMemory, &(GED as u32), &4_u8),
            &Field::new(
                "EREG".into(),
                FieldAccessType::DWord,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"ESEL", 32)],
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&Local(0), &Path::new("ESEL")),
                    &And::new(&Local(1), &Local(0), &GED_POWER_BUTTON),
                    &If::new(
                        &Equal::new(&Local(1), &GED_POWER_BUTTON),
                        vec![&Notify::new(&Path::new("PWRB"), &0x80_u8)],
                    ),
                    &And::new(&Local(1), &Local(0), &GED_GENERATION),
                    &If::new(&Equal::new(&Local(1), &GED_GENERATION), vec![&Notify::new(&Path::new("VGEN"), &0x80_u8)]),
                ],
            ),
        ],
    )
    .to_aml_bytes(body);
    Device::new(
        "PWRB".into(),
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &Name::new("_UID".into(), &aml::ZERO)],
    )
    .to_aml_bytes(body);
}

/// "Virtual Machine Generation ID", Microsoft 2012: `ADDR` gives the id's address as two integers, the low one first.
fn add_generation(body: &mut Vec<u8>) {
    Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"QEMUVGID"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&(GENERATION_ID as u32), &((GENERATION_ID >> 32) as u32)])),
        ],
    )
    .to_aml_bytes(body);
}

fn add_virtio(body: &mut Vec<u8>, window: u8) {
    let (address, gsi) = virtio_place(window);
    Device::new(
        format!("VR{window:02}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &window),
            &Name::new("_CCA".into(), &aml::ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, address as u32, VIRTIO_MMIO_LEN as u32),
                    &Interrupt::new(true, false, false, false, gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(machine: &Machine) -> Ram {
        let ram = Ram::new(1 << 20).unwrap();
        write(&ram, machine).unwrap();
        ram
    }

    fn bytes(ram: &Ram, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        ram.read(at, &mut bytes).unwrap();
        bytes
    }

    fn u64_in(table: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
    }

    /// Returns a table as an operating system reads it: by its own length, with a sum of zero (section 5.2.6).
    fn table(ram: &Ram, at: u64, signature: &[u8; 4]) -> Vec<u8> {
        let header = bytes(ram, at, 36);
        assert_eq!(&header[..4], signature);
        let table = bytes(ram, at, u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize);
        assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "{signature:?}");
        table
    }

    fn contains(table: &[u8], part: &[u8]) -> bool {
        table.windows(part.len()).any(|window| window == part)
    }

    /// Follows the pointers from the RSDP (offsets: sections 5.2.5.3, 5.2.8, 5.2.9).
    #[test]
    fn an_operating_system_finds_every_table() {
        let ram = tables(&Machine { cpus: 8, virtio_windows: (0..8).collect() });
        let rsdp = bytes(&ram, 0x9_0000, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        for len in [20, 36] {
            assert_eq!(rsdp[..len].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        }
        let xsdt = table(&ram, u64_in(&rsdp, 24), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 2 * 8);
        table(&ram, u64_in(&xsdt, 44), b"APIC");
        let fadt = table(&ram, u64_in(&xsdt, 36), b"FACP");
        let dsdt = table(&ram, u64_in(&fadt, 140), b"DSDT");
        assert!(u64_in(&fadt, 140) >= 0x9_0040 && dsdt.len() < 0x1000);
        // Flags: hardware-reduced, reset register. Then the reset register and its value, sleep control and sleep status, as in
        // QEMU's FADT.
        assert_eq!(fadt[112..116], [0, 4, 0x10, 0]);
        assert_eq!(fadt[116..129], [0, 8, 0, 0, 0x02, 0x02, 0xa0, 0xfe, 0, 0, 0, 0, 0x42]);
        assert_eq!(fadt[244..256], [0, 8, 0, 0, 0x00, 0x02, 0xa0, 0xfe, 0, 0, 0, 0]);
        assert_eq!(fadt[256..268], [0, 8, 0, 0, 0x01, 0x02, 0xa0, 0xfe, 0, 0, 0, 0]);
        for window in 0..8 {
            assert!(contains(&dsdt, format!("VR{window:02}").as_bytes()));
        }
    }

    /// QEMU 10.0's MADT of a `microvm` with one vCPU, behind the header.
    #[test]
    fn madt_is_qemus() {
        let mut madt = Vec::new();
        super::madt(1).to_aml_bytes(&mut madt);
        let qemu = [
            0x00, 0x00, 0xe0, 0xfe, 0x01, 0x00, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x01, 0x0c,
            0x00, 0x00, 0x00, 0x00, 0xc0, 0xfe, 0x00, 0x00, 0x00, 0x00, 0x04, 0x06, 0xff, 0x00, 0x00, 0x01,
        ];
        assert_eq!(madt[36..], qemu);
    }

    /// QEMU 10.0's AML for the virtio device of window 7, its power button and `\_S5`.
    #[test]
    fn dsdt_has_qemus_devices() {
        let mut dsdt = Vec::new();
        super::dsdt(&[7]).to_aml_bytes(&mut dsdt);
        assert!(contains(
            &dsdt,
            b"\x5b\x82\x42\x04VR07\x08_HID\x0dLNRO0005\0\x08_UID\x0a\x07\x08_CCA\x01\x08_CRS\x11\x1a\x0a\x17\
              \x86\x09\0\x01\0\x0e\xb0\xfe\0\x02\0\0\x89\x06\0\x01\x01\x17\0\0\0\x79\0"
        ));
        assert!(contains(&dsdt, b"\x08_S5_\x12\x07\x04\x0a\x05\0\0\0"));
        assert!(contains(
            &dsdt,
            b"\x5b\x82\x4d\x04VGEN\x08_HID\x0dQEMUVGID\0\x08_CID\x0dVM_Gen_Counter\0\x08_DDN\x0dVM_Gen_Counter\0"
        ));
        assert!(contains(&dsdt, b"\x08ADDR\x12\x08\x02\x0c\0\xf0\x09\0\0"));
        // If ((ESEL & 0x80) == 0x80) { Notify (VGEN, 0x80) }
        assert!(contains(&dsdt, b"\x7b\x60\x0a\x80\x61\xa0\x0c\x93\x61\x0a\x80\x86VGEN\x0a\x80"));
        assert!(contains(&dsdt, b"\x5b\x80EREG\0\x0c\0\0\xa0\xfe\x0a\x04\x5b\x81\x0bEREG"));
        assert!(!contains(&dsdt, b"VR06"));
    }
}
