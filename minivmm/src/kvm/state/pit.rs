//! Section `i8254`, version 3: the in-kernel interval timer.

use kvm_bindings::{kvm_pit_channel_state, kvm_pit_state2};
use kvm_ioctls::VmFd;
use vmstate::VmState;

use super::{StateError, call};

/// One counter. Times are in ns of the machine's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "pit channel", version = 2)]
pub struct Channel {
    /// Reload value.
    pub count: i32,
    /// Latched count.
    pub latched_count: u16,
    /// Latch state.
    pub count_latched: u8,
    /// Status is latched.
    pub status_latched: u8,
    /// Latched status.
    pub status: u8,
    /// Byte read next.
    pub read_state: u8,
    /// Byte written next.
    pub write_state: u8,
    /// Low byte already written.
    pub write_latch: u8,
    /// Access mode.
    pub rw_mode: u8,
    /// Counting mode.
    pub mode: u8,
    /// Binary-coded decimal.
    pub bcd: u8,
    /// Gate input.
    pub gate: u8,
    /// When the count was loaded.
    pub count_load_time: i64,
    /// Time of the next change of the output; KVM does not report it, and QEMU's KVM timer sends the last computed one.
    pub next_transition_time: i64,
}

/// The three counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "i8254", version = 3, minimum_version = 2)]
pub struct Pit {
    /// Whether counter 0 is disconnected from its line (KVM_PIT_FLAGS_HPET_LEGACY).
    #[vmstate(name = "channels[0].irq_disabled", since = 3)]
    pub irq_disabled: u32,
    /// Counters.
    #[vmstate(since = 2)]
    pub channels: [Channel; 3],
    /// Counter 0's next transition.
    #[vmstate(name = "channels[0].next_transition_time")]
    pub next_transition_time: i64,
}

impl Pit {
    /// Reads the timer. `clock_offset`: machine's clock minus the kernel's monotonic clock, in ns.
    ///
    /// # Errors
    /// KVM_GET_PIT2 failed.
    pub fn get(vm: &VmFd, clock_offset: i64) -> Result<Self, StateError> {
        let state = call("KVM_GET_PIT2", vm.get_pit2())?;
        let channels = state.channels.map(|channel| Channel {
            count: channel.count as i32,
            latched_count: channel.latched_count,
            count_latched: channel.count_latched,
            status_latched: channel.status_latched,
            status: channel.status,
            read_state: channel.read_state,
            write_state: channel.write_state,
            write_latch: channel.write_latch,
            rw_mode: channel.rw_mode,
            mode: channel.mode,
            bcd: channel.bcd,
            gate: channel.gate,
            count_load_time: channel.count_load_time.wrapping_add(clock_offset),
            next_transition_time: 0,
        });
        Ok(Self { irq_disabled: state.flags & 1, channels, next_transition_time: 0 })
    }

    /// Writes the timer; KVM restarts each count.
    ///
    /// # Errors
    /// KVM_SET_PIT2 failed.
    pub fn set(&self, vm: &VmFd, clock_offset: i64) -> Result<(), StateError> {
        let channels = self.channels.map(|channel| kvm_pit_channel_state {
            count: channel.count as u32,
            latched_count: channel.latched_count,
            count_latched: channel.count_latched,
            status_latched: channel.status_latched,
            status: channel.status,
            read_state: channel.read_state,
            write_state: channel.write_state,
            write_latch: channel.write_latch,
            rw_mode: channel.rw_mode,
            mode: channel.mode,
            bcd: channel.bcd,
            gate: channel.gate,
            count_load_time: channel.count_load_time.wrapping_sub(clock_offset),
        });
        let state = kvm_pit_state2 { channels, flags: self.irq_disabled & 1, ..Default::default() };
        call("KVM_SET_PIT2", vm.set_pit2(&state))
    }
}
