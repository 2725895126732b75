//! Sections of QEMU's `microvm` for devices that this machine lacks and its guests do not need: kept unchanged, and sent on. A
//! guest that began here has none.
//!
//! QEMU's firmware reads kernel and tables from `fw_cfg`; Linux has no driver for it in this machine, whose ACPI tables do not
//! list it. `kvm-tpr-opt` (hw/i386/vapic.c) patches 32-bit Windows guests.

use std::convert::Infallible;

use vmstate::VmState;
use vmstate::state::Unused;

/// Sections that are kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeptSections {
    /// Section `fw_cfg`.
    pub fw_cfg: FwCfg,
    /// Section `kvm-tpr-opt`.
    pub kvm_tpr_opt: KvmTprOpt,
}

/// Section `fw_cfg`, version 2. Version 1 had a 16-bit `cur_offset`; QEMU keeps both fields under one name.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "fw_cfg", version = 2, minimum_version = 1, needed = Self::has_come, post_load = Self::comes)]
#[vmstate(subsection(name = "fw_cfg/dma", version = 0))]
#[vmstate(subsection(name = "fw_cfg/acpi_mr"))]
pub struct FwCfg {
    /// Selected item.
    cur_entry: u16,
    /// Position in it.
    #[vmstate(name = "cur_offset", exists = Self::is_version_1, wire = u16)]
    cur_offset_version_1: u32,
    /// Position in it.
    #[vmstate(name = "cur_offset", since = 2)]
    cur_offset: u32,
    /// Half-written address of a DMA request.
    #[vmstate(subsection = "fw_cfg/dma")]
    dma_addr: u64,
    /// Bytes of `etc/acpi/tables`.
    #[vmstate(subsection = "fw_cfg/acpi_mr")]
    table_mr_size: u64,
    /// Bytes of `etc/table-loader`.
    #[vmstate(subsection = "fw_cfg/acpi_mr")]
    linker_mr_size: u64,
    /// Bytes of `etc/acpi/rsdp`.
    #[vmstate(subsection = "fw_cfg/acpi_mr")]
    rsdp_mr_size: u64,
    #[vmstate(skip)]
    come: bool,
}

/// Section `kvm-tpr-opt`, version 1.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "kvm-tpr-opt", version = 1, needed = Self::has_come, post_load = Self::comes)]
pub struct KvmTprOpt {
    rom_state: GuestRom,
    state: u32,
    real_tpr_addr: u32,
    rom_state_vaddr: u32,
    vapic_paddr: u32,
    rom_state_paddr: u32,
    #[vmstate(skip)]
    come: bool,
}

/// State of the option ROM of `kvm-tpr-opt`.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "kvmvapic-guest-rom", version = 1)]
struct GuestRom {
    signature: Unused<8>,
    vaddr: u32,
    fixup_start: u32,
    fixup_end: u32,
    vapic_vaddr: u32,
    vapic_size: u32,
    vcpu_shift: u32,
    real_tpr_addr: u32,
    up: Handlers,
    mp: Handlers,
}

/// Entry points of that option ROM.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "kvmvapic-handlers", version = 1)]
struct Handlers {
    set_tpr: u32,
    set_tpr_eax: u32,
    get_tpr: [u32; 8],
    get_tpr_stack: u32,
}

impl FwCfg {
    fn is_version_1(&self, version: u32) -> bool {
        version == 1
    }

    fn has_come(&self) -> bool {
        self.come
    }

    fn comes(&mut self, _version: u32) -> Result<(), Infallible> {
        self.come = true;
        Ok(())
    }
}

impl KvmTprOpt {
    fn has_come(&self) -> bool {
        self.come
    }

    fn comes(&mut self, _version: u32) -> Result<(), Infallible> {
        self.come = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vmstate::Section;
    use vmstate::codec::{Reader, Writer};

    use super::*;

    /// The body and its subsections as QEMU 10.0 sends them (its `microvm` with ACPI).
    const FW_CFG: &[u8] = b"\0\x19\0\0\0\x07\
        \x05\x0afw_cfg/dma\0\0\0\0\0\0\0\0\0\0\0\0\
        \x05\x0efw_cfg/acpi_mr\0\0\0\x01\0\0\0\0\0\0\x02\xae\0\0\0\0\0\0\x06\x80\0\0\0\0\0\0\0\x24";

    #[test]
    fn what_came_is_sent_on_and_nothing_else_is() {
        let mut fw_cfg = FwCfg::default();
        assert!(!Section::is_needed(&fw_cfg) && !Section::is_needed(&KvmTprOpt::default()));
        Section::load(&mut fw_cfg, &mut Reader::strict(FW_CFG), 2).unwrap();
        assert!(Section::is_needed(&fw_cfg));
        let mut out = Writer::new();
        Section::save(&mut fw_cfg, &mut out).unwrap();
        assert_eq!(out.into_bytes().escape_ascii().to_string(), FW_CFG.escape_ascii().to_string());

        let mut refused = FwCfg::default();
        Section::load(&mut refused, &mut Reader::strict(&FW_CFG[..5]), 2).unwrap_err();
        assert!(!Section::is_needed(&refused));

        let mut tpr = KvmTprOpt::default();
        let body: Vec<u8> = (0..8 + 28 + 2 * 44 + 20).map(|at| if at < 8 { 0 } else { at }).collect();
        Section::load(&mut tpr, &mut Reader::strict(&body), 1).unwrap();
        assert!(Section::is_needed(&tpr));
        let mut out = Writer::new();
        Section::save(&mut tpr, &mut out).unwrap();
        assert_eq!(out.into_bytes(), body);
    }
}
