//! Devices of QEMU 10.0's `microvm`, with the names, versions and fields of its vmstate descriptions.

use vmstate::{Timer, Unused, VmState};

#[derive(VmState, Default)]
#[vmstate(name = "timer", version = 2, minimum_version = 1)]
pub(crate) struct Timers {
    cpu_ticks_offset: i64,
    _was_cpu_clock: Unused<8>,
    #[vmstate(since = 2)]
    cpu_clock_offset: i64,
}

/// Version 1 had a 16-bit `cur_offset`; QEMU keeps both fields under one name.
#[derive(VmState, Default)]
#[vmstate(name = "fw_cfg", version = 2, minimum_version = 1)]
#[vmstate(subsection(name = "fw_cfg/dma", version = 0))]
#[vmstate(subsection(name = "fw_cfg/acpi_mr"))]
pub(crate) struct FwCfg {
    cur_entry: u16,
    #[vmstate(name = "cur_offset", exists = Self::is_version_1, wire = u16)]
    cur_offset_version_1: u32,
    #[vmstate(name = "cur_offset", since = 2)]
    cur_offset: u32,
    #[vmstate(subsection = "fw_cfg/dma")]
    dma_addr: u64,
    #[vmstate(subsection = "fw_cfg/acpi_mr")]
    table_mr_size: u64,
    #[vmstate(subsection = "fw_cfg/acpi_mr")]
    linker_mr_size: u64,
    #[vmstate(subsection = "fw_cfg/acpi_mr")]
    rsdp_mr_size: u64,
}

impl FwCfg {
    fn is_version_1(&self, version: u32) -> bool {
        version == 1
    }
}

#[derive(VmState, Default)]
#[vmstate(name = "cpu_common", version = 1)]
pub(crate) struct CpuCommon {
    halted: u32,
    interrupt_request: u32,
}

#[derive(VmState, Default)]
#[vmstate(name = "kvm-tpr-opt", version = 1)]
pub(crate) struct KvmTprOpt {
    rom_state: GuestRom,
    state: u32,
    real_tpr_addr: u32,
    rom_state_vaddr: u32,
    vapic_paddr: u32,
    rom_state_paddr: u32,
}

