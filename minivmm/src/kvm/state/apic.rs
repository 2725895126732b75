//! Section `apic`, version 3: the local APIC of one vCPU.
//!
//! The registers are KVM_GET_LAPIC's page, at the places the Intel SDM (volume 3, 11.4.1) gives them, 16 bytes apart.

use kvm_bindings::kvm_lapic_state;
use vmstate::VmState;

/// Local APIC registers.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "apic", version = 3)]
pub struct Apic {
    /// IA32_APIC_BASE; bits 0..31, as QEMU sends them.
    pub apicbase: u32,
    /// APIC id.
    pub id: u8,
    /// Arbitration priority.
    pub arb_id: u8,
    /// Task priority.
    pub tpr: u8,
    /// Spurious interrupt vector register.
    pub spurious_vec: u32,
    /// Logical destination, bits 24..31 of its register.
    pub log_dest: u8,
    /// Destination format, bits 28..31 of its register.
    pub dest_mode: u8,
    /// In service.
    pub isr: [u32; 8],
    /// Trigger mode.
    pub tmr: [u32; 8],
    /// Requested.
    pub irr: [u32; 8],
    /// Timer, thermal, performance, LINT0, LINT1, error.
    pub lvt: [u32; 6],
    /// Error status.
    pub esr: u32,
    /// Interrupt command, low and high.
    pub icr: [u32; 2],
    /// Timer divide configuration.
    pub divide_conf: u32,
    /// log2 of the divisor.
    pub count_shift: i32,
    /// Timer initial count.
    pub initial_count: u32,
    /// Time at which the count was loaded, in ns of the machine's clock.
    pub initial_count_load_time: i64,
    /// Time at which the timer fires next.
    pub next_time: i64,
    /// `next_time`, or -1 if the timer is not armed.
    pub timer_expiry: i64,
}

/// Register numbers: byte offset / 16.
mod register {
    pub(super) const ID: usize = 0x2;
    pub(super) const VERSION: usize = 0x3;
    pub(super) const TPR: usize = 0x8;
    pub(super) const APR: usize = 0x9;
    pub(super) const LDR: usize = 0xd;
    pub(super) const DFR: usize = 0xe;
    pub(super) const SPIV: usize = 0xf;
    pub(super) const ISR: usize = 0x10;
    pub(super) const TMR: usize = 0x18;
    pub(super) const IRR: usize = 0x20;
    pub(super) const ESR: usize = 0x28;
    pub(super) const ICR: usize = 0x30;
    pub(super) const LVT: usize = 0x32;
    pub(super) const TIMER_INITIAL: usize = 0x38;
    pub(super) const TIMER_CURRENT: usize = 0x39;
    pub(super) const DIVIDE: usize = 0x3e;
}

impl Apic {
    /// Converts from KVM's page. `now` is the machine's clock, to which QEMU's timer fields refer. Also returns the timer's
    /// current count, for which this section has no field.
    pub(super) fn from_kvm(page: &kvm_lapic_state, apic_base: u64, now: i64) -> (Self, u32) {
        let reg = |number: usize| get(page, number);
        let divide_conf = reg(register::DIVIDE);
        let count_shift = (((divide_conf & 3) | (divide_conf >> 1 & 4)) + 1) & 7;
        let current = reg(register::TIMER_CURRENT);
        let armed = current != 0;
        // The bus clock of KVM's LAPIC runs at 1 GHz (APIC_BUS_CYCLE_NS).
        let expiry = now.saturating_add(i64::from(current) << count_shift);
        let apic = Self {
            apicbase: apic_base as u32,
            id: (reg(register::ID) >> 24) as u8,
            arb_id: reg(register::APR) as u8,
            tpr: reg(register::TPR) as u8,
            spurious_vec: reg(register::SPIV),
            log_dest: (reg(register::LDR) >> 24) as u8,
            dest_mode: (reg(register::DFR) >> 28) as u8,
            isr: std::array::from_fn(|n| reg(register::ISR + n)),
            tmr: std::array::from_fn(|n| reg(register::TMR + n)),
            irr: std::array::from_fn(|n| reg(register::IRR + n)),
            lvt: std::array::from_fn(|n| reg(register::LVT + n)),
            esr: reg(register::ESR),
            icr: [reg(register::ICR), reg(register::ICR + 1)],
            divide_conf,
            count_shift: count_shift as i32,
            initial_count: reg(register::TIMER_INITIAL),
            initial_count_load_time: now,
            next_time: expiry,
            timer_expiry: if armed { expiry } else { -1 },
        };
        (apic, current)
    }

