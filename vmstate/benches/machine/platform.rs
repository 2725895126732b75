//! The small devices around the CPUs: clocks, timers, serial port, firmware.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use vmstate::VmState;

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "timer", version = 2, minimum_version = 1)]
pub(super) struct Timers {
    cpu_ticks_offset: i64,
    #[vmstate(since = 2)]
    cpu_clock_offset: i64,
}

impl Timers {
    pub(super) fn new(seed: u64) -> Self {
        Self { cpu_ticks_offset: -0x34_5678_9abc, cpu_clock_offset: 7_654_321_000 + seed as i64 }
    }
}

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "fw_cfg", version = 2)]
#[vmstate(subsection(name = "fw_cfg/dma"))]
#[vmstate(subsection(name = "fw_cfg/acpi_mr"))]
pub(super) struct FwCfg {
    cur_entry: u16,
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
    pub(super) fn new(seed: u64) -> Self {
        let cur_entry = 0x19 + seed as u16;
        Self { cur_entry, table_mr_size: 0x2_0000, linker_mr_size: 4096, rsdp_mr_size: 4096, ..Self::default() }
    }
}

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "kvmclock", version = 1)]
#[vmstate(subsection(name = "kvmclock/clock_is_reliable"))]
pub(super) struct KvmClock {
    clock: u64,
    #[vmstate(subsection = "kvmclock/clock_is_reliable")]
    clock_is_reliable: bool,
}

impl KvmClock {
    pub(super) fn new(seed: u64) -> Self {
        Self { clock: 7_654_321_000 + seed, clock_is_reliable: true }
    }
}

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "acpi-ged", version = 1)]
#[vmstate(subsection(name = "acpi-ged/memhp", needed = Self::has_memory_hotplug))]
pub(super) struct AcpiGed {
    ged_state: GedState,
    #[vmstate(subsection = "acpi-ged/memhp")]
    memory_slot: u32,
}

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "acpi-ged-state", version = 1)]
struct GedState {
    sel: u32,
}

impl AcpiGed {
    pub(super) fn new(seed: u64) -> Self {
        Self { ged_state: GedState { sel: seed as u32 }, memory_slot: 0 }
    }

    fn has_memory_hotplug(&self) -> bool {
        self.memory_slot != 0
    }
}

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "i8254", version = 3, minimum_version = 2)]
pub(super) struct Pit {
    #[vmstate(since = 3)]
    irq_disabled: u32,
    channels: [PitChannel; 3],
    next_transition_time: i64,
}

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "pit channel", version = 2)]
struct PitChannel {
    count: i32,
    latched_count: u16,
    count_latched: u8,
    status_latched: u8,
    status: u8,
    read_state: u8,
    write_state: u8,
    write_latch: u8,
    rw_mode: u8,
    mode: PitMode,
    bcd: u8,
    gate: u8,
    count_load_time: i64,
    next_transition_time: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[repr(u8)]
enum PitMode {
    #[default]
    TerminalCount = 0,
    OneShot = 1,
    RateGenerator = 2,
    SquareWave = 3,
    SoftwareStrobe = 4,
    HardwareStrobe = 5,
}

impl Pit {
    pub(super) fn new(seed: u64) -> Self {
        let channel = |mode| PitChannel {
            count: 0x1_0000,
            rw_mode: 3,
            mode,
            gate: 1,
            count_load_time: 1_234_567 + seed as i64,
            next_transition_time: 7_654_399_000,
            ..PitChannel::default()
        };
        let channels = [channel(PitMode::RateGenerator), channel(PitMode::SquareWave), channel(PitMode::OneShot)];
        Self { irq_disabled: 1, channels, next_transition_time: -1 }
    }
}

#[derive(Clone, Debug, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "mc146818rtc", version = 3, minimum_version = 1)]
#[vmstate(subsection(name = "mc146818rtc/irq_reinject_on_ack_count", needed = Self::reinjects))]
pub(super) struct Rtc {
    #[vmstate(buffer)]
    #[serde(with = "serde_bytes")]
    cmos_data: [u8; 128],
    #[vmstate(range = 0..=127)]
    cmos_index: u8,
    periodic_timer: i64,
    next_periodic_time: i64,
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
    update_timer: i64,
    #[vmstate(since = 3)]
    next_alarm_time: u64,
    #[vmstate(subsection = "mc146818rtc/irq_reinject_on_ack_count")]
    reinject_count: u16,
}

impl Rtc {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            cmos_data: std::array::from_fn(|n| if n < 14 { n as u8 ^ seed as u8 } else { 0 }),
            cmos_index: 10,
            periodic_timer: -1,
            next_periodic_time: 0,
            irq_coalesced: 0,
            period: 0,
            base_rtc: 1_750_000_000,
            last_update: 7_654_000_000,
            offset: 0,
            update_timer: -1,
            next_alarm_time: 86_400_000_000_000,
            reinject_count: 0,
        }
    }

    fn reinjects(&self) -> bool {
        self.reinject_count != 0
    }
}

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "serial", version = 3, minimum_version = 2)]
#[vmstate(subsection(name = "serial/recv_fifo", needed = Self::has_received))]
#[vmstate(subsection(name = "serial/timeout_ipending", needed = Self::timeout_is_pending))]
pub(super) struct Serial {
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
    fcr: u8,
    #[vmstate(subsection = "serial/recv_fifo")]
    received: Fifo,
    #[vmstate(subsection = "serial/timeout_ipending")]
    timeout_ipending: i32,
}

#[derive(Clone, Debug, Default, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "Fifo8", version = 1)]
struct Fifo {
    #[vmstate(buffer)]
    data: [u8; 16],
    #[vmstate(range = 0..16)]
    head: u32,
    #[vmstate(range = 0..=16)]
    count: u32,
}

impl Serial {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            divider: 1,
            rbr: b'a',
            ier: 5,
            iir: 0xc1,
            lcr: 3,
            mcr: 11,
            lsr: 0x60,
            msr: 0xb0,
            scr: seed as u8,
            fcr: 0x81,
            received: Fifo { data: *b"uname -a\n       ", head: 0, count: 9 },
            timeout_ipending: 0,
        }
    }

    fn has_received(&self) -> bool {
        self.received.count != 0
    }

    fn timeout_is_pending(&self) -> bool {
        self.timeout_ipending != 0
    }
}

#[derive(Clone, Debug, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "cfi.pflash01", version = 1)]
pub(super) struct Flash {
    write_cycle: u8,
    command: u8,
    status: u8,
    counter: u64,
    #[vmstate(buffer)]
    #[serde(with = "serde_bytes")]
    write_buffer: [u8; 4096],
}

impl Flash {
    pub(super) fn new(seed: u64) -> Self {
        let write_buffer = std::array::from_fn(|n| (n as u64 * 31 + seed) as u8);
        Self { write_cycle: 0, command: 0, status: 0x80, counter: 0, write_buffer }
    }
}

#[derive(Clone, Debug, PartialEq, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "globalstate", version = 1)]
pub(super) struct GlobalState {
    size: u32,
    #[vmstate(buffer)]
    #[serde(with = "serde_bytes")]
    run_state: [u8; 100],
    was_suspended: bool,
}

impl GlobalState {
    pub(super) fn new(seed: u64) -> Self {
        let mut run_state = [0; 100];
        run_state[..8].copy_from_slice(b"running\0");
        Self { size: 8, run_state, was_suspended: seed == u64::MAX }
    }
}
