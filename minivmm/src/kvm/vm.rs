//! One KVM virtual machine: memory slots, interrupt controllers, timer, interrupt lines, doorbells.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_MEM_LOG_DIRTY_PAGES, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};
use crate::irq::IrqLine;
use crate::kvm::vcpu::Vcpu;
use crate::memory::{Ram, Stretch};

/// Four pages below 4 GiB that old Intel CPUs need for real mode: one for identity-mapped paging, three for a TSS. The address
/// is QEMU's, away from RAM and devices.
const IDENTITY_MAP: u64 = 0xfffb_c000;
const TSS: usize = 0xfffb_d000;

/// A virtual machine in KVM, with its RAM in memory slots and its interrupt controllers made.
pub struct KvmVm {
    kvm: Arc<Kvm>,
    fd: Arc<VmFd>,
    ram: Ram,
    manual_protect: bool,
    /// Number of pages that the dirty log has reported.
    reported: AtomicU64,
}

impl fmt::Debug for KvmVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmVm").field("ram", &self.ram.len()).finish_non_exhaustive()
    }
}

impl KvmVm {
    /// Makes a machine with `ram` in its slots, PIC, IOAPIC and PIT, and no vCPU yet.
    ///
    /// RAM comes first: a change of slots waits until all earlier changes of the machine are visible to readers, and after a
    /// change of the I/O bus, which PIC, IOAPIC and PIT are, that takes ticks of the kernel's clock (call_srcu in
    /// `kvm_io_bus_register_dev`, synchronize_srcu_expedited in `kvm_swap_active_memslots`, virt/kvm/kvm_main.c).
    ///
    /// # Errors
    /// [`Error::OpenKvm`], [`Error::MissingCapability`], [`Error::Kvm`].
    pub fn new(kvm: impl Into<Arc<Kvm>>, ram: &Ram) -> Result<Self> {
        let kvm = kvm.into();
        let fd = kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
        let manual_protect = enable_manual_protect(&fd)?;
        let (fd, ram, reported) = (Arc::new(fd), ram.clone(), AtomicU64::new(0));
        let vm = Self { kvm, fd, ram, manual_protect, reported };
        vm.set_slots(0)?;
        let fd = vm.fd();
        fd.set_identity_map_address(IDENTITY_MAP).map_err(Error::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TSS).map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(Error::kvm("KVM_CREATE_PIT2"))?;
        Ok(vm)
    }

    /// File descriptor for state: clock, PIC, IOAPIC, PIT.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// KVM of the host.
    pub fn kvm(&self) -> &Arc<Kvm> {
        &self.kvm
    }

    /// The RAM in the slots.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Makes the vCPU with APIC id `index`.
    ///
    /// # Errors
    /// [`Error::Kvm`].
    pub fn create_vcpu(&self, index: u8) -> Result<Vcpu> {
        let fd = self.fd.create_vcpu(index.into()).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        Ok(Vcpu::new(index, fd, self.ram.clone()))
    }

    /// Returns the line to input `gsi` of the interrupt controllers.
    pub fn irq_line(&self, gsi: u32) -> Arc<dyn IrqLine> {
        Arc::new(GsiLine { fd: Arc::clone(&self.fd), gsi })
    }

    /// Signals `doorbell` when the guest writes the 32-bit `value` at `address`, instead of an exit to this process.
    ///
    /// # Errors
    /// [`Error::Kvm`].
    pub fn add_doorbell(&self, address: u64, value: u32, doorbell: &EventFd) -> Result<()> {
        self.fd
            .register_ioevent(doorbell, &IoEventAddress::Mmio(address), value)
            .map_err(Error::kvm("KVM_IOEVENTFD for a virtio queue"))
    }

    /// Whether the dirty log is cleared on request ([`clear`](crate::kvm::dirty::DirtyLog::clear)) instead of by reading.
    pub(crate) fn manual_protect(&self) -> bool {
        self.manual_protect
    }

    /// Number of pages that the dirty log has reported as written, each as often as it was reported.
    pub(crate) fn reported_pages(&self) -> u64 {
        self.reported.load(Ordering::Relaxed)
    }

    /// Adds to the number of reported pages.
    pub(crate) fn add_reported_pages(&self, pages: u64) {
        self.reported.fetch_add(pages, Ordering::Relaxed);
    }

    /// Memory slots, by slot number.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (u32, Stretch)> + '_ {
        (0..).zip(self.ram.stretches())
    }

    /// Starts KVM's dirty log in all slots, or in none.
    ///
    /// # Errors
    /// [`Error::Kvm`]; no slot is logged then.
    pub(crate) fn start_dirty_log(&self) -> Result<()> {
        self.set_slots(KVM_MEM_LOG_DIRTY_PAGES).inspect_err(|_| self.stop_dirty_log())
    }

    /// Stops the dirty log in each slot. A slot that refuses stays logged, which costs the guest some speed and is otherwise
    /// harmless.
    pub(crate) fn stop_dirty_log(&self) {
        for (slot, stretch) in self.slots() {
            let _ = self.set_slot(slot, stretch, 0);
        }
    }

    fn set_slots(&self, flags: u32) -> Result<()> {
        self.slots().try_for_each(|(slot, stretch)| self.set_slot(slot, stretch, flags))
    }

    fn set_slot(&self, slot: u32, stretch: Stretch, flags: u32) -> Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: stretch.guest_address,
            memory_size: stretch.len,
            userspace_addr: stretch.host_address,
        };
        // SAFETY: the range is a whole live mapping of `self.ram`, used by nothing but the guest and vm-memory.
        // The guest writes it only while a vCPU runs, and every vCPU holds the RAM.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION for guest RAM"))
    }
}

/// Enables clearing on request, with all pages dirty at the start, so that starting the log costs nothing (api.rst,
/// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, Linux 5.7). An older host logs without it.
fn enable_manual_protect(fd: &VmFd) -> Result<bool> {
    let wanted = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
    if fd.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into()) as u32 & wanted != wanted {
        return Ok(false);
    }
    let mut cap = kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..Default::default() };
    cap.args[0] = wanted.into();
    fd.enable_cap(&cap).map_err(Error::kvm("KVM_ENABLE_CAP for KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"))?;
    Ok(true)
}

/// An input of the in-kernel interrupt controllers.
struct GsiLine {
    fd: Arc<VmFd>,
    gsi: u32,
}

impl IrqLine for GsiLine {
    fn set(&self, high: bool) {
        // KVM_IRQ_LINE fails only without an interrupt controller or for a GSI beyond its pins; both are fixed
        // when the machine is built.
        let result = self.fd.set_irq_line(self.gsi, high);
        debug_assert!(result.is_ok(), "KVM_IRQ_LINE for GSI {}: {result:?}", self.gsi);
    }
}
