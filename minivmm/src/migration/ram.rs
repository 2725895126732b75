//! Guest RAM as the engine sees it: one block of pages, and who wrote which.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmstate::ErrorKind;
use vmstate::ram::{GuestRam, RamBlock};

use crate::error::Error;
use crate::kvm::dirty;
use crate::kvm::vm::KvmVm;
use crate::memory::{PAGE_SIZE, RAM_BLOCK, Ram};

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
/// between the two. Clones share it: the engine reads it, and the driver lets it follow the guest through resets.
#[derive(Clone, Debug)]
pub struct MachineDirtyLog(Arc<Mutex<Recording>>);

#[derive(Debug)]
struct Recording {
    vm: Arc<KvmVm>,
    vcpu_writes: Option<dirty::DirtyLog>,
    /// What vCPUs of machines before `vm` wrote and nobody has taken yet; empty if there is nothing.
    earlier: Vec<u64>,
}

impl MachineDirtyLog {
    /// Not yet recording.
    pub fn new(vm: Arc<KvmVm>) -> Self {
        Self(Arc::new(Mutex::new(Recording { vm, vcpu_writes: None, earlier: Vec::new() })))
    }

    /// Goes on with `vm`, whose vCPUs have not run, in place of the machine so far, whose vCPUs have ended.
    ///
    /// # Errors
    /// [`Error::Kvm`]; it does not record any more, and says so at the next look into it.
    pub fn follow(&self, vm: &Arc<KvmVm>) -> Result<(), Error> {
        self.lock().follow(vm)
    }

    fn lock(&self) -> MutexGuard<'_, Recording> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recording {
    fn follow(&mut self, vm: &Arc<KvmVm>) -> Result<(), Error> {
        let before = std::mem::replace(&mut self.vm, Arc::clone(vm));
        let Some(mut recorded) = self.vcpu_writes.take() else { return Ok(()) };
        let words = (vm.ram().len() / PAGE_SIZE).div_ceil(64) as usize;
        self.earlier.resize(words, 0);
        recorded.sync(&before, &mut self.earlier)?;
        let mut begun = dirty::DirtyLog::start(vm)?;
        // KVM may begin with all pages marked. The engine knows what it has still to send: none of them was written here.
        begun.sync(vm, &mut vec![0; words])?;
        begun.clear(vm, 0, vm.ram().len() / PAGE_SIZE)?;
        self.vcpu_writes = Some(begun);
        Ok(())
    }
}

impl vmstate::ram::DirtyLog for MachineDirtyLog {
    fn start(&mut self) -> vmstate::Result<()> {
        let recording = &mut *self.lock();
        recording.vcpu_writes = Some(dirty::DirtyLog::start(&recording.vm).map_err(hypervisor)?);
        recording.earlier.clear();
        Ok(())
    }

    fn sync(&mut self, _block: usize, words: &mut [u64]) -> vmstate::Result<()> {
        let recording = &mut *self.lock();
        let Some(vcpu_writes) = &mut recording.vcpu_writes else {
            return Err(vmstate::Error::new(ErrorKind::Misuse, "the dirty log is not recording"));
        };
        vcpu_writes.sync(&recording.vm, words).map_err(hypervisor)?;
        for (word, earlier) in words.iter_mut().zip(recording.earlier.drain(..)) {
            *word |= earlier;
        }
        recording.vm.ram().take_device_writes(words);
        Ok(())
    }

    fn clear(&mut self, _block: usize, first: u64, count: u64) -> vmstate::Result<()> {
        let recording = &mut *self.lock();
        match &mut recording.vcpu_writes {
            Some(vcpu_writes) => vcpu_writes.clear(&recording.vm, first, count).map_err(hypervisor),
            None => Ok(()),
        }
    }

    fn stop(&mut self) {
        let recording = &mut *self.lock();
        if let Some(vcpu_writes) = recording.vcpu_writes.take() {
            vcpu_writes.stop(&recording.vm);
        }
    }
}

fn misuse(error: Error) -> vmstate::Error {
    vmstate::Error::new(ErrorKind::Misuse, "guest memory was addressed outside its block").with_source(error)
}

fn hypervisor(error: Error) -> vmstate::Error {
    vmstate::Error::new(ErrorKind::Io, "the hypervisor's dirty log failed").with_source(error)
}
