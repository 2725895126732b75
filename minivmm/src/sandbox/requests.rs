//! Requests of `ioctl`, as numbers that a filter compares (linux/kvm.h, linux/if_tun.h, linux/vhost.h,
//! linux/userfaultfd.h, asm-generic/ioctls.h).

use kvm_bindings::{
    KVMIO, kvm_clear_dirty_log, kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_device_attr, kvm_dirty_log,
    kvm_enable_cap, kvm_ioeventfd, kvm_irq_level, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_list, kvm_msrs,
    kvm_pit_config, kvm_pit_state2, kvm_pre_fault_memory, kvm_regs, kvm_sregs, kvm_userspace_memory_region,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

pub(super) use linux_raw_sys::ioctl::{UFFDIO_COPY, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE, UFFDIO_ZEROPAGE};
use vhost::vhost_kern::vhost_binding::{VHOST, vhost_vring_addr, vhost_vring_file, vhost_vring_state};

/// A request; the kernel takes 32 bits of the argument.
pub(super) type Request = u32;

/// Encodes a request: direction and size of its data, as the caller sees them (asm-generic/ioctl.h).
const fn code(direction: u32, kind: u32, number: u32, size: usize) -> Request {
    direction << 30 | (size as u32) << 16 | kind << 8 | number
}

const fn none(number: u32) -> Request {
    code(0, KVMIO, number, 0)
}

const fn write<T>(number: u32) -> Request {
    code(1, KVMIO, number, size_of::<T>())
}

const fn read<T>(number: u32) -> Request {
    code(2, KVMIO, number, size_of::<T>())
}

const fn both<T>(number: u32) -> Request {
    code(3, KVMIO, number, size_of::<T>())
}

// Creation of a machine and its parts.
pub(super) const KVM_CREATE_VM: Request = none(0x01);
pub(super) const KVM_GET_MSR_INDEX_LIST: Request = both::<kvm_msr_list>(0x02);
pub(super) const KVM_CHECK_EXTENSION: Request = none(0x03);
pub(super) const KVM_GET_VCPU_MMAP_SIZE: Request = none(0x04);
pub(super) const KVM_GET_SUPPORTED_CPUID: Request = both::<kvm_cpuid2>(0x05);
pub(super) const KVM_GET_MSR_FEATURE_INDEX_LIST: Request = both::<kvm_msr_list>(0x0a);
pub(super) const KVM_CREATE_VCPU: Request = none(0x41);
pub(super) const KVM_SET_USER_MEMORY_REGION: Request = write::<kvm_userspace_memory_region>(0x46);
pub(super) const KVM_SET_TSS_ADDR: Request = none(0x47);
pub(super) const KVM_SET_IDENTITY_MAP_ADDR: Request = write::<u64>(0x48);
pub(super) const KVM_CREATE_IRQCHIP: Request = none(0x60);
pub(super) const KVM_CREATE_PIT2: Request = write::<kvm_pit_config>(0x77);
pub(super) const KVM_IOEVENTFD: Request = write::<kvm_ioeventfd>(0x79);
pub(super) const KVM_SET_CPUID2: Request = write::<kvm_cpuid2>(0x90);
pub(super) const KVM_GET_CPUID2: Request = both::<kvm_cpuid2>(0x91);
pub(super) const KVM_X86_SETUP_MCE: Request = write::<u64>(0x9c);
pub(super) const KVM_X86_GET_MCE_CAP_SUPPORTED: Request = read::<u64>(0x9d);
pub(super) const KVM_GET_STATS_FD: Request = none(0xce);
pub(super) const KVM_ENABLE_CAP: Request = write::<kvm_enable_cap>(0xa3);

// Running a machine.
pub(super) const KVM_IRQ_LINE: Request = write::<kvm_irq_level>(0x61);
pub(super) const KVM_RUN: Request = none(0x80);
pub(super) const KVM_KVMCLOCK_CTRL: Request = none(0xad);

// Dirty logging.
pub(super) const KVM_GET_DIRTY_LOG: Request = write::<kvm_dirty_log>(0x42);
pub(super) const KVM_CLEAR_DIRTY_LOG: Request = both::<kvm_clear_dirty_log>(0xc0);

// Arrival of a guest.
pub(super) const KVM_PRE_FAULT_MEMORY: Request = both::<kvm_pre_fault_memory>(0xd5);

// State of a paused machine.
pub(super) const KVM_GET_IRQCHIP: Request = both::<kvm_irqchip>(0x62);
pub(super) const KVM_SET_IRQCHIP: Request = read::<kvm_irqchip>(0x63);
pub(super) const KVM_SET_CLOCK: Request = write::<kvm_clock_data>(0x7b);
pub(super) const KVM_GET_CLOCK: Request = read::<kvm_clock_data>(0x7c);
pub(super) const KVM_GET_REGS: Request = read::<kvm_regs>(0x81);
pub(super) const KVM_SET_REGS: Request = write::<kvm_regs>(0x82);
pub(super) const KVM_GET_SREGS: Request = read::<kvm_sregs>(0x83);
pub(super) const KVM_SET_SREGS: Request = write::<kvm_sregs>(0x84);
pub(super) const KVM_GET_MSRS: Request = both::<kvm_msrs>(0x88);
pub(super) const KVM_SET_MSRS: Request = write::<kvm_msrs>(0x89);
pub(super) const KVM_GET_LAPIC: Request = read::<kvm_lapic_state>(0x8e);
pub(super) const KVM_SET_LAPIC: Request = write::<kvm_lapic_state>(0x8f);
pub(super) const KVM_GET_MP_STATE: Request = read::<kvm_mp_state>(0x98);
pub(super) const KVM_SET_MP_STATE: Request = write::<kvm_mp_state>(0x99);
pub(super) const KVM_GET_VCPU_EVENTS: Request = read::<kvm_vcpu_events>(0x9f);
pub(super) const KVM_GET_PIT2: Request = read::<kvm_pit_state2>(0x9f);
pub(super) const KVM_SET_VCPU_EVENTS: Request = write::<kvm_vcpu_events>(0xa0);
pub(super) const KVM_SET_PIT2: Request = write::<kvm_pit_state2>(0xa0);
pub(super) const KVM_GET_DEBUGREGS: Request = read::<kvm_debugregs>(0xa1);
pub(super) const KVM_SET_DEBUGREGS: Request = write::<kvm_debugregs>(0xa2);
pub(super) const KVM_SET_TSC_KHZ: Request = none(0xa2);
pub(super) const KVM_GET_TSC_KHZ: Request = none(0xa3);
pub(super) const KVM_GET_XSAVE: Request = read::<kvm_xsave>(0xa4);
pub(super) const KVM_SET_XSAVE: Request = write::<kvm_xsave>(0xa5);
pub(super) const KVM_GET_XCRS: Request = read::<kvm_xcrs>(0xa6);
pub(super) const KVM_SET_XCRS: Request = write::<kvm_xcrs>(0xa7);
pub(super) const KVM_SET_DEVICE_ATTR: Request = write::<kvm_device_attr>(0xe1);
pub(super) const KVM_GET_DEVICE_ATTR: Request = write::<kvm_device_attr>(0xe2);

/// Finds the pages of guest RAM that are populated: `struct pm_scan_arg` is twelve words (linux/fs.h).
pub(super) const PAGEMAP_SCAN: Request = code(3, b'f' as u32, 16, 12 * size_of::<u64>());

// vhost-net (linux/vhost.h), in the order in which a card's queues are started and then stopped.
pub(super) const VHOST_SET_FEATURES: Request = vhost(1, 0x00, size_of::<u64>());
pub(super) const VHOST_SET_VRING_NUM: Request = vhost(1, 0x10, size_of::<vhost_vring_state>());
pub(super) const VHOST_SET_VRING_BASE: Request = vhost(1, 0x12, size_of::<vhost_vring_state>());
pub(super) const VHOST_SET_VRING_ADDR: Request = vhost(1, 0x11, size_of::<vhost_vring_addr>());
pub(super) const VHOST_SET_VRING_KICK: Request = vhost(1, 0x20, size_of::<vhost_vring_file>());
pub(super) const VHOST_SET_VRING_CALL: Request = vhost(1, 0x21, size_of::<vhost_vring_file>());
pub(super) const VHOST_SET_VRING_ERR: Request = vhost(1, 0x22, size_of::<vhost_vring_file>());
pub(super) const VHOST_NET_SET_BACKEND: Request = vhost(1, 0x30, size_of::<vhost_vring_file>());
pub(super) const VHOST_GET_VRING_BASE: Request = vhost(3, 0x12, size_of::<vhost_vring_state>());

const fn vhost(direction: u32, number: u32, size: usize) -> Request {
    code(direction, VHOST, number, size)
}

/// Sets the offloads of a tap that the guest supports.
pub(super) const TUNSETOFFLOAD: Request = code(1, b'T' as u32, 208, size_of::<libc::c_uint>());

// Settings of a terminal; the GNU C library has the larger struct since its version 2.42.
pub(super) const TCGETS: Request = libc::TCGETS as u32;
pub(super) const TCSETS: Request = libc::TCSETS as u32;
pub(super) const TCGETS2: Request = code(2, b'T' as u32, 0x2a, size_of::<libc::termios2>());
pub(super) const TCSETS2: Request = code(1, b'T' as u32, 0x2b, size_of::<libc::termios2>());

/// Asks how many bytes of a name server's answer wait.
pub(super) const FIONREAD: Request = libc::FIONREAD as u32;

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are what a C compiler makes of linux/vhost.h on this architecture.
    #[test]
    fn requests_of_vhost_are_those_of_its_header() {
        let here = [
            VHOST_SET_FEATURES,
            VHOST_SET_VRING_NUM,
            VHOST_SET_VRING_BASE,
            VHOST_SET_VRING_ADDR,
            VHOST_SET_VRING_KICK,
            VHOST_SET_VRING_CALL,
            VHOST_SET_VRING_ERR,
            VHOST_NET_SET_BACKEND,
            VHOST_GET_VRING_BASE,
        ];
        let header = [
            0x4008_af00,
            0x4008_af10,
            0x4008_af12,
            0x4028_af11,
            0x4008_af20,
            0x4008_af21,
            0x4008_af22,
            0x4008_af30,
            0xc008_af12,
        ];
        assert_eq!(here, header);
    }
}