    /// Whether the timer counts to IA32_TSC_DEADLINE and is not masked (SDM volume 3, 11.5.1).
    pub(super) fn deadline_timer_is_armed(&self) -> bool {
        let [timer, ..] = self.lvt;
        timer >> 16 & 7 == 0b100
    }

    /// Converts to KVM's page; `host` has this host's read-only version register.
    pub(super) fn to_kvm(&self, host: &kvm_lapic_state, current_count: u32) -> kvm_lapic_state {
        let mut page = kvm_lapic_state::default();
        let mut set = |number: usize, value: u32| put(&mut page, number, value);
        set(register::ID, u32::from(self.id) << 24);
        set(register::VERSION, get(host, register::VERSION));
        set(register::TPR, self.tpr.into());
        set(register::APR, self.arb_id.into());
        set(register::LDR, u32::from(self.log_dest) << 24);
        set(register::DFR, u32::from(self.dest_mode) << 28 | 0x0fff_ffff);
        set(register::SPIV, self.spurious_vec);
        for n in 0..8 {
            set(register::ISR + n, self.isr[n]);
            set(register::TMR + n, self.tmr[n]);
            set(register::IRR + n, self.irr[n]);
        }
        set(register::ESR, self.esr);
        set(register::ICR, self.icr[0]);
        set(register::ICR + 1, self.icr[1]);
        for (n, &lvt) in self.lvt.iter().enumerate() {
            set(register::LVT + n, lvt);
        }
        set(register::TIMER_INITIAL, self.initial_count);
        set(register::TIMER_CURRENT, current_count);
        set(register::DIVIDE, self.divide_conf);
        page
    }
}

fn get(page: &kvm_lapic_state, number: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|n| page.regs[number * 16 + n] as u8))
}

fn put(page: &mut kvm_lapic_state, number: usize, value: u32) {
    for (n, byte) in value.to_le_bytes().into_iter().enumerate() {
        page.regs[number * 16 + n] = byte as _;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Register addresses from the SDM's table, written out.
    #[test]
    fn reads_and_writes_the_registers_where_the_manual_puts_them() {
        let mut page = kvm_lapic_state::default();
        for (address, value) in [
            (0x20, 0x0300_0000_u32),
            (0x30, 0x0005_0014),
            (0x80, 0x20),
            (0xd0, 0x0800_0000),
            (0xe0, 0xffff_ffff),
            (0xf0, 0x1ff),
            (0x130, 1 << 5),
            (0x320, 0x0002_00ec),
            (0x370, 0xfe),
            (0x380, 1000),
            (0x390, 600),
            (0x3e0, 3),
        ] {
            for (n, byte) in value.to_le_bytes().into_iter().enumerate() {
                page.regs[address + n] = byte as _;
            }
        }
        let (apic, current) = Apic::from_kvm(&page, 0xfee0_0900, 7000);
        assert_eq!((apic.id, apic.tpr, apic.log_dest, apic.dest_mode), (3, 0x20, 8, 15));
        assert_eq!((apic.spurious_vec, apic.isr[3], apic.lvt[0], apic.lvt[5]), (0x1ff, 32, 0x0002_00ec, 0xfe));
        assert_eq!((apic.initial_count, current, apic.count_shift), (1000, 600, 4));
        assert_eq!(apic.timer_expiry, 7000 + 600 * 16);
        assert_eq!(apic.to_kvm(&page, current).regs, page.regs);
    }
}
