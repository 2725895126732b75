//! A vCPU of KVM that copies bytes within guest memory on request.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};
use minivmm::kvm::vm::KvmVm;

/// `rep movsd`, `mov ecx, edx`, `rep movsb`, and an access to a port without a device: the copy is done. Four bytes at a time,
/// since on some hosts KVM emulates a guest's kernel code, which takes as long for one byte.
pub(crate) const CODE: [u8; 8] = [0xf3, 0xa5, 0x89, 0xd1, 0xf3, 0xa4, 0xe6, PORT as u8];
const PORT: u16 = 0x80;
/// The bit that is always set.
const RFLAGS: u64 = 1 << 1;
/// Protected mode, without paging: the processor then writes to no page table.
const PROTECTED: u64 = 1;

/// Bytes at guest addresses.
struct Copy {
    from: u64,
    to: u64,
    len: u64,
}

/// A vCPU with its thread: KVM requires all runs on one thread, since changing it takes milliseconds.
pub(crate) struct Vcpu {
    copies: Option<Sender<Copy>>,
    done: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Runs [`CODE`] at this guest address.
    pub(crate) fn new(vm: &KvmVm, code: u64) -> Self {
        let mut fd = vm.fd().create_vcpu(0).unwrap();
        let mut system = fd.get_sregs().unwrap();
        let flat = |selector, type_| kvm_segment {
            limit: u32::MAX,
            selector,
            type_,
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        // Code that may be read, data that may be written; both accessed (Intel's manual, volume 3, 3.4.5.1).
        (system.cs, system.ds, system.es, system.ss) = (flat(8, 11), flat(16, 3), flat(16, 3), flat(16, 3));
        system.cr0 |= PROTECTED;
        fd.set_sregs(&system).unwrap();
        let (copies, orders) = channel::<Copy>();
        let (carried_out, done) = channel();
        let thread = thread::spawn(move || {
            while let Ok(copy) = orders.recv() {
                carry_out(&mut fd, code, &copy);
                let _ = carried_out.send(());
            }
        });
        Self { copies: Some(copies), done, thread: Some(thread) }
    }

    /// Copies; returns when the guest has done it.
    pub(crate) fn copy(&self, from: u64, to: u64, len: u64) {
        self.copies.as_ref().unwrap().send(Copy { from, to, len }).unwrap();
        self.done.recv().expect("the vCPU's thread runs");
    }
}

fn carry_out(fd: &mut VcpuFd, code: u64, &Copy { from, to, len }: &Copy) {
    let (rcx, rdx) = (len / 4, len % 4);
    let registers = kvm_regs { rip: code, rsi: from, rdi: to, rcx, rdx, rflags: RFLAGS, ..Default::default() };
    fd.set_regs(&registers).unwrap();
    match fd.run() {
        Ok(VcpuExit::IoOut(PORT, _)) => {}
        other => panic!("the vCPU stopped with {other:?}"),
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.copies = None;
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the vCPU's thread failed");
    }
}
