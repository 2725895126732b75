//! Loads a machine's own state after power-on into itself before it waits for a guest.
//!
//! Everything that a destination does in the pause, it would do for the first time: its code is neither mapped nor in the
//! caches, nor are the kernel's paths. So the machine is saved into memory and loaded from there, and its own state is written
//! to KVM. Nothing changes by that, and a failure has no meaning: an arriving guest is checked as always.

use std::io;
use std::time::Duration;

use vmstate::channel::Channel;
use vmstate::codec::{Limits, Strictness};
use vmstate::migrate::snapshot;
use vmstate::ram::{GuestRam, RamBlock};
use vmstate::{Error, ErrorKind, Result};

use crate::machine_map::MACHINE_TYPE;
use crate::migration::sections::MachineState;
use crate::sync::lock;
use crate::vm::assembly::Vm;

impl Vm {
    /// Destination, before a source is accepted.
    ///
    /// # Errors
    /// The machine cannot load its own state, and is unchanged.
    pub(super) fn warm_up(&self) -> Result<()> {
        let done = self.load_and_write();
        *lock(&self.state) = MachineState::new(self.machine.vcpus.len());
        done
    }

    fn load_and_write(&self) -> Result<()> {
        let refused = |error| Error::new(ErrorKind::Rejected, "KVM refused the state").with_source(error);
        let hypervisor = self.machine.read_state().map_err(refused)?;
        lock(&self.state).hypervisor = hypervisor;
        self.load_itself()?;
        let state = lock(&self.state);
        self.machine.write_state(&state.hypervisor, None).map(drop).map_err(refused)
    }

    fn load_itself(&self) -> Result<()> {
        let mut tape = Tape::default();
        snapshot::save(&mut tape, MACHINE_TYPE, &mut self.parts().sections()?, &NoRam)?;
        let (strictness, limits) = (Strictness::default(), Limits::default());
        snapshot::load(&mut tape, MACHINE_TYPE, strictness, limits, &mut self.parts().sections()?, &NoRam)
    }
}

/// A stream in memory, which is written and then read.
#[derive(Default)]
struct Tape {
    bytes: Vec<u8>,
    read: usize,
}

impl Channel for Tape {
    fn send(&mut self, bytes: &[u8], _: Duration) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn receive(&mut self, into: &mut [u8], _: Duration) -> io::Result<usize> {
        let left = self.bytes.get(self.read..).unwrap_or_default();
        let count = left.len().min(into.len());
        into[..count].copy_from_slice(&left[..count]);
        self.read += count;
        Ok(count)
    }
}

/// The guest's memory is not loaded, since there is none.
struct NoRam;

impl GuestRam for NoRam {
    fn blocks(&self) -> &[RamBlock] {
        &[]
    }

    fn read(&self, _: usize, _: u64, _: &mut [u8]) -> Result<()> {
        Err(no_ram())
    }

    fn write(&self, _: usize, _: u64, _: &[u8]) -> Result<()> {
        Err(no_ram())
    }

    fn zero_page(&self, _: usize, _: u64) -> Result<()> {
        Err(no_ram())
    }
}

fn no_ram() -> Error {
    Error::new(ErrorKind::Misuse, "a machine that loads itself has no memory")
}
