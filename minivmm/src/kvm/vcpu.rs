//! One vCPU: enters the guest, and passes the guest's port and memory accesses to the buses.

use std::fmt;
use std::sync::atomic::AtomicU8;

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::kvm::exits::{ExitCounters, Reason};
use crate::memory::Ram;

/// Buses for the guest's accesses.
#[derive(Clone, Debug, Default)]
pub struct Buses {
    /// Port space.
    pub pio: Bus,
    /// Memory space outside RAM.
    pub mmio: Bus,
}

/// Why [`Vcpu::enter`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An access was answered; the instruction completes at the next entry.
    Handled,
    /// Interrupted from outside, with no half-done instruction: the state can be read.
    Interrupted,
    /// The guest's CPU shut down (triple fault); a real machine resets.
    TripleFault,
    /// The CPU cannot continue, for this reason.
    Failed(String),
}

/// A vCPU.
pub struct Vcpu {
    index: u8,
    fd: VcpuFd,
    exits: ExitCounters,
    /// Keeps the memory mapped that the guest may write while this vCPU runs.
    _ram: Ram,
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Vcpu {
    pub(crate) fn new(index: u8, fd: VcpuFd, ram: Ram) -> Self {
        Self { index, fd, exits: ExitCounters::default(), _ram: ram }
    }

    /// APIC id.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// File descriptor for registers and other state.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Counters of exits, which continue to change.
    pub fn exits(&self) -> &ExitCounters {
        &self.exits
    }

    /// Returns the byte that makes the next entry return at once, with any access completed; valid while the vCPU lives.
    pub(crate) fn immediate_exit(&mut self) -> *mut u8 {
        let run: *mut kvm_run = self.fd.get_kvm_run();
        // SAFETY: `run` is the live mapping of this vCPU; only an address is taken.
        unsafe { &raw mut (*run).immediate_exit }
    }

    /// Makes the next KVM_RUN return at once.
    pub(crate) fn set_immediate_exit(&mut self) {
        self.store_immediate_exit(1);
    }

    /// Cancels the request to return at once.
    pub(crate) fn clear_immediate_exit(&mut self) {
        self.store_immediate_exit(0);
    }

    fn store_immediate_exit(&mut self, value: u8) {
        let byte = self.immediate_exit();
        // SAFETY: the byte lives as long as `self` and is only ever accessed atomically, here and by the kicker.
        unsafe { AtomicU8::from_ptr(byte) }.store(value, std::sync::atomic::Ordering::SeqCst);
    }

    /// Runs the guest until it accesses a device, and completes the access with `buses`.
    pub fn enter(&mut self, buses: &Buses) -> Exit {
        let run: *const kvm_run = self.fd.get_kvm_run();
        let exits = &self.exits;
        match self.fd.run() {
            // A string instruction is one exit with all its accesses.
            Ok(VcpuExit::IoIn(port, data)) => {
                exits.count(Reason::PortRead);
                data.chunks_mut(access_size(run)).for_each(|access| buses.pio.read(port.into(), access));
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                exits.count(Reason::PortWrite);
                data.chunks(access_size(run)).for_each(|access| buses.pio.write(port.into(), access));
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                exits.count(Reason::MmioRead);
                buses.mmio.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                exits.count(Reason::MmioWrite);
                buses.mmio.write(address, data);
            }
            Ok(VcpuExit::Shutdown) => {
                exits.count(Reason::Shutdown);
                return Exit::TripleFault;
            }
            Ok(VcpuExit::InternalError) => {
                exits.count(Reason::Failed);
                return Exit::Failed(self.internal_error());
            }
            Ok(exit) => {
                exits.count(Reason::Failed);
                let exit = format!("{exit:?}");
                return Exit::Failed(format!("unexpected exit {exit} at {}", self.place()));
            }
            // EAGAIN: a waiting application processor was just started (api.rst, 4.10).
            Err(error) if error.errno() == libc::EAGAIN => exits.count(Reason::Interrupted),
            Err(error) if error.errno() == libc::EINTR => {
                exits.count(Reason::Interrupted);
                return Exit::Interrupted;
            }
            Err(error) => {
                exits.count(Reason::Failed);
                return Exit::Failed(format!("KVM_RUN failed: {error} at {}", self.place()));
            }
        }
        Exit::Handled
    }

    /// Describes an internal error. KVM gives no text; the suberrors are in api.rst, KVM_EXIT_INTERNAL_ERROR.
    fn internal_error(&mut self) -> String {
        // SAFETY: the union holds `internal` after this exit reason; all its bit patterns are valid.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let what = match internal.suberror {
            1 => "it cannot emulate the instruction",
            2 => "two events at once",
            3 => "an event could not be delivered",
            _ => "it gives no reason",
        };
        format!("KVM internal error {} ({what}) at {}", internal.suberror, self.place())
    }

    fn place(&self) -> String {
        self.fd.get_regs().map_or_else(|_| "an unknown address".into(), |regs| format!("rip {:#x}", regs.rip))
    }
}

/// Bytes of each access of the port exit in `run`, the mapping of a live vCPU.
fn access_size(run: *const kvm_run) -> usize {
    // SAFETY: the mapping is live, and nothing writes it while the vCPU is outside KVM_RUN; the accesses' data lie
    // behind the struct.
    let exit = unsafe { &(*run).__bindgen_anon_1 };
    // SAFETY: the union holds `io` after a port exit; all its bit patterns are valid.
    let size = unsafe { exit.io.size };
    usize::from(size).max(1)
}
