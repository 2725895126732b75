//! Registers and tables that the boot protocols require: 64-bit Linux (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol")
//! and PVH (xen/docs/misc/pvh.pandoc).

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use crate::boot::layout::{GDT, PAGE_TABLES, START_INFO};
use crate::error::Result;
use crate::memory::Ram;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Present and writable; and a 2 MiB page.
const TABLE: u64 = 0x3;
const PAGE_2M: u64 = 0x83;

/// Start of the first vCPU. The first vCPU starts the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode, the first 4 GiB mapped one to one; RSI points to `boot_params`.
    Linux64(u64),
    /// 32-bit protected mode without paging; EBX points to `hvm_start_info`.
    Pvh(u64),
}

impl Entry {
    /// Returns the general registers.
    pub fn registers(self) -> kvm_regs {
        let start = kvm_regs { rflags: 2, ..Default::default() };
        match self {
            Self::Linux64(rip) => kvm_regs { rip, rsi: START_INFO, ..start },
            Self::Pvh(rip) => kvm_regs { rip, rbx: START_INFO, ..start },
        }
    }

    /// Sets segments and control registers on top of those of a CPU after reset.
    pub fn set_system_registers(self, sregs: &mut kvm_sregs) {
        let long = matches!(self, Self::Linux64(_));
        sregs.cs = code(long);
        for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
            *segment = DATA;
        }
        sregs.tr = TASK;
        sregs.gdt.base = GDT;
        sregs.gdt.limit = (descriptors(long).len() * 8 - 1) as u16;
        sregs.idt.limit = 0;
        sregs.cr0 = CR0_PE | CR0_ET;
        if long {
            sregs.cr0 |= CR0_PG;
            sregs.cr3 = PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
    }
}

/// Segments with the selectors that Linux names `__BOOT_CS` and `__BOOT_DS`.
fn code(long: bool) -> kvm_segment {
    kvm_segment { selector: 0x10, type_: 0xb, l: long.into(), db: (!long).into(), ..FLAT }
}
const DATA: kvm_segment = kvm_segment { selector: 0x18, type_: 0x3, db: 1, ..FLAT };
const TASK: kvm_segment = kvm_segment { selector: 0x20, limit: 0x67, type_: 0xb, s: 0, g: 0, ..FLAT };
const FLAT: kvm_segment = kvm_segment {
    base: 0,
    limit: 0xffff_ffff,
    selector: 0,
    type_: 0,
    present: 1,
    dpl: 0,
    db: 0,
    s: 1,
    l: 0,
    g: 1,
    avl: 0,
    unusable: 0,
    padding: 0,
};

fn descriptors(long: bool) -> [u64; 5] {
    [0, 0, descriptor(&code(long)), descriptor(&DATA), descriptor(&TASK)]
}

/// Encodes a segment as a GDT entry (Intel SDM volume 3, figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(segment.limit) >> if segment.g == 1 { 12 } else { 0 };
    let flags = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7
        | u64::from(segment.avl) << 12
        | u64::from(segment.l) << 13
        | u64::from(segment.db) << 14
        | u64::from(segment.g) << 15;
    let base = segment.base;
    limit & 0xffff | (base & 0xff_ffff) << 16 | flags << 40 | (limit >> 16 & 0xf) << 48 | (base >> 24 & 0xff) << 56
}

/// Writes the descriptor table and the page tables for `entry`.
pub(crate) fn write_tables(ram: &Ram, entry: Entry) -> Result<()> {
    for (n, value) in (0..).zip(descriptors(matches!(entry, Entry::Linux64(_)))) {
        ram.write(GDT + n * 8, &value.to_le_bytes())?;
    }
    let directories = PAGE_TABLES + 0x2000;
    ram.write(PAGE_TABLES, &((PAGE_TABLES + 0x1000) | TABLE).to_le_bytes())?;
    for gib in 0..4 {
        ram.write(PAGE_TABLES + 0x1000 + gib * 8, &((directories + gib * 0x1000) | TABLE).to_le_bytes())?;
    }
    for page in 0..4 * 512 {
        ram.write(directories + page * 8, &(page << 21 | PAGE_2M).to_le_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flat descriptors that every text about x86 prints: 64-bit code, 32-bit code, 32-bit data.
    #[test]
    fn descriptors_are_the_well_known_ones() {
        assert_eq!(descriptors(true), [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]);
        assert_eq!(descriptors(false)[2], 0x00cf_9b00_0000_ffff);
    }

    /// Walks the tables as the CPU does (Intel SDM volume 3, 4.5).
    #[test]
    fn page_tables_map_4_gib_one_to_one() {
        let ram = Ram::new(1 << 20).unwrap();
        write_tables(&ram, Entry::Linux64(0)).unwrap();
        let entry = |table: u64, index: u64| {
            let mut bytes = [0; 8];
            ram.read(table + index * 8, &mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        };
        for address in [0, 0x1f_ffff, 0x20_0000, 0xfea0_0200, 0xffff_ffff] {
            let pdpt = entry(PAGE_TABLES, address >> 39) & !0xfff;
            let directory = entry(pdpt, address >> 30 & 511) & !0xfff;
            let page = entry(directory, address >> 21 & 511);
            assert_eq!(page & 0x83, 0x83);
            assert_eq!((page & !0x1f_ffff) + (address & 0x1f_ffff), address);
        }
    }
}