#[derive(VmState, Default)]
#[vmstate(name = "kvmvapic-guest-rom", version = 1)]
pub(crate) struct GuestRom {
    _signature: Unused<8>,
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

#[derive(VmState, Default)]
#[vmstate(name = "kvmvapic-handlers", version = 1)]
pub(crate) struct Handlers {
    set_tpr: u32,
    set_tpr_eax: u32,
    get_tpr: [u32; 8],
    get_tpr_stack: u32,
}

#[derive(VmState, Default)]
#[vmstate(name = "apic", version = 3)]
pub(crate) struct Apic {
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
    divide_conf: u32,
    count_shift: i32,
    initial_count: u32,
    initial_count_load_time: i64,
    next_time: i64,
    timer_expiry: i64,
}

#[derive(VmState, Default)]
#[vmstate(name = "ioapic", version = 3, minimum_version = 1)]
pub(crate) struct IoApic {
    id: u8,
    ioregsel: u8,
    #[vmstate(since = 2)]
    _was_base_address: Unused<8>,
    #[vmstate(since = 2)]
    irr: u32,
    ioredtbl: [u64; 24],
}

#[derive(VmState, Default)]
#[vmstate(name = "kvmclock", version = 1)]
#[vmstate(subsection(name = "kvmclock/clock_is_reliable"))]
pub(crate) struct KvmClock {
    clock: u64,
    #[vmstate(subsection = "kvmclock/clock_is_reliable")]
    clock_is_reliable: bool,
}

#[derive(VmState, Default)]
#[vmstate(name = "acpi-ged", version = 1)]
#[vmstate(subsection(name = "acpi-ged/memhp"))]
pub(crate) struct AcpiGed {
    ged_state: GedState,
    #[vmstate(subsection = "acpi-ged/memhp")]
    memhp_state: MemoryHotplug,
}

#[derive(VmState, Default)]
#[vmstate(name = "acpi-ged-state", version = 1)]
pub(crate) struct GedState {
    sel: u32,
}

#[derive(VmState, Default)]
#[vmstate(name = "memory hotplug state", version = 1)]
pub(crate) struct MemoryHotplug {
    selector: u32,
}

#[derive(VmState, Default)]
#[vmstate(name = "i8259", version = 1)]
pub(crate) struct Pic {
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

#[derive(VmState, Default)]
#[vmstate(name = "i8254", version = 3, minimum_version = 2)]
pub(crate) struct Pit {
    #[vmstate(name = "channels[0].irq_disabled", since = 3)]
    irq_disabled: u32,
    channels: [PitChannel; 3],
    #[vmstate(name = "channels[0].next_transition_time")]
    next_transition_time: i64,
}

#[derive(VmState, Default)]
#[vmstate(name = "pit channel", version = 2)]
pub(crate) struct PitChannel {
    count: i32,
    latched_count: u16,
    count_latched: u8,
    status_latched: u8,
    status: u8,
    read_state: u8,
    write_state: u8,
    write_latch: u8,
    rw_mode: u8,
    mode: u8,
    bcd: u8,
    gate: u8,
    count_load_time: i64,
    next_transition_time: i64,
}

#[derive(VmState, Default)]
#[vmstate(name = "serial", version = 3)]
pub(crate) struct IsaSerial {
    state: Serial,
}

#[derive(VmState, Default)]
#[vmstate(name = "serial", version = 3, minimum_version = 2)]
#[vmstate(subsection(name = "serial/timeout_ipending", needed = Self::timeout_is_pending))]
pub(crate) struct Serial {
    divider: u16,
    rbr: u8,
    ier: u8,
    iir: u8,
    lcr: u8,
    mcr: u8,
    lsr: u8,
    msr: u8,
    scr: u8,
    #[vmstate(since = 3)]
    fcr_vmstate: u8,
    #[vmstate(subsection = "serial/timeout_ipending")]
    timeout_ipending: i32,
}

impl Serial {
    fn timeout_is_pending(&self) -> bool {
        self.timeout_ipending != 0
    }
}

#[derive(VmState)]
#[vmstate(name = "mc146818rtc", version = 3, minimum_version = 1)]
pub(crate) struct Rtc {
    #[vmstate(buffer)]
    cmos_data: [u8; 128],
    cmos_index: u8,
    _was_current_tm: Unused<28>,
    periodic_timer: Timer,
    next_periodic_time: i64,
    _was_seconds: Unused<24>,
    #[vmstate(since = 2)]
    irq_coalesced: u32,
    #[vmstate(since = 2)]
    period: u32,
    #[vmstate(since = 3)]
    base_rtc: u64,
    #[vmstate(since = 3)]
    last_update: u64,
    #[vmstate(since = 3)]
    offset: i64,
    #[vmstate(since = 3)]
    update_timer: Timer,
    #[vmstate(since = 3)]
    next_alarm_time: u64,
}

impl Rtc {
    pub(crate) fn new() -> Self {
        Self {
            cmos_data: [0; 128],
            cmos_index: 0,
            _was_current_tm: Unused,
            periodic_timer: Timer(None),
            next_periodic_time: 0,
            _was_seconds: Unused,
            irq_coalesced: 0,
            period: 0,
            base_rtc: 0,
            last_update: 0,
            offset: 0,
            update_timer: Timer(None),
            next_alarm_time: 0,
        }
    }
}

/// The run state's name, and its length with the NUL.
#[derive(VmState)]
#[vmstate(name = "globalstate", version = 1)]
pub(crate) struct GlobalState {
    size: u32,
    #[vmstate(buffer)]
    runstate: [u8; 32],
    has_vm_was_suspended: u8,
    vm_was_suspended: u8,
    #[vmstate(buffer)]
    unused: [u8; 66],
}

impl GlobalState {
    pub(crate) fn new() -> Self {
        Self { size: 0, runstate: [0; 32], has_vm_was_suspended: 0, vm_was_suspended: 0, unused: [0; 66] }
    }
}
