//! Guest RAM as the engine sees it: one block of pages, and who wrote which.

use std::sync::Arc;

use vmstate::ErrorKind;
use vmstate::ram::{GuestRam, RamBlock};

use crate::kvm::dirty;
use crate::kvm::vm::KvmVm;
use crate::memory::{RAM_BLOCK, Ram};

/// The machine's only RAM block. Clones share the same memory.
#[derive(Clone, Debug)]
pub struct MachineRam {
    ram: Ram,
    blocks: Vec<RamBlock>,
}

impl MachineRam {
    /// All of `ram`.
    pub fn new(ram: Ram) -> Self {
        let blocks = vec![RamBlock { name: RAM_BLOCK.into(), len: ram.len() }];
        Self { ram, blocks }
    }
}

impl GuestRam for MachineRam {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn read(&self, _block: usize, offset: u64, into: &mut [u8]) -> vmstate::Result<()> {
        self.ram.read(offset, into).map_err(misuse)
    }

    fn write(&self, _block: usize, offset: u64, from: &[u8]) -> vmstate::Result<()> {
        self.ram.write(offset, from).map_err(misuse)
    }

    fn zero_page(&self, _block: usize, offset: u64) -> vmstate::Result<()> {
        self.ram.zero_page(offset).map_err(misuse)
    }
}

/// Pages written by vCPUs (KVM's log) or by devices (the bitmap of guest memory): the union, so that none is lost
/// between the two.
#[derive(Debug)]
pub struct MachineDirtyLog {
    vm: Arc<KvmVm>,
    vcpu_writes: Option<dirty::DirtyLog>,
}

impl MachineDirtyLog {
    /// Not yet recording.
    pub fn new(vm: Arc<KvmVm>) -> Self {
        Self { vm, vcpu_writes: None }
    }
}

impl vmstate::ram::DirtyLog for MachineDirtyLog {
    fn start(&mut self) -> vmstate::Result<()> {
        self.vcpu_writes = Some(dirty::DirtyLog::start(&self.vm).map_err(hypervisor)?);
        Ok(())
    }

    fn sync(&mut self, _block: usize, words: &mut [u64]) -> vmstate::Result<()> {
        let Some(vcpu_writes) = &mut self.vcpu_writes else {
            return Err(vmstate::Error::new(ErrorKind::Misuse, "the dirty log is not recording"));
        };
        vcpu_writes.sync(&self.vm, words).map_err(hypervisor)?;
        self.vm.ram().take_device_writes(words);
        Ok(())
    }

    fn clear(&mut self, _block: usize, first: u64, count: u64) -> vmstate::Result<()> {
        match &mut self.vcpu_writes {
            Some(vcpu_writes) => vcpu_writes.clear(&self.vm, first, count).map_err(hypervisor),
            None => Ok(()),
        }
    }

    fn stop(&mut self) {
        if let Some(vcpu_writes) = self.vcpu_writes.take() {
            vcpu_writes.stop(&self.vm);
        }
    }
}

fn misuse(error: crate::error::Error) -> vmstate::Error {
    vmstate::Error::new(ErrorKind::Misuse, "guest memory was addressed outside its block").with_source(error)
}

fn hypervisor(error: crate::error::Error) -> vmstate::Error {
    vmstate::Error::new(ErrorKind::Io, "the hypervisor's dirty log failed").with_source(error)
}
