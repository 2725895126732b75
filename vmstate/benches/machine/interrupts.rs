//! Interrupt controllers: a pair of 8259, an I/O APIC, a local APIC for each CPU.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use vmstate::VmState;

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "i8259", version = 1)]
pub(super) struct Pic {
    last_irr: u8,
    irr: u8,
    imr: u8,
    isr: u8,
    priority_add: u8,
    irq_base: u8,
    read_reg_select: u8,
    poll: u8,
    special_mask: u8,
    init_state: u8,
    auto_eoi: u8,
    rotate_on_auto_eoi: u8,
    special_fully_nested_mode: u8,
    init4: u8,
    single_mode: u8,
    elcr: u8,
}

impl Pic {
    pub(super) fn new(seed: u64) -> Self {
        Self { last_irr: seed as u8, irr: 0x11, imr: 0xfb, irq_base: 0x30, elcr: 0x0c, ..Self::default() }
    }
}

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "ioapic", version = 3, minimum_version = 1)]
pub(super) struct IoApic {
    id: u8,
    ioregsel: u8,
    #[vmstate(since = 2)]
    irr: u32,
    ioredtbl: [u64; 24],
}

impl IoApic {
    pub(super) fn new(seed: u64) -> Self {
        let ioredtbl = std::array::from_fn(|n| if n < 16 { 0x0100_0000_0000_0030 + n as u64 } else { 0x1_0000 });
        Self { id: 0, ioregsel: 0x10 + seed as u8, irr: 0, ioredtbl }
    }
}

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "apic", version = 3)]
pub(super) struct Apic {
    apicbase: u32,
    id: u8,
    arb_id: u8,
    tpr: u8,
    spurious_vec: u32,
    log_dest: u8,
    dest_mode: u8,
    isr: [u32; 8],
    tmr: [u32; 8],
    irr: [u32; 8],
    lvt: [u32; 6],
    esr: u32,
    icr: [u32; 2],
    #[vmstate(range = 0..=11)]
    divide_conf: u32,
    count_shift: i32,
    initial_count: u32,
    initial_count_load_time: i64,
    next_time: i64,
    timer_expiry: i64,
}

impl Apic {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            apicbase: 0xfee0_0900,
            spurious_vec: 0x1ff,
            log_dest: 1,
            dest_mode: 15,
            irr: [0, 0, 0, seed as u32, 0, 0, 0, 0x1000],
            lvt: [0x400ec, 0x10000, 0x400, 0x700, 0x400, 0xfe],
            icr: [0xfd, 0x100_0000],
            divide_conf: 11,
            initial_count: 62_500 + seed as u32,
            initial_count_load_time: 7_654_321_000,
            next_time: 7_654_383_500,
            timer_expiry: -1,
            ..Self::default()
        }
    }
}
