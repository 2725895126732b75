//! Sections `timer` and `globalstate`, of the machine as a whole.

use vmstate::VmState;
use vmstate::state::Unused;

/// QMP's name of the state of a machine that resumes at once.
const RUNNING: &str = "running";

/// Section `timer`, version 2: QEMU's virtual clock, to which timers in sections refer, and its tick counter. In minivmm the
/// guest's clocks come from KVM; where QEMU emulates, the guest's time stamp counter is that tick counter.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "timer", version = 2, minimum_version = 1)]
pub struct Timer {
    /// Ticks that the guest's time stamp counter shows.
    pub cpu_ticks_offset: i64,
    #[vmstate(since = 2)]
    unused: Unused<8>,
    /// The machine's clock in ns.
    #[vmstate(since = 2)]
    pub cpu_clock_offset: i64,
}

impl Timer {
    /// State of a machine whose clock is at `clock` ns and whose first vCPU's time stamp counter at `tsc`.
    pub fn at(clock: u64, tsc: u64) -> Self {
        Self { cpu_clock_offset: clock as i64, cpu_ticks_offset: tsc as i64, ..Self::default() }
    }
}

/// Section `globalstate`, version 1: the run state in which the machine resumes.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "globalstate", version = 1)]
pub struct GlobalState {
    /// Bytes of the name, with its NUL.
    size: u32,
    /// QMP's name of the run state, NUL-terminated.
    #[vmstate(buffer)]
    runstate: [u8; 32],
    has_vm_was_suspended: u8,
    vm_was_suspended: u8,
    /// Rest of the 100 bytes that the name once had.
    #[vmstate(buffer)]
    unused: [u8; 66],
}

impl GlobalState {
    /// State of a machine whose run state has QMP's name `name`; a name over 31 bytes is truncated.
    pub fn new(name: &str) -> Self {
        let name = &name.as_bytes()[..name.len().min(31)];
        let mut runstate = [0; 32];
        runstate[..name.len()].copy_from_slice(name);
        Self { size: name.len() as u32 + 1, runstate, has_vm_was_suspended: 1, vm_was_suspended: 0, unused: [0; 66] }
    }

    /// Whether the machine ran when it was saved, so that it resumes at once.
    pub fn was_running(&self) -> bool {
        let name = self.runstate.split(|&byte| byte == 0).next().unwrap_or_default();
        name == RUNNING.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes as QEMU 10.0 sends them for a running machine: size 8, the name, NULs.
    #[test]
    fn running_is_sent_as_qemu_does() {
        let mut out = vmstate::codec::Writer::new();
        vmstate::Section::save(&mut GlobalState::new("running"), &mut out).unwrap();
        let bytes = out.into_bytes();
        assert_eq!(bytes.len(), 4 + 32 + 1 + 1 + 66);
        assert_eq!(&bytes[..13], b"\0\0\0\x08running\0\0");
        assert!(GlobalState::new("running").was_running());
        assert!(!GlobalState::new("paused").was_running());
    }
}
